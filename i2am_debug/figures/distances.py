"""How far two maps are from each other. No torch: `check` measures it too."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import UndefinedFigure


def js_distance(a: Any, b: Any) -> float:
    """Square root of the Jensen–Shannon divergence (base 2) of two maps normalised to sum 1; 0..1.

    Args:
        a, b: (h, w), arrays or tensors, at least 0.

    Raises:
        UndefinedFigure: the maps differ in size, are not finite, have negative values or no mass.
        ValueError: not of shape (h, w).
    """
    p, q = distribution(a), distribution(b)
    if p.shape != q.shape:
        (ph, pw), (qh, qw) = p.shape, q.shape
        raise UndefinedFigure(f"maps of {ph}x{pw} and {qh}x{qw} tokens")
    from scipy.spatial.distance import jensenshannon  # here, since `check` seldom needs it, and it takes its time

    return float(jensenshannon(p.ravel(), q.ravel(), base=2))


def distribution(map: Any) -> np.ndarray:
    """The map, (h, w), as float64 with sum 1.

    Raises:
        UndefinedFigure, ValueError: as `js_distance`.
    """
    m = np.asarray(map.detach().cpu() if hasattr(map, "detach") else map, dtype=np.float64)
    if m.ndim != 2 or m.size == 0:
        raise ValueError(f"a map must have shape (h, w), got {m.shape}")
    if not np.isfinite(m).all():
        raise UndefinedFigure("the map is not finite")
    if not (m.min() >= 0 and m.sum() > 0):
        raise UndefinedFigure("the map has no mass" if m.min() >= 0 else "the map has negative values")
    return m / m.sum()
