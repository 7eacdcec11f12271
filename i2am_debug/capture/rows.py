"""Sums of pooled G2R rows: of a layer's mean over heads, of single heads, and of a sampler step. Knows no product.

Shapes: B batch, N heads, U units (the heads of some images one after the other), c a chunk of generated tokens, R reference
tokens, g r tokens after pooling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from ..grids import Grid
from .patches import Patches, column_patches, row_patches
from .product import shares

SIDE, HEAD_SIDE = 32, 16  # patches a side, at most: of a layer's rows, and of those of heads and steps


def row_pooling(generated: Grid, reference: Grid, device: torch.device) -> tuple[Patches, Patches]:
    """How rows over these grids are pooled."""
    sides = SIDE, HEAD_SIDE
    return row_patches(generated, sides, device), column_patches(reference, sides, device)


@dataclass(frozen=True, kw_only=True)
class RowSums:
    """Where the rows of one product are added; a row is one generated patch's distribution over reference patches, sum 1."""

    patches: tuple[Patches, Patches]
    """Of the generated and of the reference tokens."""
    heads: Mapping[int, float]
    """Head looked at → how many of the model's heads it stands for."""
    mean_Bgr: torch.Tensor
    """Mean over heads, weighted; patches in the order in which `patches` makes them."""
    heads_BNgr: torch.Tensor
    """Of each of the model's heads, times its weight, on small grids."""
    step_Bgr: torch.Tensor
    """Weighted sum over heads, on small grids."""
    product_Bgr: torch.Tensor
    """Zeros between products: this product's mean over heads before it is divided by the number of tokens."""

    def add_mean(self, images: slice, own: slice, wide: torch.Tensor, first: int) -> None:
        """Adds to the mean over heads rows that are sums over wide patches, from the generated patch number `first` on, of some
        images and some of the heads looked at: (U, patches, patches)."""
        shape = images.stop - images.start, own.stop - own.start
        mean = self.product_Bgr[images, first : first + wide.shape[1]].flatten(1)[:, None]
        whole = shares(tuple(self.heads.values()), wide.device)[own]
        mean.baddbmm_(whole.expand(shape[0], 1, -1), wide.view(*shape, -1))

    def add_heads(self, images: slice, own: slice, summands: Sequence[torch.Tensor], first: int, share: float) -> None:
        """Adds to each head's rows those that are sums over small patches, in summands: each (U, patches, patches)."""
        shape = images.stop - images.start, own.stop - own.start
        patches = slice(first, first + summands[0].shape[1])
        for these, of_model, weight in self._runs(own):
            sums = self.heads_BNgr[images, of_model, patches]
            for summand in summands:
                sums.add_(summand.unflatten(0, shape)[:, these], alpha=weight * share)

    def _runs(self, own: slice) -> Iterator[tuple[slice, slice, float]]:
        """Runs of consecutive heads of one weight: of the given ones, of the model's, and the weight."""
        heads = list(self.heads.items())[own]
        start = 0
        for i, (head, weight) in enumerate(heads, 1):
            if i == len(heads) or heads[i] != (head + 1, weight):
                yield slice(start, i), slice(head + 1 - (i - start), head + 1), weight
                start = i

    def finish(self) -> None:
        """To be called when all of the product's rows are added."""
        generated, reference = self.patches
        _add(self.mean_Bgr, self.product_Bgr, generated.wide_share)
        small = reference.to_small.columns(generated.to_small.rows(self.product_Bgr, 0)[0])
        _add(self.step_Bgr, small, generated.small_share, sum(self.heads.values()))
        self.product_Bgr.zero_()


class RowsTogether:
    """The rows of several products that are pooled alike, whose units follow each other."""

    def __init__(self, each: Sequence[tuple[int, RowSums]]) -> None:
        """
        Args:
            each: how many units a product has, and where its rows are added.
        """
        self.patches = each[0][1].patches
        ends = list(accumulate(units for units, _ in each))
        self._each = [(end - units, end, rows) for (units, rows), end in zip(each, ends, strict=True)]
        self._open: RowSums | None = None  # to which rows are being added

    def add(self, units: slice, p_UcR: torch.Tensor, start: int) -> None:
        """Adds the rows of the generated tokens from number `start` on; units in order, all tokens of one before the next."""
        generated, reference = self.patches
        wide, first = generated.to_wide.rows(p_UcR, start)
        self.add_wide(units, reference.to_wide.columns(wide), first)

    def add_wide(self, units: slice, wide: torch.Tensor, first: int) -> None:
        """Adds rows that are sums over wide patches, from the generated patch number `first` on: (U, patches, patches)."""
        generated, reference = self.patches
        small, share = reference.to_small.columns(wide), generated.small_share
        summands, first_small = generated.to_small.summands(small, first)
        if not isinstance(share, float):
            summands = [summands[0] * share[first_small : first_small + summands[0].shape[1], None]]
            share = 1.0
        for begin, end, rows in self._each:
            if begin >= units.stop or end <= units.start:
                continue
            if rows is not self._open:
                self.finish()
                self._open = rows
            own_units = slice(max(begin, units.start) - begin, min(end, units.stop) - begin)
            for images, own in _rectangles(own_units, len(rows.heads)):
                at = begin + images.start * len(rows.heads) + own.start - units.start
                u = slice(at, at + (images.stop - images.start) * (own.stop - own.start))
                rows.add_mean(images, own, wide[u], first)
                rows.add_heads(images, own, [summand[u] for summand in summands], first_small, share)

    def finish(self) -> None:
        """To be called when all rows are added."""
        if self._open is not None:
            self._open.finish()
            self._open = None


def _rectangles(units: slice, heads: int) -> Iterator[tuple[slice, slice]]:
    """A run of units as images times heads."""
    start = units.start
    while start < units.stop:
        image, head = divmod(start, heads)
        whole = (units.stop - start) // heads if head == 0 else 0
        if whole:
            yield slice(image, image + whole), slice(0, heads)
            start += whole * heads
        else:
            last = min(heads, head + units.stop - start)
            yield slice(image, image + 1), slice(head, last)
            start += last - head


def in_order(mean_gr: torch.Tensor, patches: tuple[Patches, Patches]) -> torch.Tensor:
    """Rows as `RowSums.mean_Bgr` holds them, (…, g, r) on the CPU, with patches row by row of their grids.

    By numpy, which gathers columns five times as fast as torch.
    """
    rows = mean_gr.numpy()
    for axis, own in zip((-2, -1), patches, strict=True):
        if own.wide_back is not None:
            rows = rows.take(own.wide_back.numpy(), axis=axis)
    return torch.from_numpy(rows)


def _add(sums: torch.Tensor, x: torch.Tensor, share: float | torch.Tensor, weight: float = 1.0) -> None:
    if isinstance(share, float):
        sums.add_(x, alpha=share * weight)
    else:
        sums.addcmul_(x, share[:, None], value=weight)
