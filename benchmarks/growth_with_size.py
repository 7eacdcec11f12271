"""How looking grows with what is looked at: `python -m benchmarks.growth_with_size --json F`.

Both directions, rows and regions of one forward, without the model: for pairs, heads, layers and tokens, each doubled (tokens:
doubled in both directions of both pictures, 256 to 16384) while the others stay. Time is CPU time of one thread and must not
grow faster than the number of (generated, reference) token pairs that are looked at, G·R for each head: the exponent, by least
squares of the logarithms. Memory is counted on the meta device, where the very code runs on tensors without numbers: what it
works in, beyond what is kept and what it was given, must stay below a limit at every size.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.real_sizes import Counted
from i2am_debug.capture.accumulate import Accumulator
from i2am_debug.capture.attention import attribute
from i2am_debug.capture.plan import CapturePlan
from i2am_debug.capture.product import Buffers

EXPONENT, MIB = 1.1, 64
CHANNELS = 64
LEAST = {"pairs": 1, "heads": 2, "layers": 1, "side": 32}
AXES = {"pairs": (1, 2, 4, 8), "heads": (2, 4, 8, 16), "layers": (1, 2, 4, 8), "side": (16, 32, 64, 128)}


class Look:
    """All that looking does with the products of one forward."""

    def __init__(self, *, pairs: int, heads: int, layers: int, side: int, device: str = "cpu") -> None:
        self.layers, self.grid, self.heads = layers, (side, side), dict.fromkeys(range(heads), 1.0)
        random = torch.Generator().manual_seed(0)
        self.q, self.k = (
            torch.empty(pairs, heads, side * side, CHANNELS, device=device)
            if device == "meta"
            else torch.randn(pairs, heads, side * side, CHANNELS, generator=random)
            for _ in range(2)
        )
        self.region = torch.ones(pairs, side * side, device=device)
        self.accumulator, self.buffers = Accumulator(CapturePlan.full()), Buffers()

    def __call__(self) -> None:
        grids, heads = (self.grid, self.grid), self.heads
        for layer in map(str, range(self.layers)):
            size = {"images": len(self.q), "all_heads": len(heads), "device": self.q.device}
            found = attribute(
                self.q,
                self.k,
                query_weight_BG=self.region,
                key_weight_BR=self.region,
                rows=self.accumulator.rows(layer, 0, grids, heads, **size),
                buffers=self.buffers,
            )
            self.accumulator.add(layer, 0, grids, heads, found)


def products(size: Mapping[str, int]) -> int:
    """How many (generated, reference) pairs of tokens there are in all."""
    return size["pairs"] * size["heads"] * size["layers"] * size["side"] ** 4


def seconds(size: Mapping[str, int], repeats: int) -> float:
    """The least CPU time of some looks, after one that makes what is made once."""
    look = Look(**size)
    times = []
    for _ in range(1 + repeats):
        started = time.process_time()
        look()
        times.append(time.process_time() - started)
    return min(times[1:])


def working_mib(size: Mapping[str, int]) -> tuple[float, float]:
    """MiB worked in at the peak beyond what is given and kept, and MiB kept."""
    with mock.patch("torch.autocast", lambda *_, **__: nullcontext()), torch.no_grad(), Counted() as counter:
        look = Look(**size, device="meta")
        given = counter.held
        look()
        look.buffers = Buffers()  # is no longer held
        kept = counter.held - given
    return (counter.peak - kept - given) / 2**20, kept / 2**20


def measured(axis: str, values: tuple[int, ...], repeats: int) -> dict[str, Any]:
    sizes = [{**LEAST, axis: value} for value in values]
    took = [seconds(size, repeats if products(size) < 2**27 else 1) for size in sizes]
    memory = [working_mib(size) for size in sizes]
    exponent = float(np.polyfit(np.log([products(size) for size in sizes]), np.log(took), 1)[0])
    return {
        "values": [value**2 if axis == "side" else value for value in values],
        "seconds": took,
        "nanoseconds_each": [1e9 * one / products(size) for one, size in zip(took, sizes, strict=True)],
        "exponent": exponent,
        "working_mib": [one for one, _ in memory],
        "kept_mib": [kept for _, kept in memory],
        "reached": exponent <= EXPONENT and max(one for one, _ in memory) <= MIB,
    }


def row(axis: str, found: Mapping[str, Any]) -> str:
    name = "tokens" if axis == "side" else axis
    each = ", ".join(
        f"{value}: {1e3 * took:.1f} ms, {working:.0f} MiB"
        for value, took, working in zip(found["values"], found["seconds"], found["working_mib"], strict=True)
    )
    return f"{name}: {each}; exponent {found['exponent']:.2f}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth_with_size", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--repeats", type=int, default=5, help="looks of each size, of which the fastest counts")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = {}
    for axis, values in AXES.items():
        found[axis] = measured(axis, values, args.repeats)
        print(row(axis, found[axis]), flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    missed = [axis for axis, one in found.items() if not one["reached"]]
    print(
        f"exponents of at most {EXPONENT} and {MIB} MiB: "
        + (f"not reached by {missed}" if missed else "reached by all")
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
