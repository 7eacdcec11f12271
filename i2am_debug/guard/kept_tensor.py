"""One parameter, buffer or gradient: its data as it was, whether other data came in its place, and how to undo that."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


class KeptTensor:
    """A tensor and its data of now, an alias: it takes no memory until other data comes, and then keeps the old alive."""

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        self.name, self.tensor, self.data = name, tensor, tensor.detach()
        self._version = _version(tensor)

    @property
    def plain(self) -> list[torch.Tensor]:
        """The tensors with bytes of their own that it was made of: itself, or what a DTensor wraps."""
        return _plain(self.data)

    @property
    def counted(self) -> bool:
        """Whether its version counter says that it was written to; `.data.copy_` moves none."""
        return _version(self.tensor) != self._version

    def moved(self) -> str:
        """How the data it has now is not that it had, as "float32 → bfloat16"; empty where it is the same memory."""
        now = self.tensor.detach()
        before, after = self.plain, _plain(now)
        if type(now) is not type(self.data) or len(before) != len(after):
            return f"{type(self.data).__name__} → {type(now).__name__}"
        for ours, theirs in zip(before, after, strict=True):
            if ours.dtype != theirs.dtype:
                return f"{_short(ours.dtype)} → {_short(theirs.dtype)}"
            if ours.device != theirs.device:
                return f"{ours.device} → {theirs.device}"
            if _memory(ours) != _memory(theirs):
                return "other data"
        return ""

    def put_back(self) -> None:
        """Gives it the data that it had, bit for bit and in the very memory."""
        if is_traceable_wrapper_subclass(self.data):  # its `.data =` would leave what is wrapped as it is now
            is_parameter = isinstance(self.tensor, nn.Parameter)
            torch.utils.swap_tensors(self.tensor, nn.Parameter(self.data, False) if is_parameter else self.data)
        else:
            self.tensor.data = self.data


def _plain(tensor: torch.Tensor) -> list[torch.Tensor]:
    if is_traceable_wrapper_subclass(tensor):
        inner = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
        return [part for one in inner if isinstance(one, torch.Tensor) for part in _plain(one)]  # a mesh is named too
    return [] if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized else [tensor]


def _memory(tensor: torch.Tensor) -> tuple[int, torch.Size, tuple[int, ...]]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # one made in inference mode counts nothing


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
