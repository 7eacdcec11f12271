"""What broke: how the figures changed since the baseline → kinds of fault with their likelihoods. Pure.

Each kind has measured signatures: how the figures of a model changed, on average, after such a fault. What is seen is compared
with all of them, each made smaller or larger so that it fits best, since a fault that has just begun shows a fraction of its
signature; the distance is Mahalanobis's, with one covariance, shrunk towards its diagonal, and room for each change in
proportion to itself. What is far from every one is "none of these". Figures that a model has not are left out of the
comparison. `benchmarks.diagnosis` measures the signatures and how often they are right.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib import resources
from typing import Any

import numpy as np

from ..figures.record import Evaluation
from ..figures.stored_form import entry, finite_or_none, listed, mapped, number, text, whole_number
from .causes import CAUSES, HEADLINES, UNKNOWN, Cause, Group
from .changes import BESIDE, GAP_LEFT, HARM, changes_of, in_words
from .finding import Judged

_SHARES = (0.15, 1.6)
"""Of a signature: what just began shows little of it, a fault that goes on for long more than was measured."""
_STRAYS = 0.3
"""How far a change strays from its share of a signature, usually, as a part of it; beside the covariance, which is of runs like
those that were measured."""
_TOLD = 4
_TELLING = (
    *("loss", "loss, wrong reference", GAP_LEFT, "loss inside", "loss outside", "information"),
    *("R2G moved", "reference mass", "kept place"),
)
_LIKED = 3
_NO_LESS = 0.05
_NOTHING = 0.02
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
    def unlike_all(self) -> bool:
        """Whether what is seen is likelier like no kind that was measured than like all of them together."""
        name, likelihood = self.likelihoods[0]
        return name == UNKNOWN and likelihood > 0.5

    @property
    def group(self) -> Group | None:
        """The group of kinds that is likelier than all others together, or None."""
        groups: dict[Group, float] = {}
        for name, likelihood in self.likelihoods:
            if name in CAUSES:
                groups[CAUSES[name].group] = groups.get(CAUSES[name].group, 0.0) + likelihood
        return next((group for group, likelihood in groups.items() if likelihood > 0.5), None)

    @property
    def headline(self) -> str | None:
        """What has happened: of the likeliest kind, or of a group of kinds, that is likelier than all others together."""
        if self.cause is not None:
            return self.cause.headline
        return None if self.group is None else HEADLINES[self.group]

    def after(self, earlier: Diagnosis) -> Diagnosis:
        """This one with what an earlier evaluation after the same fault said: what both speak for is likelier."""
        before = dict(earlier.likelihoods)
        together = {name: likelihood * before.get(name, 0.0) for name, likelihood in self.likelihoods}
        total = sum(together.values())
        if not total > 0:  # they speak of nothing that is the same, as where signatures have been measured anew
            return self
        ranked = sorted(((name, value / total) for name, value in together.items()), key=lambda one: -one[1])
        return replace(self, likelihoods=tuple(ranked))

    @property
    def likely(self) -> tuple[tuple[str, float], ...]:
        """Those that are worth a word, the likeliest first."""
        return tuple(one for one in self.likelihoods if one[1] >= _LEAST)[:_TOLD] or self.likelihoods[:1]

    @property
    def evidence(self) -> list[str]:
        """The changes that tell most, in words."""
        telling = {name: self.changes[name] for name in _TELLING if name in self.changes}
        told = [in_words(n, v) for n, v in telling.items() if n == GAP_LEFT or abs(v) >= _NOTHING]
        harms = {n.removeprefix(HARM).removesuffix(BESIDE): v for n, v in self.changes.items() if n.endswith(BESIDE)}
        least = [name for name in sorted(harms, key=harms.__getitem__)[:_LIKED] if harms[name] < -_NO_LESS]
        if least:
            words = ", ".join(f"{name} {harms[name]:+.0%}" for name in least)
            told.append(f"these harm less than they did, beyond the fall of the gap: {words}")
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
        distance = _distance(seen_F[known], mean_F[known], signatures.covariance_FF[np.ix_(known, known)])
        log[kind] = max(log.get(kind, -math.inf), -0.5 * distance)
    if not log:
        return None
    log[UNKNOWN] = -0.5 * signatures.furthest
    top = max(log.values())
    weights = {kind: math.exp(signatures.sharpness * (value - top)) for kind, value in log.items()}
    total = sum(weights.values())
    return tuple(sorted(((kind, weight / total) for kind, weight in weights.items()), key=lambda one: -one[1]))


def _distance(seen_F: np.ndarray, mean_F: np.ndarray, covariance_FF: np.ndarray) -> float:
    """Of what is seen from the share of a signature that is nearest to it: squared, a mean over the changes, so that a
    signature with fewer of them is not nearer for that."""
    share = 1.0
    for _ in range(3):  # how far it may stray depends on the share
        strays = (_STRAYS * share * mean_F) ** 2
        precision = np.linalg.inv(covariance_FF + np.diag(strays))
        share = share_of(seen_F, mean_F, precision)
    apart = seen_F - share * mean_F
    return float(apart @ precision @ apart) / len(seen_F)


def share_of(seen_F: np.ndarray, mean_F: np.ndarray, precision_FF: np.ndarray) -> float:
    """The factor of a signature at which it is nearest to what is seen, within limits."""
    size = float(mean_F @ precision_FF @ mean_F)
    best = float(seen_F @ precision_FF @ mean_F) / size if size > 0 else 1.0
    return min(_SHARES[1], max(_SHARES[0], best))
