"""Withholds the reference from some generated tokens: what deletes a token of an R2G map, which is one that looks.

In every product that holds reference keys, a token from which it is withheld reads a blank reference in its place
(cross-attention, whose keys are then [own · blank]), or no reference (a joint sequence [text · generated · reference]).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from .forced import Forced


def predict_withheld(forced: Forced, index: int, withheld_nG: torch.Tensor, share: float) -> torch.Tensor:
    """(n, G, C) the predicted pictures of pair `index`, with its reference withheld from some tokens (n, G) of the picture."""
    count, (own, blank) = len(withheld_nG), (forced.own[index], forced.blank[index])
    joint = forced.family.name == "flux_kontext"
    tokens = own if joint else torch.cat([own, blank])
    with _Withheld(withheld_nG.view(count, *forced.grid), len(own), joint):
        return forced.predict([index] * count, tokens.expand(count, -1, -1), share)


class _Withheld(TorchFunctionMode):
    def __init__(self, withheld_nhw: torch.Tensor, references: int, joint: bool) -> None:
        super().__init__()
        self._withheld, self._references, self._joint = withheld_nhw.float(), references, joint

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key = (kwargs.get(name, args[i] if i < len(args) else None) for i, name in enumerate(("query", "key")))
        queries, keys = query.shape[-2], key.shape[-2]
        if self._joint or keys == 2 * self._references:
            assert kwargs.get("attn_mask") is None
            kwargs["attn_mask"] = self._in_joint(queries) if self._joint else self._of_two(queries)
        return func(*args, **kwargs)

    def _of_two(self, queries: int) -> torch.Tensor:
        """(n, 1, Q, 2R): logarithms of how much each query reads of its own and of the blank reference; on a coarser grid a
        query stands for several tokens."""
        side = math.isqrt(queries)
        of_each = F.adaptive_avg_pool2d(self._withheld[:, None], (side, side)).flatten(1)
        of_each = torch.stack([(1 - of_each).log(), of_each.log()], -1)
        return of_each.repeat_interleave(self._references, -1)[:, None]

    def _in_joint(self, queries: int) -> torch.Tensor:
        """(n, 1, Q, Q): the reference's keys, the last ones, are hidden from the queries before them that are picked."""
        picked = self._withheld.flatten(1)
        last = queries - self._references
        mask = torch.zeros(len(picked), 1, queries, queries)
        hidden = torch.where(picked > 0, -torch.inf, 0.0)[:, None, :, None]
        mask[:, :, last - picked.shape[1] : last, last:] = hidden
        return mask
