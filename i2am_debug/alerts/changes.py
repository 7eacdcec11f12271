"""How an evaluation's figures changed since the baseline: what a diagnosis rests on. Pure.

A pair with something wrong about it (another pair's reference, a mirrored one, an inverted hole) has a higher loss: that is the
harm of it. A model that lets go of its reference is harmed less by every wrong one; one that was trained on mirrored references
is harmed less by a mirrored one than by others. So each probe counts by how much of its harm is left, beside the gap.
"""

from __future__ import annotations

import math

import numpy as np

from ..figures.declared import (
    ATTENTION_INFORMATION,
    BLANK_GAP,
    ENERGY_R_HOLE,
    IMACS_G_CENTRED,
    JS_G2R,
    JS_R2G,
    KEPT_PLACE,
    LOSS,
    LOSS_INSIDE,
    LOSS_OUTSIDE,
    PROBES,
    REFERENCE_GAP,
    REFERENCE_MASS,
    UNCHANGED,
)
from ..figures.record import Evaluation
from .finding import Judged

HARM = "harm of "
BESIDE = ", beside the gap"
GAP_LEFT = "gap that is left"
_LARGEST = 3.0
"""Changes are cut off there: a loss that is twenty times what it was says no more."""
_LEAST_HARM = 0.2
"""Of the loss; what harms less at the baseline tells nothing by the harm that is left."""


def changes_of(baseline: Evaluation, now: Judged) -> dict[str, float]:
    """How the figures changed: name → value; those without a value are left out.

    Losses and information change by the logarithm of their ratio. Of the gap, the harm of another pair's reference, it is what
    is left of it, as a share; of each other harm that share less the gap's, of the same pairs.
    """
    loss, wrong, blank = ((f(baseline), f(now)) for f in (_loss, _wrong, _blank))
    unchanged = baseline.values(UNCHANGED.tag), now.values(UNCHANGED.tag)
    probed = np.isfinite(unchanged).all(0)
    of_probed = _harm_left(*((a[probed], b[probed]) for a, b in (loss, wrong)))
    left = _harm_left(loss, wrong)
    found = {
        "loss": _ratio(*loss),
        "loss, wrong reference": _ratio(*wrong),
        "loss inside": _ratio(baseline.values(LOSS_INSIDE.tag), now.values(LOSS_INSIDE.tag)),
        "loss outside": _ratio(baseline.values(LOSS_OUTSIDE.tag), now.values(LOSS_OUTSIDE.tag)),
        "information": _ratio(baseline.values(ATTENTION_INFORMATION.tag), now.values(ATTENTION_INFORMATION.tag)),
        "R2G moved": _mean(now.values(JS_R2G.tag)),
        "G2R moved": _mean(now.values(JS_G2R.tag)),
        "reference mass": _difference(baseline, now, REFERENCE_MASS.tag),
        "kept place": _difference(baseline, now, KEPT_PLACE.tag),
        "energy on the object": _difference(baseline, now, ENERGY_R_HOLE.tag),
        "IMACS_g": _difference(baseline, now, IMACS_G_CENTRED.tag),
        GAP_LEFT: left,
        f"{HARM}a blank reference{BESIDE}": _harm_left(loss, blank) - left,
    }
    for probe in PROBES:
        if probe is not UNCHANGED:
            changed = baseline.values(probe.tag), now.values(probe.tag)
            name = f"{HARM}{probe.title.removeprefix('loss with ')}{BESIDE}"
            found[name] = _harm_left(unchanged, changed) - of_probed
    return {name: max(-_LARGEST, min(_LARGEST, value)) for name, value in found.items() if math.isfinite(value)}


def in_words(name: str, value: float) -> str:
    """A change as a person reads it: losses and information in percent of what they were, harms in percent of what they were at
    the baseline, the others as they are."""
    if name.startswith("loss") or name == "information":
        return f"{name} {math.expm1(value):+.0%}"
    if name == GAP_LEFT:
        return f"{name} {value:.0%}"
    return f"{name} {value:+.0%}" if name.startswith(HARM) else f"{name} {value:+.2f}"


_BeforeAndNow = tuple[np.ndarray, np.ndarray]
"""(pairs,) each, at the baseline and now."""


def _loss(evaluation: Judged) -> np.ndarray:
    return evaluation.values(LOSS.tag)


def _wrong(evaluation: Judged) -> np.ndarray:
    """The loss with another pair's reference, which older evaluations don't name."""
    return _loss(evaluation) + evaluation.values(REFERENCE_GAP.tag)


def _blank(evaluation: Judged) -> np.ndarray:
    """The loss with a blank reference."""
    return _loss(evaluation) + evaluation.values(BLANK_GAP.tag)


def _harm_left(right: _BeforeAndNow, wrong: _BeforeAndNow) -> float:
    """How much higher the wrong loss is than the right one now, as a share of that at the baseline; over the pairs that have
    all four. NaN where it was hardly higher then."""
    known = np.isfinite((*right, *wrong)).all(0)
    if not known.any():
        return math.nan
    (right_before, right_now), (wrong_before, wrong_now) = (
        (a[known].mean(), b[known].mean()) for a, b in (right, wrong)
    )
    harm = wrong_before - right_before
    return float((wrong_now - right_now) / harm) if harm > _LEAST_HARM * right_before else math.nan


def _ratio(before: np.ndarray, now: np.ndarray) -> float:
    """Natural logarithm of how many times as large the mean is, over the pairs that have both; NaN where there is none."""
    before_mean, now_mean = _means(before, now)
    return math.log(now_mean / before_mean) if before_mean > 0 and now_mean > 0 else math.nan


def _difference(baseline: Judged, now: Judged, tag: str) -> float:
    before_mean, now_mean = _means(baseline.values(tag), now.values(tag))
    return now_mean - before_mean


def _means(before: np.ndarray, now: np.ndarray) -> tuple[float, float]:
    """Over the pairs that have both; NaN where there is none."""
    both = np.isfinite(before) & np.isfinite(now)
    return (float(before[both].mean()), float(now[both].mean())) if both.any() else (math.nan, math.nan)


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan
