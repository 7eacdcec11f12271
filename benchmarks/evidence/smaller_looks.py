"""Looks at some heads and noise times beside the look at all: how far off maps and figures are, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from i2am_debug.capture.plan import CapturePlan, HeadChoice, choose_heads, draw_heads
from i2am_debug.capture.redrawn import with_heads
from i2am_debug.figures.distances import js_distance
from i2am_debug.figures.pair_view import PairView
from i2am_debug.figures.pilot_spread import figures_of_heads, pilot_spread
from i2am_debug.figures.sampling_error import Sampled, SamplingError
from i2am_debug.figures.scoring import copying_layer, left_out_of
from i2am_debug.figures.values import Undefined

from .looked_at_anew import Look

PAIRS_OF_PILOT = 4  # as in `evaluation.pilot`
_LAYER = "layer/"
COPYING = "copying layer's "
Values = dict[str, float]


@dataclass(frozen=True)
class Apart:
    """One smaller look at some pairs."""

    maps: Values
    """"js_r2g", "pearson_r2g", …: of the unified maps to those of all, mean over pairs."""
    errors: Values
    """Figure → its mean over pairs less that of the look at all."""
    reaches: Values
    """Figure → half the 95 % interval that is said; absent where nothing is said."""


def means_of(views: list[PairView]) -> Values:
    """Figure → mean over pairs; those of the copying layer under one name."""
    each = [figures_of_heads(view, view.maps) for view in views]
    return {_name(tag): float(np.nanmean([one[tag] for one in each])) for tag in each[0] if _kept(tag, each)}


def _kept(tag: str, each: list[Values]) -> bool:
    """The copying layer's information is the figure of that name already."""
    return not tag.endswith("/attention_information") and any(np.isfinite(one[tag]) for one in each)


def _name(tag: str) -> str:
    return COPYING + tag.rpartition("/")[2] if tag.startswith(_LAYER) else tag


def apart(some: Look, all_of_it: Look, sampled: Sampled) -> Apart:
    """What `some`, a smaller look at the same pairs, gives."""
    views = some.views()
    layer = views[0].copying_layer
    truth = means_of(all_of_it.views())
    same_layer = means_of(all_of_it.views(layer))  # that of a layer is meant, whichever layer it is
    truth |= {tag: value for tag, value in same_layer.items() if tag.startswith(COPYING)}
    found = means_of(views)
    left_out = [left_out_of(view) for view in views]
    reaches = {}
    for tag in left_out[0]:
        known = [each[tag] for each in left_out if not isinstance(each[tag], Undefined)]
        said = sampled.variance(tag, np.mean(known, axis=0), len(known)) if known else Undefined("none")
        if not isinstance(said, Undefined) and _name(tag) in found:
            reaches[_name(tag)] = SamplingError.of(said).reach
    return Apart(
        maps=_maps_apart(some, all_of_it),
        errors={tag: value - truth[tag] for tag, value in found.items() if tag in truth},
        reaches=reaches,
    )


def _maps_apart(some: Look, all_of_it: Look) -> Values:
    found: dict[str, list[float]] = {}
    for one, whole in zip(some.observations, all_of_it.observations, strict=True):
        for direction in ("r2g", "g2r"):
            a, b = (getattr(maps, direction).unified for maps in (one.maps, whole.maps))
            found.setdefault(f"js_{direction}", []).append(js_distance(a, b))
            found.setdefault(f"pearson_{direction}", []).append(float(np.corrcoef(a.ravel(), b.ravel())[0, 1]))
    return {name: float(np.mean(values)) for name, values in found.items()}


@dataclass(frozen=True)
class Piloted:
    """What a pilot chose of some pairs, and says of it."""

    heads: HeadChoice
    sampled: Sampled
    information: dict[str, list[float]]


def piloted(all_heads: Look, plan: CapturePlan, total: int) -> Piloted:
    """As `evaluation.pilot` does of a look at all heads at the plan's noise times, read head by head.

    Args:
        total: of how many noise times those are a draw.
    """
    information = {
        la: np.mean([one.maps.information[la] for one in all_heads.observations], axis=0).tolist()
        for la in all_heads.heads
    }
    heads = choose_heads(information, plan)
    if heads is None:
        every = {la: dict.fromkeys(range(n), 1.0) for la, n in all_heads.heads.items()}
        return Piloted(every, Sampled(steps=total), information)
    some = all_heads.of(slice(PAIRS_OF_PILOT))
    copying = copying_layer([with_heads(one.maps, heads, plan) for one in some.observations])
    spread = pilot_spread(some.views(copying), heads, None, plan=plan, steps=total)
    return Piloted(heads, Sampled(steps=total, heads=True, spread=spread), information)


def blind(heads: dict[str, int], count: int, seed: int) -> HeadChoice:
    """As many heads as `count`, drawn of all without a pilot, at least one of each layer."""
    rng = np.random.default_rng(seed)
    counts = dict.fromkeys(heads, 1)
    others = [la for la, n in heads.items() for _ in range(n - 1)]
    for layer in rng.permutation(others)[: max(0, count - len(heads))]:
        counts[str(layer)] += 1
    return draw_heads(heads, {la: [] for la in heads}, counts, seed)
