"""Whether a patch looks at its own place in the picture that is being edited. Pure; knows rows and grids only."""

from __future__ import annotations

import numpy as np
import torch

from ..capture.maps import patch_starts, pool_map
from ..errors import UndefinedFigure
from ..grids import Grid, region_weight

_SIDE = 32  # patches, to which rows are pooled
_ROUNDING = 1e-9


def share_at_own_place(rows: np.ndarray, generated_grid: Grid, reference_grid: Grid, kept: np.ndarray) -> float:
    """Share of the kept patches whose row has its maximum within one patch of their own place; 0..1.

    A place is the centre of a patch in fractions of the picture's height and width, so that grids of any two sizes and
    shapes can be compared. "Within one patch" is at most the height and the width of the larger of the two patches from
    centre to centre (Chebyshev). So much two grids can be apart without any fault of the model's: a patch of at most 32 a
    side is one token or several, and those of 64 have their places between those of 55. On equal grids it is the patch and
    its 8 neighbours, and chance is 9 in r.

    Args:
        rows: (g, r), the G2R row of each generated patch over the reference's patches.
        generated_grid, reference_grid: in tokens, of which the patches are at most 32 a side.
        kept: (H, W) bool of the generated picture. A patch counts when at least half of it is kept.

    Raises:
        UndefinedFigure: no patch counts, or a row is not finite.
    """
    weight = region_weight(torch.from_numpy(np.ascontiguousarray(kept)), generated_grid).numpy().reshape(generated_grid)
    counts = pool_map(weight, _SIDE) >= 0.5 * pool_map(np.ones_like(weight), _SIDE)
    if not counts.any():
        raise UndefinedFigure("no patch is kept for the greater part")
    own = rows[counts.ravel()]
    if not np.isfinite(own).all():
        raise UndefinedFigure("the attention is not finite")
    wide = min(reference_grid[1], _SIDE)
    place, found = np.nonzero(counts), (own.argmax(1) // wide, own.argmax(1) % wide)
    near = [
        _near(place[axis], found[axis], _patches(generated_grid[axis]), _patches(reference_grid[axis]))
        for axis in (0, 1)
    ]
    return float((near[0] & near[1]).mean())


def _near(
    place: np.ndarray, found: np.ndarray, generated: tuple[np.ndarray, np.ndarray], reference: tuple[np.ndarray, ...]
) -> np.ndarray:
    apart = np.abs(generated[0][place] - reference[0][found])
    return apart <= np.maximum(generated[1][place], reference[1][found]) + _ROUNDING


def _patches(tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Along one side of a grid: the centre and the extent of each patch, in fractions of the side."""
    edges = np.append(patch_starts(tokens, min(tokens, _SIDE)), tokens) / tokens
    return (edges[1:] + edges[:-1]) / 2, np.diff(edges)
