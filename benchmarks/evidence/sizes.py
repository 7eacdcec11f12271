"""How large each part is: seeds and counts in one place, for the whole measurement and for the form that the tests run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sizes:
    seeds: tuple[int, ...]
    """Of what is drawn or trained."""
    pairs: int
    """Held-out pairs of each model."""
    resamples: int
    """Bootstrap draws behind an interval."""


LONG = Sizes(seeds=(0, 1, 2, 3, 4), pairs=64, resamples=2000)
SHORT = Sizes(seeds=(0,), pairs=8, resamples=200)
