"""How far the figures of a healthy model move by themselves → margins for the drop rules. Pure; imports no torch.

A margin is three times the largest fall seen: of each evaluation of a healthy run below the run's first evaluation and below
its best so far, or between repeated evaluations of one model with other noise seeds. The latter sees the noise of evaluating
only, not the wobble of training, so margins from runs are to be preferred.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from ..alerts.judge import SMOOTHING, Judged, best_window, resolve
from ..figures.declaration import DeclaredFigure
from ..figures.margin import Margin
from ..figures.record import Evaluation
from ..figures.registry import all_figures
from ..figures.values import Undefined

FACTOR = 3.0
FEWEST = 5
"""Falls that are needed; with fewer the largest one says little."""

_SMALLEST_ABSOLUTE, _SMALLEST_RELATIVE = 0.01, 0.01  # an evaluation without any noise would leave no margin at all


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """One figure's margin and where it comes from."""

    margin: Margin
    largest: float
    """Fall seen, in the margin's terms."""
    count: int
    """How many falls were looked at."""


def margins_from_runs(runs: Sequence[Sequence[Judged]], baselines: Sequence[Evaluation]) -> dict[str, Calibrated]:
    """Margins from healthy runs: each one's evaluations by step, and its first evaluation in full.

    Figures with fewer than 5 falls are left out.

    Raises:
        ValueError: fewer than 5 evaluations after the first ones.
    """
    count = sum(len(run) - 1 for run in runs)
    if count < FEWEST:
        raise ValueError(
            f"{count} evaluations after the first are too few to calibrate with; at least {FEWEST} are needed"
        )
    falls: dict[str, list[float]] = {}
    for run, baseline in zip(runs, baselines, strict=True):
        for figure in _with_margins(baseline):
            tag = resolve(figure.tag, baseline)
            if not isinstance(tag, Undefined):
                falls.setdefault(figure.tag, []).extend(_falls_of_run([seen.mean(tag) for seen in run], figure))
    return _margins(falls, baselines[0])


def margins_from_repeats(evaluations: Sequence[Evaluation]) -> dict[str, Calibrated]:
    """Margins from evaluations of one model that differ in their noise only: the falls between any two of them.

    Raises:
        ValueError: fewer than 5 of them.
    """
    if len(evaluations) < FEWEST:
        raise ValueError(f"{len(evaluations)} repeated evaluations are too few to calibrate with; at least {FEWEST}")
    falls: dict[str, list[float]] = {}
    for figure in _with_margins(evaluations[0]):
        tag = resolve(figure.tag, evaluations[0])
        values = [] if isinstance(tag, Undefined) else _numbers([e.mean(tag) for e in evaluations])
        falls[figure.tag] = [_fall(a, b, figure) for a, b in permutations(values, 2)]
    return _margins(falls, evaluations[0])


def _with_margins(evaluation: Evaluation) -> list[DeclaredFigure]:
    """The figures that drop rules know a margin for, also those that another program registered."""
    known = {figure.tag: figure for figure in (*evaluation.declared.values(), *all_figures())}
    return [figure for figure in known.values() if figure.margin is not None]


def _is_relative(figure: DeclaredFigure) -> bool:
    return Margin.parse(figure.margin).relative


def _falls_of_run(means: Sequence, figure: DeclaredFigure) -> list[float]:
    if isinstance(means[0], Undefined):
        return []
    out = []
    for i in range(1, len(means)):
        if isinstance(means[i], Undefined):
            continue
        levels = [means[0]]
        start = best_window(means[:i], figure.worse == "up")
        if start is not None:
            levels.append(float(np.mean(_numbers(means[start : start + SMOOTHING]))))
        out.append(max(_fall(level, means[i], figure) for level in levels))
    return out


def _fall(before: float, after: float, figure: DeclaredFigure) -> float:
    worse = after - before if figure.worse == "up" else before - after
    if not _is_relative(figure):
        return worse
    return worse / abs(before) if before else float("nan")


def _numbers(means: Sequence) -> list[float]:
    return [m for m in means if not isinstance(m, Undefined)]


def _margins(falls: Mapping[str, Sequence[float]], evaluation: Evaluation) -> dict[str, Calibrated]:
    out = {}
    for figure in _with_margins(evaluation):
        usable = [f for f in falls.get(figure.tag, ()) if np.isfinite(f)]
        if len(usable) < FEWEST:
            continue
        relative = _is_relative(figure)
        largest = max(0.0, *usable)
        if relative and figure.worse == "down" and FACTOR * largest >= 1:
            raise ValueError(f"{figure.tag} fell by {largest:.0%}: that is no healthy run, and no margin would be left")
        smallest = _SMALLEST_RELATIVE if relative else _SMALLEST_ABSOLUTE
        value = max(smallest, _two_digits_up(FACTOR * largest))
        out[figure.tag] = Calibrated(margin=Margin(value=value, relative=relative), largest=largest, count=len(usable))
    return out


def _two_digits_up(value: float) -> float:
    """Rounded up to two digits: a third one would only look exact."""
    if value <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.2g}")
