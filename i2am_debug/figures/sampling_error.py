"""How far a figure may lie from that of a look at all heads and noise times, since some of them only were looked at.

A noise time or sampler step is one drawn from each of equal stretches, so its error is told by how unlike neighbours are
once a trend is taken off (Wolter 1984, "An investigation of some estimators of variance for systematic sampling"); how much
drawing heads moves a figure is known from the pilot, which saw them all (`pilot_spread`). Both add up; what they move is
common to the pairs, which are all looked at alike, so that their mean is not surer by their number. Knows no maps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .stored_form import entry, number, wrong
from .values import Undefined

ONE_TIME = "one noise time or sampler step was looked at"
NO_PILOT = "some heads were looked at, and no pilot is stored that saw how much heads differ"


@dataclass(frozen=True, kw_only=True)
class Variance:
    """Of a figure, and how well it is known."""

    variance: float
    degrees: float
    """Degrees of freedom; infinite where it is known."""

    def __add__(self, other: Variance) -> Variance:
        """Of independent causes; degrees by Satterthwaite (1946)."""
        both = self.variance + other.variance
        if both == 0:
            return Variance(variance=0.0, degrees=math.inf)
        parts = ((v.variance / both) ** 2 / v.degrees for v in (self, other))
        return Variance(variance=both, degrees=1 / max(sum(parts), 1e-12))


@dataclass(frozen=True, kw_only=True)
class SamplingError:
    """Of a figure's mean over pairs, from looking at some heads and noise times only."""

    error: float
    """Standard error."""
    degrees: float
    """Degrees of freedom of Student's t, at most 1e6."""

    @classmethod
    def of(cls, variance: Variance) -> SamplingError:
        return cls(error=math.sqrt(variance.variance), degrees=min(variance.degrees, 1e6))

    @property
    def reach(self) -> float:
        """Half the width of the 95 % interval."""
        from scipy.special import stdtrit  # here, since it takes a fifth of a second

        return float(stdtrit(self.degrees, 0.975)) * self.error

    def to_json(self) -> list[float]:
        return [self.error, self.degrees]

    @classmethod
    def from_json(cls, value: Any, where: str) -> SamplingError:
        """Raises:
        ValueError: it is none that `to_json` made; names `where` it stands.
        """
        if not (isinstance(value, list) and len(value) == 2):
            raise wrong(value, where, "a standard error and its degrees of freedom")
        error, degrees = (number(v, where) for v in value)
        if not (error >= 0 and degrees > 0):
            raise wrong(value, where, "a standard error of at least 0 and degrees of freedom above 0")
        return cls(error=error, degrees=degrees)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """What a pilot says of a figure: how much it moves when other heads, or other noise times, are drawn."""

    common: float
    """Variance that all pairs share."""
    own: float
    """Variance of each pair by itself."""
    degrees: float

    @classmethod
    def of(cls, of_pair: float, of_mean: float, pairs: int, degrees: float) -> Spread:
        """Of the variance of a pair's figure (mean over pairs) and that of the figure's mean over as many pairs."""
        own = max(0.0, (of_pair - of_mean) * pairs / (pairs - 1)) if pairs > 1 else 0.0
        return cls(common=max(0.0, of_pair - own), own=min(own, of_pair), degrees=degrees)

    def variance(self, pairs: int) -> Variance:
        """Of the mean over so many pairs."""
        return Variance(variance=self.common + self.own / pairs, degrees=self.degrees)

    def to_json(self) -> dict[str, float]:
        return {"common": self.common, "own": self.own, "degrees": self.degrees}

    @classmethod
    def from_json(cls, row: Any, where: str) -> Spread:
        """Raises:
        ValueError: it is none that `to_json` made; names `where` it stands.
        """
        found = {key: entry(row, key, number, where) for key in ("common", "own", "degrees")}
        if not (found["common"] >= 0 and found["own"] >= 0 and found["degrees"] > 0):
            raise wrong(row, where, "variances of at least 0 and degrees of freedom above 0")
        return cls(**found)


def variance_of_steps(left_out: Sequence[float] | np.ndarray, total: int) -> Variance | Undefined:
    """Of a figure's value with each looked-at sampler step left out, in order (`scores.left_out`).

    Args:
        total: of how many steps those are; with as many nothing is left to chance.
    """
    n = len(left_out)
    if n == total:
        return Variance(variance=0.0, degrees=math.inf)
    if n < 2:
        return Undefined(ONE_TIME)
    each = -(n - 1) * np.asarray(
        left_out, dtype=float
    )  # the jackknife's pseudo-values, but for what they have in common
    differences = np.diff(each, min(n - 1, 2))  # the second leave out a trend
    spread = float((differences**2).mean()) / (6 if n > 2 else 2)
    # A mean counts all looked-at steps alike, though some stand for one step more where their number does not divide the total.
    stands_for = np.diff([i * total // n for i in range(n + 1)]) / total
    askew = float((1 / n - stands_for) @ each)
    # Second differences overlap, so that they tell less than their number: a line through what 400,000 draws of normal values
    # say Student's t must have for 95 % (3: 2.3, 6: 3.8, 14: 8.0, 18: 9.9).
    told = len(differences)
    return Variance(variance=spread / n * (1 - n / total) + askew**2, degrees=1.0 if told == 1 else 0.52 * told + 0.7)


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """How what was looked at was drawn."""

    steps: int
    """How many sampler steps those that were looked at stand for."""
    heads: bool = False
    """Whether heads were drawn."""
    times: bool = False
    """Whether the pilot left noise times out too, so that its spread is of these as well."""
    spread: Mapping[str, Spread] = field(default_factory=dict)
    """Tag → what the pilot says of it."""

    def variance(self, tag: str, left_out: np.ndarray, pairs: int) -> Variance | Undefined:
        """Of the mean over so many pairs of a figure, from its mean value with each looked-at step left out."""
        if (self.heads or self.times) and tag not in self.spread:
            return Undefined(NO_PILOT)
        of_pilot = self.spread[tag].variance(pairs) if tag in self.spread else Variance(variance=0.0, degrees=math.inf)
        if self.times:
            return of_pilot
        of_steps = variance_of_steps(left_out, self.steps)
        return of_steps if isinstance(of_steps, Undefined) else of_pilot + of_steps
