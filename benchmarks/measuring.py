"""What the benchmarks of looking share: ways timed in turn, and the peaks of a process."""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections.abc import Callable
from pathlib import Path
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


def clock(device: str) -> Callable[[], float]:
    """Seconds of CPU time of this process; on CUDA, by the clock on the wall, when the device has done all it was given."""
    if device == "cpu":
        return time.process_time

    def when_done() -> float:
        import torch

        torch.cuda.synchronize()
        return time.perf_counter()

    return when_done


def grown_mib(plain: Callable[[], Any], other: Callable[[], Any], device: str = "cpu") -> float:
    """MiB by which `other` takes this process's peak beyond that of `plain`; both have run once before.

    Linux resets the peak when told to, so that what was held earlier, as by imports, hides nothing. On CUDA it is the peak
    of what torch has handed out on the device.
    """
    plain(), other()
    if device == "cuda":
        return _peak_on_cuda(other) - _peak_on_cuda(plain)
    peaks = []
    for work in (plain, other):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        work()
        peaks.append(int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
    return peaks[1] - peaks[0]


def _peak_on_cuda(work: Callable[[], Any]) -> float:
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**20
