"""What the benchmarks of looking share: ways timed in turn, and the peak of a process."""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Any


def paired_ratios(
    plain: Callable[[], Any], other: Callable[[], Any], rounds: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """Seconds of both ways, run in turn and each first in every second round, and their ratio in each round."""
    plain(), other()  # what is done once is not counted
    seconds: dict[str, list[float]] = {"plain": [], "other": []}
    for number in range(rounds):
        ways = [("plain", plain), ("other", other)]
        for name, work in ways if number % 2 == 0 else reversed(ways):
            started = clock()
            work()
            seconds[name].append(clock() - started)
    ratios = [b / a for a, b in zip(seconds["plain"], seconds["other"], strict=True)]
    return {"plain_s": seconds["plain"], "looking_s": seconds["other"], "ratios": ratios}


def peak_mib() -> float:
    """The most memory this process has held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
