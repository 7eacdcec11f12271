"""What looking costs a whole joint transformer: `python -m benchmarks.joint_model --json F`.

A small Flux: 2 double and 6 single blocks of 4 heads of 128 channels, 1024 generated and 1024 reference tokens beside 128 of
text, sampled in 20 steps with the default plan. It has fewer heads than the plan would choose among, so that all of them are
looked at: of a model of full size, one in fifteen. Looked at and not are run in turn in one process of one thread; a ratio is
of the CPU time of a whole sampling, the maps read out at its end included. `--size real --device cuda`: a Flux of full size,
1024x1024 from 1024x1024, in bfloat16, by the clock on the wall; it takes 30 GiB of the device.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.measuring import clock, paired_ratios

CHANNELS, STEPS = 128, 20
RATIO = 1.02


@dataclass(frozen=True)
class Size:
    """Of a Flux and of its latents; `width`: of the text's tokens."""

    side: int
    text: int
    heads: int
    blocks: tuple[int, int]
    width: int
    dtype: str


SIZES = {"small": Size(32, 128, 4, (2, 6), 64, "float32"), "real": Size(64, 512, 24, (19, 38), 4096, "bfloat16")}


def ways(name: str = "small", device: str = "cpu") -> tuple[Callable[[], Any], Callable[[], Any]]:
    """One sampling: not looked at, and looked at."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    from i2am_debug import CapturePlan, trace
    from i2am_debug.capture.plan import choose_heads
    from i2am_debug.families.flux_kontext import FluxKontext

    size = SIZES[name]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, size.dtype))  # a model of full size is made as it is kept
    with torch.device(device):
        transformer = FluxTransformer2DModel(
            in_channels=64,
            num_layers=size.blocks[0],
            num_single_layers=size.blocks[1],
            attention_head_dim=CHANNELS,
            num_attention_heads=size.heads,
            joint_attention_dim=size.width,
            pooled_projection_dim=64,
            axes_dims_rope=(CHANNELS - 112, 56, 56),
        )
        places = torch.cartesian_prod(torch.arange(size.side), torch.arange(size.side))
        picture_ids = [torch.cat([torch.full((len(places), 1), number), places], 1).float() for number in (0, 1)]
        given = {
            "encoder_hidden_states": torch.randn(1, size.text, size.width),
            "pooled_projections": torch.randn(1, 64),
            "txt_ids": torch.zeros(size.text, 3),
            "img_ids": torch.cat(picture_ids),
        }
        noise, reference = torch.randn(2, 1, len(places), 64)
    torch.set_default_dtype(before)
    pipeline = SimpleNamespace(
        transformer=transformer.eval().requires_grad_(False), scheduler=FlowMatchEulerDiscreteScheduler()
    )

    def sample(steps: int) -> None:
        scheduler, latents = pipeline.scheduler, noise
        scheduler.set_timesteps(steps, device=device)
        scheduler.set_begin_index(0)  # as pipelines do, since the denoiser's noise time is scaled
        with torch.no_grad():
            for t in scheduler.timesteps:
                both = torch.cat([latents, reference], 1)
                now = t.expand(1).to(both.dtype) / 1000
                velocity = pipeline.transformer(hidden_states=both, timestep=now, **given).sample
                latents = scheduler.step(velocity[:, : len(places)], t, latents).prev_sample

    with trace(pipeline, plan=CapturePlan.full(), family=FluxKontext()) as pilot:
        sample(1)
    heads = choose_heads(pilot.maps().information, CapturePlan())

    def plain() -> None:
        sample(STEPS)

    def look() -> Any:
        with trace(pipeline, plan=CapturePlan(), family=FluxKontext(), heads=heads) as t:
            plain()
        assert not t.notes, t.notes
        return t.maps()

    return plain, look


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.joint_model", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=SIZES, default="small", help="of the model (default: small)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of both ways (default: 3)")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args(argv)
    found: dict[str, Any] = paired_ratios(*ways(args.size, args.device), args.rounds, clock(args.device))
    ratios = found["ratios"]
    print(
        f"default plan, {STEPS} steps: {np.median(ratios):.3f} x ({min(ratios):.3f} to {max(ratios):.3f}; at most {RATIO})"
    )
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if np.median(ratios) <= RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
