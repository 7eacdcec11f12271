"""3000 evaluations of one run, its looks stubbed: what an evaluation takes must not grow with the run.

Everything but the model's forwards is real: the guard, scoring, packing, the store, rules, trackers.
"""

from __future__ import annotations

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

from .found import Found

_WINDOWS = 10


def measure(*, long: bool) -> Found:
    """3000 evaluations of 8 pairs, in the short form 30; medians of the first tenth and of the last one."""
    torch.set_num_threads(1)
    count = 3000 if long else 30
    window = count // _WINDOWS
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
        rows = []
        for begin in range(1, count + 1, window):
            seconds = [_of_one(callback, step) for step in range(begin, begin + window)]
            rows.append(
                {"evaluations": begin - 1 + window, "ms": round(1000 * float(np.median(seconds)), 1), **_taken()}
            )
        run.accelerator.end_training()
    # The first window fills what is kept of the newest evaluations.
    first, last = rows[1], rows[-1]
    ratio, grown = last["ms"] / first["ms"], last["MiB"] - first["MiB"]
    harm = [
        f"{what}: {first[what]} at first, {last[what]} at last"
        for what in ("open files", "threads")
        if last[what] > first[what]
    ]
    if ratio > 1.25:
        harm.append(f"an evaluation takes {ratio:.2f} times what it took at first")
    if grown > max(16, 0.03 * count):
        harm.append(f"{grown:.0f} MiB more after {count} evaluations")
    counted = {"time of an evaluation, last tenth against second": f"{ratio:.2f}", "MiB between": round(grown, 1)}
    return Found(rows=rows, harm=harm, counted=counted)


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
    statm = Path("/proc/self/statm").read_text().split()
    return {
        "MiB": int(statm[1]) * resource.getpagesize() / 2**20,
        "open files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }
