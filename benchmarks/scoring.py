"""What a pair costs when its attention is summed up: `python -m benchmarks.scoring --json F`.

Maps read out, every figure scored, arrays packed: CPU seconds of one thread for each pair, and what its maps hold until all
pairs are scored. The sums are of random numbers, as many as two models leave of a pair: a UNet (16 layers of 8 heads, 32x32
to 4x4 tokens, over 16x16) and a joint transformer of Flux Kontext's size (57 layers, two heads looked at, 64x64 tokens over
64x64); pictures of several sizes, both with a mask. Two forwards' worth of steps or one makes no difference to these costs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from i2am_debug import CapturePlan, ValidationPair
from i2am_debug.capture.accumulate import Accumulator
from i2am_debug.capture.attention import Attribution, map_places
from i2am_debug.figures.observation import Observation
from i2am_debug.figures.sampling_error import Sampled
from i2am_debug.figures.scores import IMACSSettings
from i2am_debug.figures.scoring import score
from i2am_debug.store.packing import pack_observations

PAIRS, STEPS = 2, 4
SECONDS, MIB = 0.75, 256  # of a pair, at most
SIDES = (64, 256, 512, 1024)
COUNTED = 4  # runs, of which the fastest counts


@dataclass(frozen=True)
class Model:
    """What is looked at of it."""

    generated: tuple[int, ...]
    """Tokens a side of each layer's picture."""
    reference: int
    heads: Mapping[int, float]
    all_heads: int


MODELS = {
    "unet": Model((32, 32, 16, 16, 8, 8, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32), 16, dict.fromkeys(range(8), 1.0), 8),
    "joint": Model((64,) * 57, 64, {3: 1.0, 7: 23.0}, 24),
}


def summed(model: Model) -> Accumulator:
    """As if the model had been looked at."""
    accumulator, random = Accumulator(CapturePlan.full()), torch.Generator().manual_seed(0)
    for step in range(STEPS):
        for number, side in enumerate(model.generated):
            layer, grids = f"layer.{number}", ((side, side), (model.reference, model.reference))
            where = {"images": PAIRS, "all_heads": model.all_heads, "device": torch.device("cpu")}
            rows = accumulator.rows(layer, step, grids, model.heads, **where)
            for sums in (rows.mean_Bgr, rows.heads_BNgr, rows.step_Bgr):
                sums += torch.rand(sums.shape[-2:], generator=random) / sums.shape[-1]
            places = map_places(side**2, model.reference**2, True)
            maps = torch.rand(PAIRS, len(model.heads), max(p.stop for p in places.values()), generator=random)
            found = Attribution(maps_BNX=maps, places=places, log_normaliser_BNG=maps[..., : side**2])
            accumulator.add(layer, step, grids, model.heads, found)
    return accumulator


def pair(folder: Path, side: int) -> ValidationPair:
    picture, mask = folder / f"{side}.png", folder / f"{side} mask.png"
    Image.linear_gradient("L").resize((side, side)).convert("RGB").save(picture)
    inside = np.zeros((side, side), np.uint8)
    inside[side // 4 : side // 2, side // 4 : 3 * side // 4] = 255
    Image.fromarray(inside).save(mask)
    return ValidationPair(name=f"{side}", target=picture, reference=picture, mask=mask, reference_mask=mask, prompt="a")


def held_mib(maps: Any) -> float:
    """Of all arrays and tensors in it."""
    if isinstance(maps, np.ndarray | torch.Tensor):
        return maps.nbytes / 2**20
    if is_dataclass(maps):
        return sum(held_mib(getattr(maps, field.name)) for field in fields(maps))
    parts = getattr(maps, "held", maps)  # rows that are made when they are asked for
    if isinstance(parts, Mapping):
        return sum(map(held_mib, parts.values()))
    return sum(map(held_mib, parts)) if isinstance(parts, tuple | list) else 0.0


def seconds(work: Callable[[], Any]) -> float:
    took = []
    for _ in range(COUNTED):
        started = time.process_time()
        work()
        took.append((time.process_time() - started) / PAIRS)
    return min(took)


def measured(model: Model, sides: Sequence[int]) -> dict[str, Any]:
    accumulator = summed(model)

    def read() -> list[Any]:
        accumulator._readout = None
        return [accumulator.maps(image, STEPS) for image in range(PAIRS)]

    maps = read()
    seen = [
        Observation(index=i, maps=one, generated=None, loss=0.1, wrong_reference_loss=0.2) for i, one in enumerate(maps)
    ]
    found = {"read_s": seconds(read), "packed_s": seconds(lambda: pack_observations(seen, "layer.0"))}
    found["held_mib"] = held_mib(maps) / PAIRS
    scored: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for side in sides:
            pairs = [pair(Path(folder), side)] * PAIRS
            how = {"settings": IMACSSettings(), "sampled": lambda _: Sampled(steps=10**6), "baseline": {}}
            scored[side] = seconds(lambda pairs=pairs, how=how: score(seen, pairs, **how))
    found["scored_s"] = scored
    found["reached"] = found["read_s"] + max(scored.values()) <= SECONDS and found["held_mib"] <= MIB
    return found


def line(name: str, found: Mapping[str, Any]) -> str:
    by_side = ", ".join(f"{side} px {1e3 * took:.0f} ms" for side, took in found["scored_s"].items())
    return (
        f"{name}, each pair: read {1e3 * found['read_s']:.0f} ms; scored at {by_side}; "
        f"packed {1e3 * found['packed_s']:.0f} ms; {found['held_mib']:.0f} MiB held"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: all")
    parser.add_argument("--sides", nargs="+", type=int, default=list(SIDES), help="of the pictures, in pixels")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = {}
    for name in args.models:
        found[name] = measured(MODELS[name], args.sides)
        print(line(name, found[name]), flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    missed = [name for name, one in found.items() if not one["reached"]]
    print(
        f"at most {SECONDS} s a pair in the training thread and {MIB} MiB: "
        + (f"not reached: {', '.join(missed)}" if missed else "reached by all")
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
