"""At which noise times a pair is looked at, and for how many times each of them stands. Knows no model.

A noise time is a share of the whole: 1 is pure noise, 0 the clean picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_OF_A_GAP = 0.35
"""Where a second time tells most of what the reference is worth: with 1 it gives the mean gap over all times to 4 % on the
tiny model (correlation over pairs .995)."""


def noise_times(count: int) -> tuple[float, ...]:
    """`count` noise times, the noisiest first: the middles of as many equal stretches, the first of them moved to 1.

    Every sampler begins at pure noise, which no truth has to be mixed into, so that its own first input is right there.
    """
    return (1.0, *((count - i - 0.5) / count for i in range(1, count)))


def weights(times: Sequence[float]) -> list[float]:
    """What each time counts in a mean over all: the share of noise times that are nearest to it. They sum to 1."""
    edges = [1.0, *((a + b) / 2 for a, b in pairwise(times)), 0.0]
    return [upper - lower for upper, lower in pairwise(edges)]


def over_times(shares: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
    """The mean over the first axis, each with its share; in the losses' own precision, whatever autocast is on around us."""
    import torch

    with torch.autocast(losses.device.type, enabled=False):
        return torch.tensordot(shares.to(losses.device), losses, 1)


def times_of_a_gap(times: Sequence[float]) -> list[int]:
    """Numbers of the two times at which other references are tried: the first, and the one nearest to a third."""
    return sorted({0, min(range(len(times)), key=lambda i: abs(times[i] - _OF_A_GAP))})
