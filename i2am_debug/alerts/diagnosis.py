"""What broke: how the figures changed since the baseline → kinds of fault with their likelihoods. Pure.

Each kind has measured signatures: how the figures of a model changed, on average, after such a fault. What is seen is compared
with all of them, each made smaller or larger so that it fits best, since a fault that has just begun shows a fraction of its
signature; the distance is Mahalanobis's, with one covariance, shrunk towards its diagonal. What is far from every one is "none
of these". Figures that a model has not are left out of the comparison. `benchmarks.diagnosis` measures the
signatures and how often they are right.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

import numpy as np

from ..figures.declared import (
    ATTENTION_INFORMATION,
    BLANK_GAP,
    ENERGY_R_HOLE,
    IMACS_G_CENTRED,
    IMACS_R_HOLE,
    JS_G2R,
    JS_R2G,
    KEPT_PLACE,
    LOSS,
    LOSS_INSIDE,
    LOSS_OUTSIDE,
    PROBES,
    REFERENCE_GAP,
    REFERENCE_MASS,
    REFERENCE_PROBES,
    UNCHANGED,
)
from ..figures.record import Evaluation
from ..figures.registry import LAYER
from ..figures.stored_form import entry, finite_or_none, listed, mapped, number, text, whole_number
from ..figures.values import Undefined
from .causes import CAUSES, HEADLINES, UNKNOWN, Cause, Group
from .finding import Judged

_LARGEST = 3.0
"""Changes are cut off there: a loss that is twenty times what it was says no more."""
_SHARES = (0.15, 1.6)
"""Of a signature: what just began shows little of it, a fault that goes on for long more than was measured."""
_GROWING = 0.15
"""By how much the squared distance that is usual grows with the squared size of what is seen."""
_TOLD = 4
_TELLING = (
    *("loss", "loss, wrong reference", "loss inside", "loss outside", "information"),
    *("R2G moved", "reference mass", "kept place"),
)
_RELATIVE = ", relative"
_BLANK_REFERENCE = "loss with a blank reference"
_LIKED = 3
_LEAST = 0.05
"""Kinds that are less likely are not named."""
_FEWEST = 4
"""With fewer changes that are known, nothing is said."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What an evaluation says of what broke."""

    global_step: int
    """Of the evaluation."""
    likelihoods: tuple[tuple[str, float], ...]
    """Name of a kind (`causes.CAUSES`) or "none of these" → how likely, the likeliest first; sums to 1."""
    changes: Mapping[str, float]
    """What it rests on: name of a change (`changes_of`) → its value."""

    @property
    def kind(self) -> str:
        """The likeliest."""
        return self.likelihoods[0][0]

    @property
    def cause(self) -> Cause | None:
        """The likeliest, where it is a known one and likelier than all others together."""
        name, likelihood = self.likelihoods[0]
        return CAUSES[name] if name in CAUSES and likelihood > 0.5 else None

    @property
    def headline(self) -> str | None:
        """What has happened: of the likeliest kind, or of a group of kinds, that is likelier than all others together."""
        if self.cause is not None:
            return self.cause.headline
        groups: dict[Group, float] = {}
        for name, likelihood in self.likelihoods:
            if name in CAUSES:
                groups[CAUSES[name].group] = groups.get(CAUSES[name].group, 0.0) + likelihood
        return next((HEADLINES[group] for group, likelihood in groups.items() if likelihood > 0.5), None)

    @property
    def likely(self) -> tuple[tuple[str, float], ...]:
        """Those that are worth a word, the likeliest first."""
        return tuple(one for one in self.likelihoods if one[1] >= _LEAST)[:_TOLD] or self.likelihoods[:1]

    @property
    def evidence(self) -> list[str]:
        """The changes that tell most, in words."""
        relative = {name: value for name, value in self.changes.items() if name.endswith(_RELATIVE)}
        told = [in_words(name, self.changes[name]) for name in _TELLING if name in self.changes]
        liked = [name for name in sorted(relative, key=relative.__getitem__)[:_LIKED] if relative[name] < 0]
        if liked:
            words = "; ".join(
                f"{name.removeprefix('loss with ').removesuffix(_RELATIVE)} {math.expm1(relative[name]):+.0%}"
                for name in liked
            )
            told.append(f"changed pairs that it has come to do better with, relative to others: {words}")
        return told

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Any, where: str = "diagnosis") -> Diagnosis:
        """The inverse of `to_json`.

        Raises:
            ValueError: it has another form; names `where` it stands.
        """
        likelihoods = entry(row, "likelihoods", listed(_likelihood), where)
        if not likelihoods:
            raise ValueError(f"{where}/likelihoods is empty")
        changes = entry(row, "changes", mapped(finite_or_none), where)
        step = entry(row, "global_step", whole_number, where)
        return cls(
            global_step=step, likelihoods=likelihoods, changes={k: v for k, v in changes.items() if v is not None}
        )


