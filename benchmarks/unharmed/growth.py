"""3000 evaluations of one run, its looks stubbed: what an evaluation takes must not grow with the run.

Everything but the model's forwards is real: the guard, scoring, packing, the store, rules, trackers. The short form makes few
evaluations, every second one of them in a run that remembers 2000 others: what else the machine does slows both alike.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import os
import random
import resource
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training import Run

from i2am_debug import CapturePlan
from i2am_debug.demo.inpainting.pairs import validation_pairs
from i2am_debug.run.history import History

from .found import Found

_WINDOWS = 10
_REMEMBERED = 2000


def measure(*, long: bool) -> Found:
    """3000 evaluations of 8 pairs, medians of the second tenth and of the last one; 12 in the short form."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        callback = run.callback(
            pairs=validation_pairs(8, seed=11),
            plan=CapturePlan(sampler_steps=1),
            every_n_steps=1,
            pictures=0,
            panels=0,
            on_error="raise",
        )
        callback.on_train_begin(0)
        _stub(callback.monitor.evaluator)
        rows, ratio = _of_many(callback, 3000) if long else _with_a_long_history(callback, 12)
        run.accelerator.end_training()
    # The first window fills what is kept of the newest evaluations.
    first, last = rows[1], rows[-1]
    count, grown = last["evaluations"], last["MiB"] - first["MiB"]
    harm = [
        f"{what}: {first[what]} at first, {last[what]} at last"
        for what in ("open files", "threads")
        if last[what] > first[what]
    ]
    if ratio > 1.25:
        harm.append(f"an evaluation takes {ratio:.2f} times what it took at first")
    if grown > max(16, 0.03 * count):
        harm.append(f"{grown:.0f} MiB more after {count} evaluations")
    counted = {"time of an evaluation, late in a run against early": f"{ratio:.2f}", "MiB between": round(grown, 1)}
    return Found(rows=rows, harm=harm, counted=counted)


def _of_many(callback: Any, count: int) -> tuple[list[dict[str, Any]], float]:
    """A row a window, and the time of the last one's evaluations over that of the second one's."""
    rows, window = [], count // _WINDOWS
    for begin in range(1, count + 1, window):
        rows.append(_row(begin - 1 + window, [_of_one(callback, step) for step in range(begin, begin + window)]))
    return rows, rows[-1]["ms"] / rows[1]["ms"]


def _with_a_long_history(callback: Any, count: int) -> tuple[list[dict[str, Any]], float]:
    """A row for two evaluations, without and with many before them, and the time of the second ones over the first ones'."""
    reporter = callback.monitor.reporter
    short, long = reporter._history, _lengthened(reporter._history, _REMEMBERED)
    rows, without, with_many = [], [], []
    for step in range(1, count, 2):
        for offset, history, seconds in ((0, short, without), (_REMEMBERED, long, with_many)):
            reporter._history = history
            seconds.append(_of_one(callback, offset + step))
        rows.append(_row(step + 1, [without[-1], with_many[-1]]))
    return rows, float(np.median(with_many) / np.median(without))


def _lengthened(history: History, count: int) -> History:
    """As if so many evaluations like the newest one had followed it."""
    longer = copy.copy(history)
    newest, one = max(longer._by_step.items())
    longer._by_step = dict(longer._by_step)
    for step in range(newest + 1, newest + 1 + count):
        longer._by_step[step] = another = copy.copy(one)
        another.global_step = step
    return longer


def _row(evaluations: int, seconds: list[float]) -> dict[str, Any]:
    return {"evaluations": evaluations, "ms": round(1000 * float(np.median(seconds)), 1), **_taken()}


def _of_one(callback: Any, step: int) -> float:
    began = time.process_time()
    callback.on_step_end(step)
    return time.process_time() - began


def _stub(evaluator: Any) -> None:
    """Looks that cost nothing and differ a little: what was really seen of each pair, with a jitter on its loss."""
    rng, seen = random.Random(0), {}

    def observe(pipeline: Any, batch: Any, *, real: Any = evaluator.observe) -> Any:
        for index in batch:
            if index not in seen:
                seen.update({one.index: one for one in real(pipeline, batch)})
        return [replace(seen[index], loss=seen[index].loss * rng.uniform(0.99, 1.01)) for index in batch]

    evaluator.observe = observe


def _taken() -> dict[str, Any]:
    """What the process holds; memory that its allocator only keeps for later is given back first: it would hide what grows."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    statm = Path("/proc/self/statm").read_text().split()
    return {
        "MiB": int(statm[1]) * resource.getpagesize() / 2**20,
        "open files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }
