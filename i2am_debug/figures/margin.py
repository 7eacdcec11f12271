"""How far a figure may go in its bad direction before that is a drop. Plain values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


def is_number(value: Any) -> bool:
    """A finite number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


@dataclass(frozen=True, kw_only=True)
class Margin:
    """How far a figure's mean may go in its bad direction before that is a drop."""

    value: float
    relative: bool = False
    """Whether `value` is a share of the size of the baseline's mean."""

    def __post_init__(self) -> None:
        if not (is_number(self.value) and self.value > 0):
            raise ValueError(f"margin {self.value!r}: expected a number above 0")

    @classmethod
    def parse(cls, given: Any) -> Margin:
        """0.03, "0.03" or "10%"."""
        if isinstance(given, Margin):
            return given
        if isinstance(given, str):
            text = given.strip()
            try:
                return cls(value=float(text.rstrip("% ")) / (100 if text.endswith("%") else 1), relative="%" in text)
            except ValueError:
                raise ValueError(f'margin {given!r}: expected a number above 0, as in 0.03 or "10%"') from None
        return cls(value=given)

    def of(self, level: float) -> float:
        """In the figure's own units, against a baseline mean of `level`."""
        return self.value * abs(level) if self.relative else self.value

    def times(self, factor: float) -> Margin:
        """So many margins."""
        return Margin(value=factor * self.value, relative=self.relative)

    def to_json(self) -> float | str:
        """What `parse` takes."""
        return f"{self.value * 100:.6g}%" if self.relative else self.value

    def __str__(self) -> str:
        return f"{self.value * 100:.3g}%" if self.relative else f"{self.value:.3g}"
