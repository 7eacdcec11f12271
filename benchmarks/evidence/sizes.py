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
    looked_at: int
    """Pairs of which smaller looks are made, eight at a time."""
    draws: int
    """Smaller looks of each plan, each with another seed."""
    many: int
    """Pairs that few are drawn of."""
    trials: int
    """So often a few are drawn of them."""


LONG = Sizes(seeds=(0, 1, 2, 3, 4), pairs=64, resamples=2000, looked_at=16, draws=20, many=256, trials=1000)
SHORT = Sizes(seeds=(0,), pairs=8, resamples=200, looked_at=8, draws=2, many=16, trials=50)
