"""What looking costs a whole joint transformer: `python -m benchmarks.joint_model --json F`.

A small Flux: 2 double and 6 single blocks of 4 heads of 128 channels, 1024 generated and 1024 reference tokens beside 128 of
text, sampled in 20 steps with the default plan. It has fewer heads than the plan would choose among, so that all of them are
looked at: of a model of full size, one in fifteen. Looked at and not are run in turn in one process of one thread; a ratio is
of the CPU time of a whole sampling, the maps read out at its end included.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.measuring import paired_ratios

SIDE, TEXT, HEADS, CHANNELS, BLOCKS, STEPS = 32, 128, 4, 128, (2, 6), 20
RATIO = 1.02


def ways() -> tuple[Callable[[], Any], Callable[[], Any]]:
    """One sampling: not looked at, and looked at."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    from i2am_debug import CapturePlan, trace
    from i2am_debug.families.flux_kontext import FluxKontext

    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=BLOCKS[0],
        num_single_layers=BLOCKS[1],
        attention_head_dim=CHANNELS,
        num_attention_heads=HEADS,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        axes_dims_rope=(CHANNELS - 112, 56, 56),
    )
    pipeline = SimpleNamespace(
        transformer=transformer.eval().requires_grad_(False), scheduler=FlowMatchEulerDiscreteScheduler()
    )
    places = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE))
    picture_ids = [torch.cat([torch.full((len(places), 1), number), places], 1).float() for number in (0, 1)]
    given = {
        "encoder_hidden_states": torch.randn(1, TEXT, 64),
        "pooled_projections": torch.randn(1, 64),
        "txt_ids": torch.zeros(TEXT, 3),
        "img_ids": torch.cat(picture_ids),
    }
    noise, reference = torch.randn(2, 1, SIDE * SIDE, 64)

    def plain() -> None:
        scheduler, latents = pipeline.scheduler, noise
        scheduler.set_timesteps(STEPS)
        scheduler.set_begin_index(0)  # as pipelines do, since the denoiser's noise time is scaled
        with torch.no_grad():
            for t in scheduler.timesteps:
                both = torch.cat([latents, reference], 1)
                velocity = pipeline.transformer(hidden_states=both, timestep=t.expand(1) / 1000, **given).sample
                latents = scheduler.step(velocity[:, : SIDE * SIDE], t, latents).prev_sample

    def look() -> Any:
        with trace(pipeline, plan=CapturePlan(), family=FluxKontext()) as t:
            plain()
        assert not t.notes, t.notes
        return t.maps()

    return plain, look


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.joint_model", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="rounds of both ways (default: 3)")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args(argv)
    found: dict[str, Any] = paired_ratios(*ways(), args.rounds, time.process_time)
    ratios = found["ratios"]
    print(
        f"default plan, {STEPS} steps: {np.median(ratios):.3f} x ({min(ratios):.3f} to {max(ratios):.3f}; at most {RATIO})"
    )
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if np.median(ratios) <= RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
