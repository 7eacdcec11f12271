"""A mean over pairs and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .intervals import mean_intervals
from .stored_form import entry, finite_or_none, number, whole_number


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over pairs and how sure it is."""

    mean: float
    low: float | None
    """Lower end of the 95 % interval over pairs; None with fewer than two pairs."""
    high: float | None
    pairs: int
    """How many pairs have a value."""
    sampling: float | None = None
    """Half the 95 % interval from looking at some heads and noise times only, beside that over pairs; None: not known."""

    @classmethod
    def from_json(cls, row: Any, where: str) -> Estimate:
        """Of its fields by name.

        Raises:
            ValueError: one is missing or no number; names `where` it stands.
        """
        ends = {key: entry(row, key, finite_or_none, where) for key in ("low", "high")}
        pairs = entry(row, "pairs", whole_number, where)
        sampling = finite_or_none(row.get("sampling"), f"{where}/sampling")
        return cls(mean=entry(row, "mean", number, where), pairs=pairs, sampling=sampling, **ends)

    def __str__(self) -> str:
        digits = _decimals(self.mean)
        part = f" ± {self.sampling:.2g}" if self.sampling else ""  # 0: all there is was looked at
        if self.low is None or self.high is None:
            return f"{self.mean:{digits}}{part} (one pair)"
        return f"{self.mean:{digits}} [{self.low:{digits}}, {self.high:{digits}}]{part}"


def estimates(columns: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
    """Name → `Estimate` of a column of values, one a pair, NaN where a pair has none; columns without any are left out."""
    kept = {name: values for name, values in columns.items() if np.isfinite(values).any()}
    if not kept:
        return {}
    lows, highs = mean_intervals(np.stack(list(kept.values()), axis=1)).tolist()
    return {
        name: Estimate(
            mean=float(np.mean(values[np.isfinite(values)])),
            low=None if math.isnan(low) else low,
            high=None if math.isnan(high) else high,
            pairs=int(np.isfinite(values).sum()),
        )
        for (name, values), low, high in zip(kept.items(), lows, highs, strict=True)
    }


def _decimals(value: float) -> str:
    """Format of three decimals, or of three digits of what is smaller: the size of a loss is the user's own."""
    if value == 0 or abs(value) >= 0.1:
        return ".3f"
    return f".{2 - math.floor(math.log10(abs(value)))}f" if abs(value) >= 1e-6 else ".3g"
