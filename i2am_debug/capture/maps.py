"""The maps of one image at the paper's levels: what a person or a score reads. Knows no model and no picture.

All numpy arrays, every map normalised to sum 1, grids as (height, width) of tokens.

Shapes: S looked-at sampler steps, T time groups, N heads, h w tokens of a map, g r tokens of pooled rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

import numpy as np

from ..errors import UndefinedFigure
from ..grids import Grid

ONE_TOKEN = "one reference token"
NO_GRID = "the reference tokens have no grid"
NO_OBJECT = "no reference mask"

_UNIFIED_SIDE = 64  # tokens; of a unified map as it is stored and compared


class Direction(str, Enum):
    """R2G: which regions of the generated image the reference influences. G2R: which parts of the reference contribute."""

    R2G = "r2g"
    G2R = "g2r"


@dataclass(frozen=True, kw_only=True)
class DirectionMaps:
    """One direction at every level. Maps are float32 and sum to 1."""

    unified: np.ndarray
    """(h, w), on the finest grid captured: mean over steps, layers and heads (ULAM)."""
    by_time: np.ndarray
    """(T, h, w): mean over the looked-at steps of each group (TLAM); NaN where a group holds none."""
    by_head: np.ndarray
    """(N, h, w): mean over steps and over the layers that have such a head (HLAM); NaN where none was looked at."""
    by_layer: dict[str, np.ndarray]
    """Layer → (h, w) of its own grid: mean over steps and heads (LLAM)."""
    by_layer_head: dict[str, np.ndarray]
    """Layer → (n, h, w) of the n heads looked at in it (`AttributionMaps.heads`), pooled to at most 16 tokens a side; of R2G
    and G2R themselves, not of their variants."""
    by_step: np.ndarray
    """(S, h, w): mean over layers and heads at each looked-at sampler step."""
    by_layer_step: dict[str, np.ndarray] = field(default_factory=dict)
    """Layer → (S, h, w) of its own grid at each of a few looked-at steps, for its standard error; of G2R of the region."""


@dataclass(frozen=True, kw_only=True)
class SpecificRows:
    """G2R rows of pooled generated patches (SRAM), each row a distribution over the reference's patches."""

    generated_grid: Grid
    reference_grid: Grid
    unified: np.ndarray
    """(g, r), on the finest grids, at most 32x32."""
    by_layer: Mapping[str, tuple[Grid, np.ndarray]]
    """Layer → its generated grid and (g, r), at most 32x32; made at each look (`LayerRows`)."""
    small_grids: tuple[Grid, Grid]
    by_time: np.ndarray
    """(T, g, r) on `small_grids`, at most 16x16."""
    by_head: np.ndarray
    """(N, g, r) on `small_grids`."""


