"""Products that wait until several of one shape are attributed together: small ones take longer to hand over than to compute.

Shapes: B batch, N heads looked at, G generated tokens, R reference tokens, H head dim.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace

import torch

from ..grids import Grid
from .accumulate import Accumulator
from .attention import Attribution, LookedAt, attribute_together, thin_room
from .product import Buffers


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """What is looked at of one product, and where its attribution goes."""

    accumulator: Accumulator
    layer: str
    step: int
    grids: tuple[Grid, Grid | None]
    heads: Mapping[int, float]
    """Head looked at → how many of the model's heads it stands for."""
    all_heads: int
    product: LookedAt
    then: Callable[[Attribution], None] | None = None
    """Called when it is attributed."""

    @property
    def kind(self) -> Hashable:
        """Products of one kind can be attributed together."""
        q, k = self.product.q_BNGH, self.product.k_BNRH
        without = self.product.query_weight_BG is None, self.product.key_weight_BR is None
        return (
            self.grids,
            self.all_heads,
            q.shape[2:],
            k.shape[2:],
            q.dtype,
            k.dtype,
            q.device,
            self.product.scale,
            without,
        )

    def attribute_with(self, others: list[Waiting], buffers: Buffers) -> None:
        """Attributes this one and others of its kind."""
        each = [self, *others]
        found = attribute_together([one._with_rows() for one in each], buffers=buffers)
        for one, attribution in zip(each, found, strict=True):
            one.accumulator.add(one.layer, one.step, one.grids, one.heads, attribution)
            if one.then is not None:
                one.then(attribution)

    def _with_rows(self) -> LookedAt:
        q, k = self.product.q_BNGH, self.product.k_BNRH
        rows = self.accumulator.rows(
            self.layer,
            self.step,
            (self.grids[0], self.grids[1] or (1, k.shape[2])),
            self.heads,
            images=len(q),
            all_heads=self.all_heads,
            device=q.device,
        )
        return replace(self.product, rows=rows)

    def copied(self) -> Waiting:
        """The same with memory of its own: that of the model is given free, or written to."""
        q, k = (x.clone(memory_format=torch.contiguous_format) for x in (self.product.q_BNGH, self.product.k_BNRH))
        return replace(self, product=replace(self.product, q_BNGH=q, k_BNRH=k))


class Pending:
    """Lets products wait as long as there is room."""

    def __init__(self, buffers: Buffers, *, at_once: bool = False) -> None:
        """
        Args:
            at_once: attributes each product by itself as it comes.
        """
        self._buffers, self._at_once = buffers, at_once
        self._waiting: dict[Hashable, list[Waiting]] = defaultdict(list)
        self._bytes: dict[Hashable, int] = defaultdict(int)

    def add(self, one: Waiting) -> None:
        """Takes a product, and attributes it or others when there is no more room."""
        size, room = one.product.thin_bytes, thin_room(one.product.q_BNGH.device)
        if self._at_once or size >= room:
            one.attribute_with([], self._buffers)
            return
        while self._bytes and size + sum(self._bytes.values()) > room:
            self._settle(max(self._bytes, key=self._bytes.__getitem__))
        self._waiting[one.kind].append(one.copied())
        self._bytes[one.kind] += size

    def settle(self) -> None:
        """Attributes all that wait, and gives memory back."""
        for kind in list(self._waiting):
            self._settle(kind)
        self._buffers.free()

    def _settle(self, kind: Hashable) -> None:
        first, *others = self._waiting.pop(kind)
        del self._bytes[kind]
        # Sums that are made in inference mode, as pipelines run, could be added to in it only.
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(first.product.q_BNGH.device.type, enabled=False),
        ):
            first.attribute_with(others, self._buffers)