def _likelihood(value: Any, where: str) -> tuple[str, float]:
    if not (isinstance(value, (list, tuple)) and len(value) == 2):
        raise ValueError(f"{where:.100} is no pair of a name and a likelihood")
    return text(value[0], where), number(value[1], where)


@dataclass(frozen=True, kw_only=True)
class Signatures:
    """What was measured; `benchmarks.diagnosis` fits it.

    Shapes: S signatures, F changes.
    """

    kinds: tuple[str, ...]
    """(S,) of which kind each is; a kind has one for each fault and model that it was measured on."""
    changes: tuple[str, ...]
    """(F,) names."""
    means_SF: np.ndarray
    """NaN where the model lacks a figure."""
    covariance_FF: np.ndarray
    """Of the same fault in the same model, over all of them."""
    furthest: float
    """Squared distance a change, in units of the covariance, from which on "none of these" is likelier than a kind."""
    sharpness: float
    """Factor of the log-likelihoods: changes of one run are not independent."""

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Signatures:
        """Of plain values, as `benchmarks.diagnosis` keeps them."""
        rows = tree["signatures"]
        return cls(
            kinds=tuple(row["kind"] for row in rows),
            changes=tuple(tree["changes"]),
            means_SF=np.array([[math.nan if v is None else v for v in row["mean"]] for row in rows], dtype=float),
            covariance_FF=np.array(tree["covariance"], dtype=float),
            furthest=tree["furthest"],
            sharpness=tree["sharpness"],
        )


@functools.cache
def measured_signatures() -> Signatures:
    """Those that come with the package."""
    kept = resources.files(__package__).joinpath("signatures.json").read_text(encoding="utf-8")
    return Signatures.from_json(json.loads(kept))


def changes_of(baseline: Evaluation, now: Judged) -> dict[str, float]:
    """How the figures changed since the baseline: name → value; those without a value are left out.

    Losses change by the logarithm of their ratio. Those of probes are relative to another of the same pairs: with a changed
    reference to that with another pair's, so that it shows which wrong reference the model has come to like; with anything else
    changed to that with nothing changed.
    """
    wrong = _wrong(baseline), _wrong(now)
    unchanged = baseline.values(UNCHANGED.tag), now.values(UNCHANGED.tag)
    found = {
        "loss": _ratio(baseline.values(LOSS.tag), now.values(LOSS.tag)),
        "loss, wrong reference": _ratio(*wrong),
        f"{_BLANK_REFERENCE}{_RELATIVE}": _relative((_blank(baseline), _blank(now)), wrong),
        **{
            f"{probe.title}{_RELATIVE}": _relative(
                (baseline.values(probe.tag), now.values(probe.tag)), wrong if probe in REFERENCE_PROBES else unchanged
            )
            for probe in PROBES
            if probe is not UNCHANGED
        },
        "loss inside": _ratio(baseline.values(LOSS_INSIDE.tag), now.values(LOSS_INSIDE.tag)),
        "loss outside": _ratio(baseline.values(LOSS_OUTSIDE.tag), now.values(LOSS_OUTSIDE.tag)),
        "information": _ratio(baseline.values(ATTENTION_INFORMATION.tag), now.values(ATTENTION_INFORMATION.tag)),
        "R2G moved": _mean(now.values(JS_R2G.tag)),
        "G2R moved": _mean(now.values(JS_G2R.tag)),
        "reference mass": _difference(baseline, now, REFERENCE_MASS.tag),
        "kept place": _difference(baseline, now, KEPT_PLACE.tag),
        "energy on the object": _difference(baseline, now, ENERGY_R_HOLE.tag),
        "IMACS_g": _difference(baseline, now, IMACS_G_CENTRED.tag),
    }
    if not isinstance(baseline.copying_layer, Undefined):
        found["IMACS_r of the copying layer"] = _difference(
            baseline, now, f"{LAYER}{baseline.copying_layer}/{IMACS_R_HOLE.tag}"
        )
    return {name: max(-_LARGEST, min(_LARGEST, value)) for name, value in found.items() if math.isfinite(value)}


