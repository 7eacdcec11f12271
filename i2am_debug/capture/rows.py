"""Sums of pooled G2R rows: of a layer's mean over heads, of single heads, and of a sampler step. Knows no product.

Shapes: B batch, N heads, U units (the heads of some images one after the other), c a chunk of generated tokens, R reference
tokens, g r tokens after pooling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from ..grids import Grid
from .patches import Patches, column_patches, row_patches, taken
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

    def add(self, images: slice, own: slice, p_UcR: torch.Tensor, start: int) -> None:
        """Adds the rows of the generated tokens from number `start` on, of some images and some of the heads looked at."""
        generated, reference = self.patches
        wide, first = generated.to_wide.rows(p_UcR, start)
        self.add_wide(images, own, reference.to_wide.columns(wide), first)

    def add_wide(self, images: slice, own: slice, wide: torch.Tensor, first: int) -> None:
        """Adds rows that are sums over wide patches, from the generated patch number `first` on: (U, patches, patches)."""
        generated, reference = self.patches
        shape = images.stop - images.start, own.stop - own.start
        mean = self.product_Bgr[images, first : first + wide.shape[1]].flatten(1)[:, None]
        whole = shares(tuple(self.heads.values()), wide.device)[own]
        mean.baddbmm_(whole.expand(shape[0], 1, -1), wide.view(*shape, -1))
        small, share = reference.to_small.columns(wide), generated.small_share
        summands, first = generated.to_small.summands(small, first)
        patches = slice(first, first + summands[0].shape[1])
        if not isinstance(share, float):
            summands, share = [summands[0] * share[patches, None]], 1.0
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


def in_order(mean_Bgr: torch.Tensor, patches: tuple[Patches, Patches]) -> torch.Tensor:
    """Rows as `RowSums.mean_Bgr` holds them, with patches row by row of their grids."""
    generated, reference = patches
    return taken(taken(mean_Bgr, reference.wide_back), generated.wide_back, 1)


def _add(sums: torch.Tensor, x: torch.Tensor, share: float | torch.Tensor, weight: float = 1.0) -> None:
    if isinstance(share, float):
        sums.add_(x, alpha=share * weight)
    else:
        sums.addcmul_(x, share[:, None], value=weight)
