"""95 % intervals of what is no mean, by resampling what is independent."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def resampled(
    statistic: Callable[[np.ndarray], float], count: int, resamples: int, seed: int = 0
) -> tuple[float, float, float]:
    """The statistic of all `count` independent units, and the 2.5 and 97.5 percentiles of it over bootstrap draws of them.

    Args:
        statistic: of indices into the units, (count,).
    """
    rng = np.random.default_rng(seed)
    drawn = [statistic(rng.integers(0, count, count)) for _ in range(resamples)]
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return statistic(np.arange(count)), float(low), float(high)
