"""Pooling of token grids in two steps, tokens to wide patches to small ones, by sums over slices. Knows no attention.

Tokens are handed over in an order of this module's making, so that a patch's tokens are slices of memory: gathering queries
and keys in that order costs next to nothing, gathering their product does not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from ..grids import Grid, pooled_grid


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Sums of runs of `factor` equally many, or where patches are unequal of those that have one number in `patch`."""

    count: int
    """How many patches there are."""
    factor: int | None
    patch: np.ndarray
    """For each of what is summed, in its order, the number of its patch."""
    index: torch.Tensor
    """The same on the device."""

    def rows(self, x: torch.Tensor, start: int) -> tuple[torch.Tensor, int]:
        """Sums over dimension 1 of what lies there from number `start` on, and the number of the first patch.

        Where patches are equal, `start` and the length are multiples of `factor`.
        """
        if self.factor == 1:
            return x, start
        if self.factor is not None:
            return x.unflatten(1, (-1, self.factor)).sum(2), start // self.factor
        stop = start + x.shape[1]
        first, last = int(self.patch[start]), int(self.patch[stop - 1])
        out = x.new_zeros(x.shape[0], last - first + 1, x.shape[2])
        return out.index_add_(1, self.index[start:stop] - first, x), first

    def summands(self, x: torch.Tensor, start: int) -> tuple[list[torch.Tensor], int]:
        """What makes the sums of `rows` when it is added up."""
        if self.factor is None:
            total, first = self.rows(x, start)
            return [total], first
        parts = x.unflatten(1, (-1, self.factor))
        return [parts[:, :, i] for i in range(self.factor)], start // self.factor

    def columns(self, x: torch.Tensor) -> torch.Tensor:
        """Sums over the last dimension, all of it; equal patches lie `count` apart."""
        if self.factor == 1:
            return x
        if self.factor is not None:
            return x.unflatten(-1, (self.factor, self.count)).sum(-2)
        return x.new_zeros(*x.shape[:-1], self.count).index_add_(-1, self.index, x)


@dataclass(frozen=True, kw_only=True)
class Patches:
    """How the tokens of one grid are pooled."""

    order: torch.Tensor | None
    """Numbers of the tokens in the order in which they are wanted; None: their own."""
    back: torch.Tensor | None
    """For each token, its place in that order."""
    wide_back: torch.Tensor | None
    """For each wide patch, its place among the wide patches as they come out."""
    to_wide: Fold
    to_small: Fold
    wide_share: float | torch.Tensor
    """One over the number of tokens in a wide patch, or in each of them where these are unequal."""
    small_share: float | torch.Tensor

    @property
    def together(self) -> int:
        """How many consecutive tokens make whole patches, where they are equal."""
        return (self.to_wide.factor or 1) * (self.to_small.factor or 1)


def row_patches(grid: Grid, sides: tuple[int, int], device: torch.device) -> Patches:
    """For `Fold.rows`: the tokens of a patch follow each other, so that any run of tokens touches few patches."""
    return _patches(grid, sides, device, False)


def column_patches(grid: Grid, sides: tuple[int, int], device: torch.device) -> Patches:
    """For `Fold.columns`: first tokens of all patches, then all second ones, …"""
    return _patches(grid, sides, device, True)


@lru_cache(maxsize=256)
def _patches(grid: Grid, sides: tuple[int, int], device: torch.device, first_tokens_first: bool) -> Patches:
    if sides[0] % sides[1]:
        raise ValueError(
            f"rows at {sides[0]} and {sides[1]} patches a side: the first must be a multiple of the second"
        )
    wide, small = _patch_numbers(grid, sides[0]), _patch_numbers(pooled_grid(grid, sides[0]), sides[1])
    wide_order = _order(small, first_tokens_first)
    place = np.argsort(wide_order)  # of each wide patch
    order = _order(place[wide], first_tokens_first)
    to_wide, to_small = _fold(place[wide][order], device), _fold(small[wide_order], device)
    if not first_tokens_first and to_wide.factor is None and to_small.factor != 1:
        to_small = replace(to_small, factor=None)  # a run of tokens may end inside a wide patch
    return Patches(
        order=_unless_given(order, device),
        back=_unless_given(np.argsort(order), device),
        wide_back=_unless_given(place, device),
        to_wide=to_wide,
        to_small=to_small,
        wide_share=_share(wide, place, device),
        small_share=_share(small[wide], np.arange(small.max() + 1), device),
    )


def _patch_numbers(grid: Grid, side: int) -> np.ndarray:
    """For each token of `grid`, row by row, the number of its patch; patches are as equal as whole tokens allow."""
    (h, w), (ph, pw) = grid, pooled_grid(grid, side)
    y, x = np.arange(h) * ph // h, np.arange(w) * pw // w
    return (y[:, None] * pw + x).reshape(-1)


def _order(patch: np.ndarray, first_tokens_first: bool) -> np.ndarray:
    """Sorted by patch; or by number within the patch where patches are equal, and then by patch."""
    by_patch = np.argsort(patch, kind="stable")
    factor = _factor(patch)
    if not first_tokens_first:
        return by_patch
    return np.arange(len(patch)) if factor is None else by_patch.reshape(-1, factor).T.reshape(-1)


def _factor(patch: np.ndarray) -> int | None:
    """How many lie in each patch, where these are equally many."""
    counts = np.bincount(patch)
    return int(counts[0]) if (counts == counts[0]).all() else None


def _fold(patch: np.ndarray, device: torch.device) -> Fold:
    index = torch.from_numpy(np.ascontiguousarray(patch)).to(device)
    return Fold(count=int(patch.max()) + 1, factor=_factor(patch), patch=patch, index=index)


def _share(patch: np.ndarray, place: np.ndarray, device: torch.device) -> float | torch.Tensor:
    """One over the number of tokens, of each patch at its place where they differ."""
    counts = np.bincount(patch)
    if (counts == counts[0]).all():
        return 1 / float(counts[0])
    return torch.from_numpy(1 / counts[np.argsort(place)].astype(np.float32)).to(device)


def _unless_given(order: np.ndarray, device: torch.device) -> torch.Tensor | None:
    if (order == np.arange(len(order))).all():
        return None
    return torch.from_numpy(np.ascontiguousarray(order)).to(device)


def taken(x: torch.Tensor, order: torch.Tensor | None, dim: int = -1) -> torch.Tensor:
    """The tokens of `x` in that order."""
    return x if order is None else x.index_select(dim, order)
