"""Sees the attention products inside one attention module while it runs. Does not know what the tokens mean.

A torch function mode sees each call of `scaled_dot_product_attention` with the very tensors the model uses; nothing is
replaced, so outputs stay bit-identical. A module that never makes such a call (attention slicing, xformers, einsum with a
softmax) may be seen through what its `to_q` and `to_k` give.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import I2AMError
from ..families.family import Layout

_SDPA = F.scaled_dot_product_attention
_FUSED = tuple(
    getattr(torch.ops.aten, name).default
    for name in (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    )
    if hasattr(torch.ops.aten, name)
)
_SDPA_PARAMETERS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


@dataclass(frozen=True, kw_only=True)
class SeenProduct:
    """The tensors of one product: query (B, N, Q, H), key (B, M, K, H) with M heads that N is a multiple of."""

    query: torch.Tensor
    key: torch.Tensor
    scale: float | None
    """Factor of the logits; None: H^-0.5."""
    mask: torch.Tensor | None
    """The model's own, broadcastable to (B, N, Q, K): True = seen, or added to the logits."""
    output: torch.Tensor | None
    """(B, N, Q, H) where it was seen."""
    log_normaliser: torch.Tensor | None = None
    """Logarithm of each row's sum of exponentials over all keys, (B, N, Q): of joint products, where the kernel gave it."""


class ModuleRun(TorchFunctionMode):
    """One run of one attention module.

    For each of its products `layout(run, query tokens, key tokens)` is asked where the reference sits, and
    `observe(run, product, layout)` is called.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        layout: Callable[[ModuleRun, int, int], Layout | None],
        observe: Callable[[ModuleRun, SeenProduct, Layout | None], None],
    ) -> None:
        super().__init__()
        self.name, self.module, self.products = name, module, 0
        self.error: I2AMError | None = None
        self.projected: dict[str, torch.Tensor] = {}
        """What `to_q` and `to_k` gave, (B, tokens, channels)."""
        self.plain: list[torch.Tensor] = []
        """Outputs of products without a reference."""
        self.branches: list[tuple[Any, torch.Tensor]] = []
        """(layout, output) of products whose outputs are added to the plain ones."""
        self._layout, self._observe = layout, observe

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not _SDPA:
            return func(*args, **kwargs)
        given = _by_name(args, kwargs)
        layout = self._guarded(self._layout, self, given["query"].shape[-2], given["key"].shape[-2])
        normaliser = None
        if layout is not None and layout.joint:
            with _Normaliser() as normaliser:
                output = func(*args, **kwargs)
        else:
            output = func(*args, **kwargs)
        mask = given.get("attn_mask")
        if given.get("is_causal"):
            shape = given["query"].shape[-2], given["key"].shape[-2]
            mask = torch.ones(shape, dtype=torch.bool, device=given["query"].device).tril()
        if mask is not None:
            mask = mask.view(*(1,) * (4 - mask.ndim), *mask.shape)
        seen = SeenProduct(
            query=given["query"],
            key=given["key"],
            scale=given.get("scale"),
            mask=mask,
            output=output,
            log_normaliser=normaliser and normaliser.found,
        )
        self._tell(seen, layout)
        return output

    def use_projections(self) -> bool:
        """Tells of the product of `to_q` and `to_k`, if both were seen; whether they were."""
        normed = any(getattr(self.module, norm, None) is not None for norm in ("norm_q", "norm_k"))
        if normed or not {"to_q", "to_k"} <= self.projected.keys() or not hasattr(self.module, "heads"):
            return False
        q, k = (self.projected[n].unflatten(-1, (self.module.heads, -1)).transpose(1, 2) for n in ("to_q", "to_k"))
        seen = SeenProduct(query=q, key=k, scale=getattr(self.module, "scale", None), mask=None, output=None)
        self._tell(seen, self._guarded(self._layout, self, q.shape[2], k.shape[2]))
        return True

    def _tell(self, seen: SeenProduct, layout: Layout | None) -> None:
        # What is made in inference mode could not be added to outside of it, where what waits may be attributed.
        autocast = torch.autocast(seen.query.device.type, enabled=False)
        with torch.inference_mode(False), torch.no_grad(), autocast:
            self._guarded(self._observe, self, seen, layout)
        self.products += 1

    def _guarded(self, work: Callable[..., Any], *args: Any) -> Any:
        """What it gives, or None after an error: that is raised after the module is done, where the model's own code never
        sees it."""
        if self.error is None:
            try:
                return work(*args)
            except I2AMError as error:
                self.error = error
        return None


class _Normaliser(TorchDispatchMode):
    """Reads off the logarithmic normaliser that torch's fused attention kernels give beside their output."""

    found: torch.Tensor | None = None
    """(B, N, Q); None where another kernel ran, or this one was told that nobody needs it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in _FUSED:
            self.found = _of_queries(output[1], args[0].shape[2])
        return output


def _of_queries(given: torch.Tensor | None, queries: int) -> torch.Tensor | None:
    """A kernel's normalisers as (B, N, Q); CUDA's give none, or an empty one, where no gradient will ask for it."""
    if given is None:
        return None
    given = given.flatten(2, -1) if given.ndim == 4 else given  # cuDNN's is (B, N, Q, 1)
    return given[:, :, :queries].detach() if given.ndim == 3 and given.shape[2] >= queries else None  # some are padded


def normaliser_of(
    query_BNQH: torch.Tensor, key_BNKH: torch.Tensor, scale: float | None, mask: torch.Tensor | None
) -> torch.Tensor | None:
    """Logarithm of each row's sum of exponentials over all keys, (B, N, Q), asked of torch's fused attention kernel as if
    for a gradient; None where it chooses another one, as for some masks.

    Args:
        mask: the model's own, broadcastable to (B, N, Q, K): True = seen, or added to the logits.
    """
    with torch.inference_mode(False), torch.enable_grad(), _Normaliser() as normaliser:
        q, k = (x.clone() if x.is_inference() else x.detach() for x in (query_BNQH, key_BNKH))
        _SDPA(q.requires_grad_(), k, k, attn_mask=mask, scale=scale)
    return normaliser.found


def _by_name(args: tuple, kwargs: dict) -> dict[str, Any]:
    """The arguments of a call of `scaled_dot_product_attention` (a builtin without a signature)."""
    return {**dict(zip(_SDPA_PARAMETERS, args, strict=False)), **kwargs}
