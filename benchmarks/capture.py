"""What looking costs a UNet under guidance: `python -m benchmarks.capture --json F`.

37.5 million parameters, 16 cross-attention layers of 8 heads over 257 reference tokens, pictures of 256x256, a guidance batch
of 2. Both ways run in turn in one process, one thread; a ratio is of the CPU time of one round. Looking includes both ways,
regions, rows and the maps of every level read out at the end. Memory is the growth of a process's peak over what the model
itself needs, each way in a process of its own. `--device cuda` takes the time on the wall; `--size real` a UNet of Stable
Diffusion 1.5's size in bfloat16, on pictures of 512x512.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.measuring import clock, grown_mib, paired_ratios

TOKENS, TEXT = 257, 768


@dataclass(frozen=True)
class Size:
    """Of a UNet, and of its latents."""

    side: int
    channels: tuple[int, ...]
    dtype: str


SIZES = {"small": Size(32, (64, 128, 256, 256), "float32"), "real": Size(64, (320, 640, 1280, 1280), "bfloat16")}


@dataclass(frozen=True)
class Way:
    """One plan, and what it may cost: times the unhooked time, and MiB."""

    steps: int
    ratio: float
    mib: float


WAYS = {"full": Way(4, 1.08, 16), "default": Way(20, 1.01, 4)}


class Sampling:
    """A UNet and a scheduler, run as a pipeline would run them."""

    def __init__(self, steps: int, device: str = "cpu", size: str = "small") -> None:
        import torch
        from diffusers import DDIMScheduler, UNet2DConditionModel

        torch.set_num_threads(1)
        torch.manual_seed(0)
        side, channels, dtype = SIZES[size].side, SIZES[size].channels, getattr(torch, SIZES[size].dtype)
        unet = UNet2DConditionModel(
            sample_size=side,
            in_channels=4,
            out_channels=4,
            cross_attention_dim=TEXT,
            block_out_channels=channels,
            layers_per_block=2,
            attention_head_dim=8,
        ).to(device, dtype)
        self.pipeline = SimpleNamespace(unet=unet.eval().requires_grad_(False), scheduler=DDIMScheduler())
        self.steps = steps
        self.latents = torch.randn(1, 4, side, side).to(device, dtype)
        picture = torch.randn(1, TOKENS, TEXT)
        self.states = torch.cat([torch.zeros_like(picture), picture]).to(device, dtype)
        self.masks = dict(mask=_middle(8 * side), reference_mask=_middle(8 * side))

    def plain(self) -> None:
        import torch

        unet, scheduler = self.pipeline.unet, self.pipeline.scheduler
        scheduler.set_timesteps(self.steps)
        latents = self.latents
        with torch.no_grad():
            for t in scheduler.timesteps:
                without, with_picture = unet(latents.repeat(2, 1, 1, 1), t, self.states).sample.chunk(2)
                latents = scheduler.step(without + 2 * (with_picture - without), t, latents).prev_sample

    def look(self, plan: Any, heads: Any = None) -> Any:
        from i2am_debug import trace
        from i2am_debug.families.unet_cross_attention import UNetCrossAttention

        with trace(self.pipeline, plan=plan, family=UNetCrossAttention(), heads=heads, **self.masks) as t:
            self.plain()
        return t.maps()


def chosen_heads(way: str, *made: str) -> Any:
    """What a pilot chooses, once a run; None where the plan looks at all heads. `made`: device and size."""
    from i2am_debug import CapturePlan
    from i2am_debug.capture.plan import choose_heads

    return (
        None if way == "full" else choose_heads(Sampling(1, *made).look(CapturePlan.full()).information, CapturePlan())
    )


def looking(sampling: Sampling, way: str, heads: Any) -> Callable[[], Any]:
    """A function that runs the sampling and looks at it that way."""
    from i2am_debug import CapturePlan

    plan = CapturePlan.full() if way == "full" else CapturePlan()
    return lambda: sampling.look(plan, heads)


def grown(way: str, heads: Any, *made: str) -> float:
    """MiB by which looking that way raises a process's peak over the model's own; run in a fresh one."""
    sampling = Sampling(WAYS[way].steps, *made)
    return grown_mib(sampling.plain, looking(sampling, way, heads), made[0])


def grown_in_a_fresh_process(way: str, heads: Any, *made: str) -> float:
    command = [sys.executable, "-m", "benchmarks.capture", "--memory-of", json.dumps([way, heads, *made])]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _middle(side: int) -> np.ndarray:
    mask = np.zeros((side, side), dtype=bool)
    mask[side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = True
    return mask


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capture", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each way (default: 9)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=SIZES, default="small", help="of the UNet (default: small)")
    parser.add_argument("--memory-of", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.memory_of:
        way, heads, *made = args.memory_of
        by_number = heads and {layer: {int(h): w for h, w in of.items()} for layer, of in heads.items()}
        print(json.dumps(grown(way, by_number, *made)))
        return 0
    found: dict[str, Any] = {}
    for name in args.ways:
        way, made = WAYS[name], (args.device, args.size)
        sampling, heads = Sampling(way.steps, *made), chosen_heads(name, *made)
        found[name] = paired_ratios(sampling.plain, looking(sampling, name, heads), args.rounds, clock(args.device))
        found[name]["mib"] = grown_in_a_fresh_process(name, heads, *made)
        ratios = found[name]["ratios"]
        print(
            f"{name}, {way.steps} steps: {np.median(ratios):.3f} x ({min(ratios):.3f} to {max(ratios):.3f}; at most "
            f"{way.ratio}), {found[name]['mib']:.1f} MiB (at most {way.mib})",
            flush=True,
        )
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    kept = all(
        np.median(one["ratios"]) <= WAYS[name].ratio and one["mib"] <= WAYS[name].mib for name, one in found.items()
    )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
