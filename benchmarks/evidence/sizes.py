"""How large each part is: seeds and counts in one place, for the whole measurement and for the form that the tests run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sizes:
    seeds: tuple[int, ...]
    """Of what is drawn or trained."""
    pairs: int
    """Held-out pairs of each model."""
    resamples: int
    """Bootstrap draws behind an interval."""
    deleted_pairs: Mapping[str, int]
    """Of those, the ones whose reference tokens are deleted one by one and in many orders: by model; some
    thousand forwards each."""
    noise_times: tuple[float, ...]
    """At which a model is teacher-forced there."""
    random_orders: int
    """Of deletion, a pair."""
    looked_at: int
    """Pairs of which smaller looks are made, eight at a time."""
    draws: int
    """Smaller looks of each plan, each with another seed."""
    many: int
    """Pairs that few are drawn of."""
    trials: int
    """So often a few are drawn of them."""
    trained_seeds: tuple[int, ...]
    """Of inpainting models trained from scratch, each design with each."""
    trained_steps: int
    checkpoints: int
    """Of each training."""
    processes: int | None
    """That train at once, one thread each; None: one a core."""


LONG = Sizes(
    seeds=(0, 1, 2, 3, 4),
    pairs=64,
    resamples=2000,
    deleted_pairs={"inpainting": 32, "edit": 64},
    noise_times=(1.0, 0.5),
    random_orders=5,
    looked_at=16,
    draws=20,
    many=256,
    trials=1000,
    trained_seeds=tuple(range(5)),
    trained_steps=800,
    checkpoints=10,
    processes=None,
)
SHORT = Sizes(
    seeds=(0,),
    pairs=8,
    resamples=200,
    deleted_pairs={"inpainting": 1, "edit": 1},
    noise_times=(0.5,),
    random_orders=2,
    looked_at=8,
    draws=2,
    many=16,
    trials=50,
    trained_seeds=(0,),
    trained_steps=2,
    checkpoints=2,
    processes=1,
)
