"""Grids of tokens, and how much of a region lies on each of them. Knows no attention; imports torch when it must."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Grid = tuple[int, int]
"""(height, width) in tokens."""


def pooled_grid(grid: Grid, side: int) -> Grid:
    """The grid with at most `side` patches on either side that `grid` is reduced to."""
    return min(grid[0], side), min(grid[1], side)


def region_weight(mask: torch.Tensor, grid: Grid) -> torch.Tensor:
    """How much of each token lies inside the mask (..., H, W) in [0, 1]: (..., h·w), its mean over the token's pixels."""
    import torch.nn.functional as F  # here, since stored maps are read where there is no torch

    flat = mask.float().reshape(-1, 1, *mask.shape[-2:])
    return F.adaptive_avg_pool2d(flat, grid).reshape(*mask.shape[:-2], grid[0] * grid[1])


@lru_cache(maxsize=64)
def resizing(length: int, wanted: int, mode: str, *, double: bool = False) -> torch.Tensor:
    """What torch's interpolation (`align_corners=False`) does to one side, as a matrix (wanted, length): two products with such
    matrices take a fraction of the time."""
    import torch
    import torch.nn.functional as F

    one_side = torch.eye(length, dtype=torch.float64 if double else torch.float32).view(1, length, length, 1)
    return F.interpolate(one_side, size=(wanted, 1), mode=mode, align_corners=False)[0, :, :, 0].T.contiguous()
