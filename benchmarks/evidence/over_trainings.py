"""Rank correlations of a figure with quality over trainings × checkpoints, with intervals that take each training whole.

Shape suffixes: T trainings, C checkpoints of each.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import permutation_test, rankdata

from i2am_debug.figures.values import Undefined

from .intervals import resampled

Interval = tuple[float, float, float]
_FEWEST = 3  # ranks of two say nothing


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Of two columns of equal length; NaN where one is all the same."""
    return _pearson(rankdata(a), rankdata(b))


def of_all(figure_TC: np.ndarray, quality_TC: np.ndarray) -> float:
    """Over every checkpoint of every training."""
    return spearman(figure_TC.ravel(), quality_TC.ravel())


def within_trainings(figure_TC: np.ndarray, quality_TC: np.ndarray) -> float:
    """Over the checkpoints of one training, mean over trainings."""
    figure, quality = (ranks - ranks.mean(1, keepdims=True) for ranks in _ranks(figure_TC, quality_TC, axis=1))
    with np.errstate(invalid="ignore"):
        each = (figure * quality).sum(1) / np.sqrt((figure**2).sum(1) * (quality**2).sum(1))
    return float(each.mean())


def at_equal_steps(figure_TC: np.ndarray, quality_TC: np.ndarray) -> float:
    """Over trainings at the same step, all steps together: each checkpoint is ranked among those of its step alone, so that
    what merely grows with the number of steps gives 0."""
    figure, quality = (ranks - ranks.mean(0) for ranks in _ranks(figure_TC, quality_TC, axis=0))
    return _pearson(figure.ravel(), quality.ravel())


def at_the_end(figure_TC: np.ndarray, quality_TC: np.ndarray) -> float:
    """Over the last checkpoints of all trainings."""
    return spearman(figure_TC[:, -1], quality_TC[:, -1])


def correlation(
    way: Callable[[np.ndarray, np.ndarray], float], figure_TC: np.ndarray, quality_TC: np.ndarray, resamples: int
) -> Interval | Undefined:
    """One of the ways above; the interval is over draws of whole trainings, with replacement."""
    trainings, checkpoints = figure_TC.shape
    needed = checkpoints if way is within_trainings else figure_TC.size if way is of_all else trainings
    if needed < _FEWEST:
        return Undefined(f"of {needed} only")
    found = way(figure_TC, quality_TC)
    if not np.isfinite(found):
        return Undefined("the same everywhere")
    return resampled(lambda chosen: way(figure_TC[chosen], quality_TC[chosen]), trainings, resamples)


def share_by_chance(
    way: Callable[[np.ndarray, np.ndarray], float], figure_TC: np.ndarray, quality_TC: np.ndarray, resamples: int
) -> float | Undefined:
    """Of all ways to give the trainings each other's figures, whole, the share that go with quality as much as their own or
    more: an exact one-sided test; of drawn ways where there are more than `resamples`."""
    if len(figure_TC) < _FEWEST or not np.isfinite(way(figure_TC, quality_TC)):
        return Undefined("no trainings to tell apart")
    found = permutation_test(
        (np.arange(len(figure_TC)),),
        lambda order: way(figure_TC[order], quality_TC),
        permutation_type="pairings",
        alternative="greater",
        vectorized=False,
        n_resamples=resamples,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def _ranks(*columns: np.ndarray, axis: int) -> list[np.ndarray]:
    return [rankdata(column, axis=axis) for column in columns]


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else float("nan")
