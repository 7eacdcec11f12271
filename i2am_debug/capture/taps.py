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

from ..errors import I2AMError

_SDPA = F.scaled_dot_product_attention
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


class ModuleRun(TorchFunctionMode):
    """One run of one attention module; `observe(run, product)` is called for each of its products."""

    def __init__(self, name: str, module: nn.Module, observe: Callable[[ModuleRun, SeenProduct], None]) -> None:
        super().__init__()
        self.name, self.module, self.products = name, module, 0
        self.error: I2AMError | None = None
        self.projected: dict[str, torch.Tensor] = {}
        """What `to_q` and `to_k` gave, (B, tokens, channels)."""
        self.plain: list[torch.Tensor] = []
        """Outputs of products without a reference."""
        self.branches: list[tuple[Any, torch.Tensor]] = []
        """(layout, output) of products whose outputs are added to the plain ones."""
        self._observe = observe

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is _SDPA:
            given = _by_name(args, kwargs)
            mask = given.get("attn_mask")
            if given.get("is_causal"):
                shape = given["query"].shape[-2], given["key"].shape[-2]
                mask = torch.ones(shape, dtype=torch.bool, device=given["query"].device).tril()
            if mask is not None:
                mask = mask.view(*(1,) * (4 - mask.ndim), *mask.shape)
            seen = SeenProduct(
                query=given["query"], key=given["key"], scale=given.get("scale"), mask=mask, output=output
            )
            self._tell(seen)
        return output

    def use_projections(self) -> bool:
        """Tells of the product of `to_q` and `to_k`, if both were seen; whether they were."""
        normed = any(getattr(self.module, norm, None) is not None for norm in ("norm_q", "norm_k"))
        if normed or not {"to_q", "to_k"} <= self.projected.keys() or not hasattr(self.module, "heads"):
            return False
        q, k = (self.projected[n].unflatten(-1, (self.module.heads, -1)).transpose(1, 2) for n in ("to_q", "to_k"))
        self._tell(SeenProduct(query=q, key=k, scale=getattr(self.module, "scale", None), mask=None, output=None))
        return True

    def _tell(self, seen: SeenProduct) -> None:
        if self.error is None:
            try:
                with torch.autocast(seen.query.device.type, enabled=False):
                    self._observe(self, seen)
            except I2AMError as error:  # raised after the module is done, so that the model's own code never sees it
                self.error = error
        self.products += 1


def _by_name(args: tuple, kwargs: dict) -> dict[str, Any]:
    """The arguments of a call of `scaled_dot_product_attention` (a builtin without a signature)."""
    return {**dict(zip(_SDPA_PARAMETERS, args, strict=False)), **kwargs}
