"""Parameters, buffers and gradients: other data is put out again, what was written to is found by its bytes."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from .checksums import Checksums
from .kept_tensor import KeptTensor

_LARGEST_COPY = 2**20  # bytes of a buffer that is kept as a copy: counters and tables, which a forward may write to


@dataclass(frozen=True, kw_only=True)
class TensorChanges:
    """What happened inside to the tensors that are being trained, by name."""

    count: int
    """How many there are."""
    moved: dict[str, str]
    """Other data came and was put out again, exactly: name → how it differed."""
    restored: list[str]
    """Buffers that were written to, and written back from a copy."""
    written: list[str]
    """Written to, which can't be undone."""
    uncounted: bool
    """Whether all of `written` was written past the version counter, as `.data.copy_` does."""


class KeptTensors:
    """The tensors of modules as they are now; each once, by the first name it is met under."""

    def __init__(self) -> None:
        self._trained: list[KeptTensor] = []
        self._others: list[KeptTensor] = []
        self._copies: dict[str, torch.Tensor] = {}
        self._gradients: list[tuple[nn.Parameter, torch.Tensor | None]] = []
        self._requires_grad: list[tuple[nn.Parameter, bool]] = []
        self._sums: list[tuple[list[KeptTensor], Checksums]] = []
        self._moved: dict[str, str] = {}
        self._seen: set[int] = set()

    def remember(self, named: Iterable[tuple[str, torch.Tensor]], *, trained: bool) -> None:
        """Also these. The bytes of trained ones are summed, which takes as long as reading them."""
        kept: list[KeptTensor] = []
        for name, tensor in named:
            if id(tensor) in self._seen:
                continue
            self._seen.add(id(tensor))
            if isinstance(tensor, nn.Parameter):
                self._requires_grad.append((tensor, tensor.requires_grad))
            if hasattr(tensor, "ds_id"):
                continue  # ZeRO-3 gathers and frees the data of its parameters as it goes
            kept.append(KeptTensor(name, tensor))
            if trained and isinstance(tensor, nn.Parameter):
                self._gradients.append((tensor, tensor.grad))
                if tensor.grad is not None:
                    kept.append(KeptTensor(f"{name}.grad", tensor.grad))
            elif trained and tensor.nbytes <= _LARGEST_COPY and kept[-1].plain:
                self._copies[name] = tensor.detach().clone()
        (self._trained if trained else self._others).extend(kept)
        if trained:
            parts = [(one, part) for one in kept for part in one.plain]
            self._sums.append(([one for one, _ in parts], Checksums([part for _, part in parts])))

    def notice(self, named: Iterable[tuple[str, torch.Tensor]]) -> None:
        """The trained modules' tensors of now: what is not known was put in another's place, or is new."""
        for name, tensor in named:
            if id(tensor) not in self._seen:
                self._moved[name] = "another parameter"

    def put_back(self) -> None:
        """Data, gradients and `requires_grad`; one that fails does not keep the others from being put back."""
        with ExitStack() as stack:
            for parameter, requires_grad in self._requires_grad:
                stack.callback(_set_requires_grad, parameter, requires_grad)
            for parameter, gradient in self._gradients:
                stack.callback(_set_gradient, parameter, gradient)
            for one in self._others:
                stack.callback(self._put_back_one, one, is_told=False)
            for one in reversed(self._trained):
                stack.callback(self._put_back_one, one, is_told=True)

    def changes(self) -> TensorChanges:
        """What happened to the trained ones; after `put_back`. Buffers that there is a copy of are written back here."""
        written = [one for kept, sums in self._sums for one in _unique(kept[number] for number in sums.changed())]
        written += [one for one in self._trained if not one.plain and one.counted]
        restored = [one for one in written if one.name in self._copies]
        for one in restored:
            one.data.copy_(self._copies[one.name])
        lost = [one for one in self._trained if one in written and one not in restored]
        return TensorChanges(
            count=len(self._trained),
            moved=self._moved,
            restored=[one.name for one in restored],
            written=[one.name for one in lost],
            uncounted=not any(one.counted for one in lost),
        )

    def written_elsewhere(self) -> list[str]:
        """Parameters that are watched but not trained, and whose version counter moved."""
        return [one.name for one in self._others if isinstance(one.tensor, nn.Parameter) and one.counted]

    def _put_back_one(self, one: KeptTensor, *, is_told: bool) -> None:
        moved = one.moved()
        if moved:
            if is_told:
                self._moved[one.name] = moved
            one.put_back()


def _unique(kept: Iterable[KeptTensor]) -> list[KeptTensor]:
    return list(dict.fromkeys(kept))


def _set_gradient(parameter: nn.Parameter, gradient: torch.Tensor | None) -> None:
    if parameter.grad is not gradient:
        parameter.grad = gradient


def _set_requires_grad(parameter: nn.Parameter, requires_grad: bool) -> None:
    if parameter.requires_grad != requires_grad:
        parameter.requires_grad_(requires_grad)
