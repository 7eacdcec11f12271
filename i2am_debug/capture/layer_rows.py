"""Rows of each layer as they were summed, made when they are asked for. Knows no model and no picture.

Shapes: g r tokens of pooled rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..grids import Grid, pooled_grid, resizing
from .rows import SIDE, in_order, row_pooling


@dataclass(frozen=True)
class HeldRows:
    """Sums of rows on the CPU, (g, r), as `RowSums.mean_Bgr` holds them of one image."""

    sums: torch.Tensor
    token_grids: tuple[Grid, Grid]

    @property
    def grids(self) -> tuple[Grid, Grid]:
        """Of the generated and of the reference's patches."""
        return pooled_grid(self.token_grids[0], SIDE), pooled_grid(self.token_grids[1], SIDE)

    @property
    def in_order(self) -> torch.Tensor:
        """(g, r) float32, patches row by row of their grids."""
        return in_order(self.sums, row_pooling(*self.token_grids, torch.device("cpu"))).float()


class LayerRows(Mapping[str, tuple[Grid, np.ndarray]]):
    """Layer → its generated grid and (g, r) float32 rows of sum 1, over the finest reference grid; made at each look.

    All at once they would take 4 MiB a layer of a large model and pair; held they take half, and less of its small layers.
    """

    def __init__(self, held: Mapping[str, HeldRows]) -> None:
        self.held = dict(held)
        self.finest = finest([one.grids for one in held.values()])
        """The finest generated and the finest reference grid of all layers."""

    @property
    def grids(self) -> dict[str, Grid]:
        """Layer → its generated grid, without making its rows."""
        return {layer: one.grids[0] for layer, one in self.held.items()}

    def __getitem__(self, layer: str) -> tuple[Grid, np.ndarray]:
        own = self.held[layer]
        generated = own.grids[0]
        on_reference = resize_rows(own.in_order[None], own.grids, (generated, self.finest[1]))[0]
        return generated, sum_1(on_reference, dim=-1).numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)


def finest(pairs: list[tuple[Grid, Grid]]) -> tuple[Grid, Grid]:
    """The finest generated and the finest reference grid."""
    return max((p[0] for p in pairs), key=math.prod), max((p[1] for p in pairs), key=math.prod)


def resize_rows(rows: torch.Tensor, own: tuple[Grid, Grid], wanted: tuple[Grid, Grid]) -> torch.Tensor:
    """(n, g, r) rows between grids; bilinear, so that a row stays a distribution without ringing."""
    if own == wanted:
        return rows
    ((gh, gw), (rh, rw)), (to_generated, to_reference) = own, wanted
    x, count = rows, len(rows)
    if own[1] != to_reference:
        x = x.reshape(-1, rh, rw)
        x = resizing(rh, to_reference[0], "bilinear") @ x @ resizing(rw, to_reference[1], "bilinear").T
    if own[0] != to_generated:
        x = resizing(gh, to_generated[0], "bilinear") @ x.reshape(count, gh, -1)
        x = resizing(gw, to_generated[1], "bilinear") @ x.view(count * to_generated[0], gw, -1)
    x = x.reshape(count, math.prod(to_generated), -1)
    if own[1] == to_reference:  # means of rows, whose sums they have
        return x
    return sum_1(x, dim=-1).mul_(rows.sum(-1).mean(-1)[:, None, None])


def sum_1(maps: torch.Tensor, dim: Any = (-2, -1)) -> torch.Tensor:
    """Divided by their sums, 0 where these are."""
    return maps / maps.sum(dim, keepdim=True).clamp_min(1e-30)