def diagnose(baseline: Evaluation, now: Judged, signatures: Signatures | None = None) -> Diagnosis | None:
    """Which kinds of fault what is seen is like; None where too few figures can be compared."""
    signatures = signatures or measured_signatures()
    changes = changes_of(baseline, now)
    likelihoods = likelihoods_of(changes, signatures)
    if likelihoods is None:
        return None
    return Diagnosis(global_step=now.global_step, likelihoods=likelihoods, changes=changes)


def likelihoods_of(changes: Mapping[str, float], signatures: Signatures) -> tuple[tuple[str, float], ...] | None:
    """`Diagnosis.likelihoods` of these changes; None where fewer than four of them are known."""
    seen_F = np.array([changes.get(name, math.nan) for name in signatures.changes])
    log: dict[str, float] = {}
    for kind, mean_F in zip(signatures.kinds, signatures.means_SF, strict=True):
        known = np.isfinite(seen_F) & np.isfinite(mean_F)
        if known.sum() < _FEWEST:
            continue
        precision = np.linalg.inv(signatures.covariance_FF[np.ix_(known, known)])
        share = share_of(seen_F[known], mean_F[known], precision)
        apart = seen_F[known] - share * mean_F[known]
        # Means over the changes that both have, so that a signature with fewer is not nearer for that; what is seen strays the
        # further the larger it is.
        size, distance = (float(x @ precision @ x) / known.sum() for x in (seen_F[known], apart))
        distance /= 1 + _GROWING * size
        log[kind] = max(log.get(kind, -math.inf), -0.5 * distance)
    if not log:
        return None
    log[UNKNOWN] = -0.5 * signatures.furthest
    top = max(log.values())
    weights = {kind: math.exp(signatures.sharpness * (value - top)) for kind, value in log.items()}
    total = sum(weights.values())
    return tuple(sorted(((kind, weight / total) for kind, weight in weights.items()), key=lambda one: -one[1]))


def share_of(seen_F: np.ndarray, mean_F: np.ndarray, precision_FF: np.ndarray) -> float:
    """The factor of a signature at which it is nearest to what is seen, within limits."""
    size = float(mean_F @ precision_FF @ mean_F)
    best = float(seen_F @ precision_FF @ mean_F) / size if size > 0 else 1.0
    return min(_SHARES[1], max(_SHARES[0], best))


def in_words(name: str, value: float) -> str:
    """A change as a person reads it: losses and information in percent of what they were, the others as they are."""
    if name.startswith("loss") or name == "information":
        return f"{name} {math.expm1(value):+.0%}"
    return f"{name} {value:+.2f}"


def _wrong(evaluation: Judged) -> np.ndarray:
    """(pairs,) the loss with another pair's reference, which older evaluations don't name."""
    return evaluation.values(LOSS.tag) + evaluation.values(REFERENCE_GAP.tag)


def _blank(evaluation: Judged) -> np.ndarray:
    """(pairs,) the loss with a blank reference."""
    return evaluation.values(LOSS.tag) + evaluation.values(BLANK_GAP.tag)


def _ratio(before: np.ndarray, now: np.ndarray) -> float:
    """Natural logarithm of how many times as large the mean is, over the pairs that have both; NaN where there is none."""
    before_mean, now_mean = _means(before, now)
    return math.log(now_mean / before_mean) if before_mean > 0 and now_mean > 0 else math.nan


def _relative(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
    """How much more the one changed than the other, over the pairs that have all four values."""
    known = np.isfinite(one).all(0) & np.isfinite(other).all(0)
    return _ratio(*(values[known] for values in one)) - _ratio(*(values[known] for values in other))


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
