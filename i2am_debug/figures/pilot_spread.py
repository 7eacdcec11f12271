"""How much the figures move when other heads, or other noise times, are drawn: told by a pilot that saw them all.

The heads that a choice might have drawn as well are put in the place of those it drew, again and again, and each figure is
computed of the maps that would have been seen; what it lies apart from the figure of all heads of the same layers is its error.
Nothing is assumed of how a figure comes from its maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..capture.maps import AttributionMaps
from ..capture.plan import CapturePlan, HeadChoice, drawn_anew
from ..capture.redrawn import with_heads
from .pair_view import PairView
from .registry import LAYER, all_figures
from .sampling_error import Spread, Variance, variance_of_steps
from .scoring import figure_of, left_out_of
from .values import Undefined

DRAWS = 64
"""Of the heads; the errors they tell are known to a tenth or so."""


def pilot_spread(
    views: Sequence[PairView], heads: HeadChoice | None, times: int | None, *, plan: CapturePlan, steps: int
) -> dict[str, Spread]:
    """Tag → its spread, of the figures that have a standard error, also of the copying layer.

    Args:
        views: of some pairs, whose maps are of all heads by themselves (`AttributionMaps.every_head`).
        heads: what is looked at from now on, of which those with another weight than 1 were drawn; None: all.
        times: at how many of the views' noise times; None: all.
        steps: how many sampler steps those of the views stand for.
    """
    left_out = [left_out_of(view) for view in views]
    apart = _apart_by_heads(views, heads, plan)
    found = {}
    for tag in left_out[0]:
        known = [row for row, each in enumerate(left_out) if not isinstance(each[tag], Undefined)]
        known = [row for row in known if np.isfinite(apart[tag][:, row]).any()]
        if not known:
            continue
        deviations = np.nan_to_num(apart[tag][:, known])
        of_pair, of_mean = float((deviations**2).mean()), float((deviations.mean(1) ** 2).mean())
        degrees = float(DRAWS)
        if times is not None:
            each = np.array([left_out[row][tag] for row in known])
            pairs = [_of_times(values, times, steps) for values in each]
            mean = _of_times(each.mean(0), times, steps)
            if isinstance(mean, Undefined) or any(isinstance(one, Undefined) for one in pairs):
                continue
            degrees = (Variance(variance=of_mean, degrees=degrees) + mean).degrees
            of_pair += float(np.mean([one.variance for one in pairs if isinstance(one, Variance)]))
            of_mean += mean.variance
        if math.isfinite(of_pair) and math.isfinite(of_mean):
            found[tag] = Spread.of(of_pair, of_mean, len(known), min(degrees, 1e6))
    return found


def _apart_by_heads(views: Sequence[PairView], heads: HeadChoice | None, plan: CapturePlan) -> dict[str, np.ndarray]:
    """Tag → (draws, pairs) of how far the figure of drawn heads lies from that of all."""
    drawn = heads is not None and any(weight != 1 for each in heads.values() for weight in each.values())
    if heads is None or not drawn:
        return {tag: np.zeros((1, len(views))) for tag in left_out_of(views[0])}
    sizes = {la: len(views[0].maps.information[la]) for la in heads}
    every = {la: dict.fromkeys(range(size), 1.0) for la, size in sizes.items()}
    draws = [drawn_anew(heads, sizes, seed=plan.seed + 1 + n) for n in range(DRAWS)]
    columns: list[dict[str, np.ndarray]] = []
    for view in views:
        whole = figures_of_heads(view, with_heads(view.maps, every, plan))
        others = [figures_of_heads(view, with_heads(view.maps, draw, plan)) for draw in draws]
        columns.append({tag: np.array([one.get(tag, math.nan) for one in others]) - whole[tag] for tag in whole})
    tags = {tag: None for column in columns for tag in column}
    missing = np.full(DRAWS, np.nan)
    return {tag: np.stack([column.get(tag, missing) for column in columns], 1) for tag in tags}


def figures_of_heads(view: PairView, maps: AttributionMaps) -> dict[str, float]:
    """Tag → the figure of these maps of the pair, NaN where it has none; of the figures that have a standard error."""
    view = replace(view, observation=replace(view.observation, maps=maps))
    out = {f.tag: figure_of(f, f.compute, view) for f in all_figures() if f.without_each_step is not None}
    layer = view.copying_layer
    if not isinstance(layer, Undefined):
        of_layer = [f for f in all_figures() if f.without_each_step_of_layer is not None]
        out |= {f"{LAYER}{layer}/{f.tag}": figure_of(f, f.compute_of_layer, view, layer) for f in of_layer}
    return {tag: math.nan if isinstance(value, Undefined) else value for tag, value in out.items()}


def _of_times(left_out: np.ndarray, times: int, steps: int) -> Variance | Undefined:
    """Of looking at so many of the pilot's noise times, and of these being a sample too."""
    of_all = variance_of_steps(left_out, steps)
    if isinstance(of_all, Undefined):
        return of_all
    n = len(left_out)
    each = -(n - 1) * left_out  # the figure at each time, but for what they have in common
    stretches = [each[i * n // times : (i + 1) * n // times] for i in range(times)]
    of_some = float(np.sum([stretch.var() for stretch in stretches])) / times**2
    return Variance(variance=of_some, degrees=math.inf) + of_all