@dataclass(frozen=True, kw_only=True)
class AttributionMaps:
    """The maps of one image."""

    r2g: DirectionMaps
    r2g_centred: DirectionMaps
    rows: SpecificRows
    information: dict[str, np.ndarray]
    """Layer → (N,) attention information of each head in bits, mean over steps; NaN for heads not looked at."""
    information_by_step: dict[str, np.ndarray]
    """Layer → (S,), weighted mean over heads."""
    heads: dict[str, tuple[int, ...]]
    """Layer → numbers of the heads looked at."""
    steps: tuple[int, ...]
    """The sampler steps looked at."""
    total_steps: int
    reference_mass: dict[str, float]
    """Joint attention: layer → share of the generated tokens' own attention, over all keys, on this reference; mean over
    steps and (weighted) heads. Empty elsewhere: 1 by construction in separate cross-attention."""
    reference_mass_inside: dict[str, float] = field(default_factory=dict)
    """The same over the generated tokens inside the trace's `mask` only; empty without one."""
    reference_mass_outside: dict[str, float] = field(default_factory=dict)
    """The same over those outside of it."""
    branch_share: dict[str, float]
    """Decoupled cross-attention: layer → norm of this reference's branch over that of all branches together."""
    _g2r: DirectionMaps | None = field(repr=False)
    _g2r_region: DirectionMaps | None = field(repr=False)
    _r2g_object_mass: DirectionMaps | None = field(repr=False)
    every_head: Mapping[str, Mapping[str, np.ndarray]] | None = field(default=None, repr=False)
    """What a pilot asks for: kind of map → layer → (N, h, w) of the heads looked at, each by itself, mean over steps."""
    undefined_g2r: str | None = None
    """Why G2R does not exist here, or None."""
    undefined_place: str | None = None
    """Why no mask can be laid over G2R: it does not exist, or its tokens have no grid and are one row, (1, n)."""
    notes: tuple[str, ...] = ()
    """What was seen in another way than the cheapest, and why."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers looked at, in the model's order."""
        return tuple(self.r2g.by_layer)

    @cached_property
    def layer_information(self) -> dict[str, float]:
        """Layer → attention information in bits, mean over steps and (weighted) heads."""
        return {layer: float(bits.mean()) for layer, bits in self.information_by_step.items()}

    @property
    def g2r(self) -> DirectionMaps:
        """Which parts of the reference contribute to the generated image.

        Raises:
            UndefinedFigure: there is one reference token.
        """
        if self._g2r is None:
            raise UndefinedFigure(self.undefined_g2r or ONE_TOKEN)
        return self._g2r

    @property
    def g2r_region(self) -> DirectionMaps:
        """G2R over the generated tokens inside the trace's `mask` only; equals `g2r` without one."""
        if self._g2r_region is None:
            raise UndefinedFigure(self.undefined_g2r or ONE_TOKEN)
        return self._g2r_region

    @property
    def r2g_object_mass(self) -> DirectionMaps:
        """R2G as each generated token's share of attention on the reference object.

        Raises:
            UndefinedFigure: the trace had no `reference_mask`.
        """
        if self._r2g_object_mass is None:
            raise UndefinedFigure(self.undefined_place or NO_OBJECT)
        return self._r2g_object_mass

    def specific(self, row: int, col: int, *, layer: str | None = None) -> np.ndarray:
        """What the generated patch at (row, col) of `rows.generated_grid` draws from the reference (SRAM): (h, w), sum 1.

        With `layer`, the patch of that layer's own grid (`rows.by_layer[layer][0]`).

        Raises:
            UndefinedFigure: there is one reference token.
            IndexError: the patch lies outside the grid.
            KeyError: no such layer was looked at.
        """
        if self.undefined_g2r is not None:
            raise UndefinedFigure(self.undefined_g2r)
        if layer is not None and layer not in self.rows.by_layer:
            raise KeyError(f"layer {layer!r} was not looked at; these were: {', '.join(self.rows.by_layer)}")
        grid, rows = (self.rows.generated_grid, self.rows.unified) if layer is None else self.rows.by_layer[layer]
        if not (0 <= row < grid[0] and 0 <= col < grid[1]):
            raise IndexError(f"patch ({row}, {col}) lies outside the {grid[0]}x{grid[1]} grid of generated patches")
        return rows[row * grid[1] + col].reshape(self.rows.reference_grid)


def unified_form(found: np.ndarray) -> np.ndarray:
    """A unified map as it is stored and compared: float32, sum 1, at most 64 tokens a side."""
    return pool_map(found, _UNIFIED_SIDE).astype(np.float32)


def pool_map(found: np.ndarray, limit: int) -> np.ndarray:
    """(…, h, w) maps on at most `limit` tokens a side; sums are kept."""
    for axis in (-2, -1):
        if found.shape[axis] > limit:
            found = np.add.reduceat(found, patch_starts(found.shape[axis], limit), axis=axis)
    return found


def patch_starts(length: int, count: int) -> np.ndarray:
    """Where each of `count` patches of `length` tokens begins."""
    return -(-np.arange(count) * length // count)
