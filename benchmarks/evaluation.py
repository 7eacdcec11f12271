"""What one evaluation costs, against sampling its pairs with 20 steps: `python -m benchmarks.evaluation --json F`.

16 pairs, default plan, no `loss_fn`: the pipeline's own call, teacher-forced, with another and with a blank reference, scored.
Both ways run in turn in one process; ratios are of CPU time (on CUDA of wall time, synchronised) of the same round. Models:
the two demos, and a UNet of 34 million parameters (with --size real: as large as Stable Diffusion 1.5's) that reads 257 image
tokens beside its text under classifier-free guidance, on pictures of 256x256 (512x512).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from i2am_debug import ValidationPairs
from i2am_debug.demo.demo_model import demo_model
from i2am_debug.evaluation.evaluator import Evaluator

PAIRS, STEPS = 16, 20

sys.path[:0] = ["tests", "tests/families"]  # where the tiny parts of a complete pipeline are built
_SIZES = {
    "small": dict(block_out_channels=(64, 128, 256, 256), layers_per_block=2, attention_head_dim=8),
    "real": dict(block_out_channels=(320, 640, 1280, 1280), layers_per_block=2, attention_head_dim=8),
}


def guided_unet(size: str, device: str, dtype: torch.dtype) -> tuple[Any, ValidationPairs]:
    """StableDiffusionPipeline with IP-Adapter full: 257 tokens of the picture."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from pipelines import stable_diffusion as parts
    from pipelines.case import pair

    small = parts.unet
    parts.unet = lambda channels=4: UNet2DConditionModel(
        sample_size=32, in_channels=channels, out_channels=4, cross_attention_dim=parts.TEXT, **_SIZES[size]
    )
    try:
        pipeline = parts.sd(StableDiffusionPipeline, kind="full").to(device, dtype)
    finally:
        parts.unet = small
    side = 256 if size == "small" else 512
    return pipeline, ValidationPairs([pair(number, size=(side, side)) for number in range(PAIRS)])


def demo(name: str, device: str) -> tuple[Any, ValidationPairs]:
    model = demo_model(name)
    pipeline = model.load(device=device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, model.validation_pairs()


def measured(pipeline: Any, pairs: ValidationPairs, device: str, rounds: int, batch_size: int) -> dict[str, Any]:
    evaluator = Evaluator(pairs=pairs, batch_size=batch_size)
    evaluator.check(pipeline)
    evaluator.prepare(pipeline)
    assert evaluator.chosen is not None and evaluator.chosen.name == "teacher_forcing", evaluator.chosen
    sampler = Evaluator(pairs=pairs, way="sampling", num_inference_steps=STEPS)

    def evaluate() -> None:
        seen = [one for batch in evaluator.batches for one in evaluator.observe(pipeline, batch)]
        evaluator.score(seen, global_step=0, pipeline=pipeline, baseline=None)

    def sample() -> None:
        for index in range(len(pairs)):
            sampler.sample(pipeline, index)

    evaluate()  # what is done once a run is not an evaluation's
    own, other = [], []
    for _ in range(rounds):
        own.append(seconds(evaluate, device))
        other.append(seconds(sample, device))
    ratios = np.array(own) / np.array(other)
    out = {"evaluation_s": own, "sampling_s": other, "ratio": float(np.median(ratios)), "ratios": ratios.tolist()}
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
        evaluate()
        looking = torch.cuda.max_memory_allocated() - base
        torch.cuda.reset_peak_memory_stats()
        sample()
        out["memory_mib"] = {
            "evaluation": looking / 2**20,
            "sampling": (torch.cuda.max_memory_allocated() - base) / 2**20,
        }
    return out


def seconds(work: Callable[[], None], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - started
    started = time.process_time()
    work()
    return time.process_time() - started


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="where to write all figures")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=tuple(_SIZES), default="small", help="of the UNet (default: small)")
    args = parser.parse_args(argv)
    if args.device == "cpu":
        torch.set_num_threads(1)
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    found = {}
    for name, build, batch_size in (
        ("inpainting demo, 16 pairs at once", lambda: demo("inpainting", args.device), PAIRS),
        ("inpainting demo, pair by pair", lambda: demo("inpainting", args.device), 1),
        ("editing demo, 16 pairs at once", lambda: demo("edit", args.device), PAIRS),
        ("editing demo, pair by pair", lambda: demo("edit", args.device), 1),
        (f"guided UNet ({args.size})", lambda: guided_unet(args.size, args.device, dtype), 1),
    ):
        pipeline, pairs = build()
        found[name] = measured(pipeline, pairs, args.device, args.rounds, batch_size)
        one = found[name]
        print(
            f"{name}: {np.median(one['evaluation_s']):.2f} s against {np.median(one['sampling_s']):.2f} s, "
            f"{one['ratio']:.3f} x ({min(one['ratios']):.3f} to {max(one['ratios']):.3f}) {one.get('memory_mib', '')}",
            flush=True,
        )
    args.json.write_text(json.dumps({"device": args.device, "torch": torch.__version__, "found": found}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
