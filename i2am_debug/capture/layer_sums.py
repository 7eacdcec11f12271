"""Sums over sampler steps of each layer's maps and rows. Knows no model and no picture.

Shapes: B batch, N heads, g r tokens of pooled rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ..grids import Grid


@dataclass(kw_only=True)
class LayerSums:
    """Sums of one layer over sampler steps, for a batch of B images; `per_head` ones as (B, N, tokens)."""

    generated_grid: Grid
    reference_grid: Grid | None
    heads: list[int]
    weights: tuple[float, ...]
    places: Mapping[str, slice] = field(default_factory=dict)
    """Where each kind of map lies in the last dimension of the sums below."""
    per_head: torch.Tensor | None = None
    per_step: dict[int, torch.Tensor] = field(default_factory=dict)
    """Step → (B, tokens), mean over heads; (B, N, tokens) where the heads of a step are resized one by one."""
    forwards: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    shares: dict[str, tuple[torch.Tensor, int]] = field(default_factory=dict)
    count: int = 0

    @property
    def reference_tokens(self) -> int:
        place = self.places["g2r"]
        return place.stop - place.start

    @property
    def row_grids(self) -> tuple[Grid, Grid]:
        return self.generated_grid, self.reference_grid or (1, self.reference_tokens)


@dataclass(kw_only=True)
class RowsOfLayers:
    """Sums of pooled rows. Those of heads and steps are summed over layers of equal grids at once: keeping layer x head would
    not scale."""

    of_layers: dict[str, torch.Tensor] = field(default_factory=dict)
    """Layer → sum over steps, as `RowSums.mean_Bgr`."""
    of_heads: dict[tuple[Grid, Grid], torch.Tensor] = field(default_factory=dict)
    """Small grids → as `RowSums.heads_BNgr`."""
    of_steps: dict[tuple[Grid, Grid], dict[int, torch.Tensor]] = field(default_factory=lambda: defaultdict(dict))
    """Small grids → step → as `RowSums.step_Bgr`."""
