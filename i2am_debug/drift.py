"""Evaluations against a baseline → alerts. Pure; knows no model, no files, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .record import Evaluation, Undefined


@dataclass(frozen=True, kw_only=True)
class Margins:
    """How far a figure's mean may fall below the baseline before it is an alert.

    In ten healthy fine-tunes of the tiny model (`python -m benchmarks.demo_seeds`) the largest falls were 0.034, 4 % and 8 %,
    a quarter of these constants or less. Other models are untested: choose your own from a run known to be healthy.
    """

    imacs_r_hole: float = 0.15
    """IMACS_r of the copying layer's hole queries, absolute."""
    attention_information: float = 0.25
    """As a share of the baseline's value."""
    reference_gap: float = 0.5
    """As a share of the baseline's value, since the size of a loss is the user's own."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (isinstance(value, (int, float)) and value > 0):
                raise ValueError(f"Margins({name}={value!r}): expected a number above 0")

    def to_dict(self) -> dict[str, float]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Drop:
    """One figure's fall below the baseline."""

    figure: str
    """Tag of the figure that fell."""
    baseline: float
    now: float
    drop: float
    """Mean over pairs of (baseline − now)."""
    standard_error: float
    """Of `drop`, over pairs."""
    margin: float
    pairs: tuple[str, ...]
    """The pairs that fell most, worst first, at most three."""

    def __str__(self) -> str:
        return (
            f"{self.figure} fell from {self.baseline:.3f} to {self.now:.3f} "
            f"(by {self.drop:.3f} ± {self.standard_error:.3f}, allowed {self.margin:.3f})"
        )


@dataclass(frozen=True, kw_only=True)
class Alert:
    """The model draws on its reference less than it did."""

    global_step: int
    baseline_step: int
    drops: tuple[Drop, ...]

    @property
    def text(self) -> str:
        """What happened, since when, which pairs, and what to look at."""
        worst = ", ".join(dict.fromkeys(p for d in self.drops for p in d.pairs))
        return (
            f"the model draws less on its reference at step {self.global_step} than at step {self.baseline_step}: "
            + "; ".join(map(str, self.drops))
            + f". Worst pairs: {worst}. Usual causes: references that no longer belong to their targets (shuffled, "
            "zeroed, wrong normalisation), too much reference dropout, a learning rate too high, a reference encoder "
            "that is frozen, re-initialised or not loaded."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for one line of JSON."""
        return {**asdict(self), "text": self.text}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Alert:
        """The inverse of `to_json`."""
        drops = tuple(Drop(**{**d, "pairs": tuple(d["pairs"])}) for d in row["drops"])
        return cls(global_step=row["global_step"], baseline_step=row["baseline_step"], drops=drops)


def find_drops(now: Evaluation, baseline: Evaluation, margins: Margins) -> tuple[Drop, ...]:
    """The figures that fell by more than their margin, paired by validation pair and beyond twice the standard error.

    Looked at: IMACS_r of the hole queries in the baseline's copying layer, attention information, and the reference gap.
    A figure that is undefined on either side of a pair leaves that pair out; one with fewer than two pairs left is not
    judged. The caller has made sure that both evaluations are comparable (`record.differences`).
    """
    candidates = []
    if not isinstance(baseline.copying_layer, Undefined):
        candidates.append((f"layer/{baseline.copying_layer}/imacs_r_hole", margins.imacs_r_hole, False))
    candidates.append(("attention_information", margins.attention_information, True))
    candidates.append(("reference_gap", margins.reference_gap, True))
    return tuple(
        drop
        for tag, margin, relative in candidates
        if (drop := _drop(tag, now, baseline, margin, relative)) is not None
    )


def _drop(tag: str, now: Evaluation, baseline: Evaluation, margin: float, relative: bool) -> Drop | None:
    before, after = baseline.values(tag), now.values(tag)
    fall = before - after
    usable = np.isfinite(fall)
    count = int(usable.sum())
    if count < 2:
        return None
    level = float(before[usable].mean())
    allowed = margin * level if relative else margin
    mean, error = float(fall[usable].mean()), float(fall[usable].std(ddof=1) / np.sqrt(count))
    if (relative and level <= 0) or mean <= allowed or mean <= 2 * error:
        return None
    worst = sorted(np.flatnonzero(usable), key=lambda i: -fall[i])[:3]
    return Drop(
        figure=tag,
        baseline=level,
        now=float(after[usable].mean()),
        drop=mean,
        standard_error=error,
        margin=allowed,
        pairs=tuple(now.pairs[i] for i in worst),
    )
