"""What watching costs a training run: `python -m benchmarks.training --json F`.

Two fine-tunes of a tiny model in one process, from the same seed, one of them watched with the callback's defaults and
evaluated every 100 steps; they go on in turn, 100 steps each, and each goes first in every second round. A round begins
half-way between two evaluations and ends once all that was seen in it is written, so that what is done by the thread that
writes and draws counts for the run it is done for. It tells, each as a ratio of the watched run to the other:

- CPU time in all: of the process, every thread's; of the training steps without the calls of the callback.
- the training thread's time: what it computed itself, and on the wall from the first step to the last, the calls included.
- the step that follows an evaluation, while another thread writes.

A tiny model's steps are short beside an evaluation, so it also says how long they would have to be. `--model real` trains an
IP-Adapter on a UNet of Stable Diffusion 1.5's size, 512x512, four pictures a step, in bfloat16: for CUDA, where only the wall
counts.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from i2am_debug.callbacks import I2AMCallback

from benchmarks.evaluation import guided_unet
from i2am_debug import ValidationPairs
from i2am_debug.demo.demo_model import demo_model
from i2am_debug.demo.finetune import fine_tune, new_accelerator

RATIO = 1.02
_PICTURES = 4  # a step of the model of real size


def _not_watched(step: int) -> None:
    """In place of a callback's hooks."""


class Took(NamedTuple):
    """What some steps took, in seconds."""

    cpu: float
    """Of all threads."""
    thread: float
    """CPU time of the training thread."""
    thread_on_the_wall: float


class FineTune(NamedTuple):
    """One that has not begun."""

    accelerator: Accelerator
    pipeline: Any
    pairs: ValidationPairs
    training: Iterator[tuple[int, float]]
    """(step, loss) of each step, when the device has done it."""
    batch_size: int
    """Of an evaluation."""


def of_demo(model: str, accelerator: Accelerator, steps: int) -> FineTune:
    demo = demo_model(model)
    pipeline, pairs = demo.load(device=accelerator.device), demo.validation_pairs()
    return FineTune(
        accelerator, pipeline, pairs, fine_tune(accelerator, demo, pipeline, steps=steps, seed=0), len(pairs)
    )


def of_real_size(accelerator: Accelerator, steps: int) -> FineTune:
    """The parts that encode pictures and text are tiny: what they give is the same at every step."""
    device = accelerator.device
    pipeline, pairs = guided_unet("real", str(device), torch.float32)
    unet = pipeline.unet.requires_grad_(False).train()
    trained = [w for name, w in unet.named_parameters() if "_ip" in name or "encoder_hid_proj" in name]
    optimizer = torch.optim.AdamW([w.requires_grad_() for w in trained], lr=1e-5)
    unet, optimizer = accelerator.prepare(unet, optimizer)
    with torch.no_grad():
        text = pipeline.encode_prompt("", device, _PICTURES, False)[0]
        embeds = pipeline.prepare_ip_adapter_image_embeds([pairs[0].reference], None, device, _PICTURES, False)

    def training() -> Iterator[tuple[int, float]]:
        for step in range(steps):
            latents, noise = torch.randn(2, _PICTURES, 4, 64, 64, device=device)
            times = torch.randint(1000, (_PICTURES,), device=device)
            noisy = pipeline.scheduler.add_noise(latents, noise, times)
            predicted = unet(noisy, times, text, added_cond_kwargs={"image_embeds": embeds}).sample
            loss = (predicted - noise).square().mean()
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            yield step + 1, loss.item()

    return FineTune(accelerator, pipeline, pairs, training(), 4)


class Run:
    """A fine-tune and what its steps took."""

    def __init__(self, model: str, logdir: Path, name: str, steps: int, *, watched: bool, **settings: Any) -> None:
        set_seed(0)
        if model == "real":
            tune = of_real_size(new_accelerator(logdir, name, mixed_precision="bf16"), steps)
        else:
            tune = of_demo(model, new_accelerator(logdir, name), steps)
        self._training = tune.training
        self._on_step_end: Callable[[int], None] = _not_watched
        self._end: Callable[[int], None] = _not_watched
        self._written: Callable[[], object] = lambda: None
        if watched:
            callback = I2AMCallback(
                tune.accelerator,
                pipeline=tune.pipeline,
                pairs=tune.pairs,
                batch_size=tune.batch_size,
                on_error="raise",
                disable_progress_bar=True,
                **settings,
            )
            callback.on_train_begin(0)
            callback.monitor.reporter.wait()
            self._on_step_end, self._end = callback.on_step_end, callback.on_train_end
            self._written = callback.monitor.reporter.wait
        self.steps: list[float] = []
        """CPU seconds of each training step, of all threads."""
        self.calls: list[float] = []
        """CPU seconds of each call of the callback, of all threads."""
        self.steps_on_the_wall: list[float] = []
        """Seconds of each training step by the clock on the wall."""
        self.calls_on_the_wall: list[float] = []
        """Seconds of each call by the clock on the wall."""

    def go_on(self, steps: int) -> Took:
        """So many steps, until all that was seen in them is written."""
        begun, thread = time.process_time(), time.thread_time()
        for _ in range(steps):
            started, wall = time.process_time(), time.perf_counter()
            step, _ = next(self._training)
            self.steps.append(time.process_time() - started)
            self.steps_on_the_wall.append(time.perf_counter() - wall)
            started, wall = time.process_time(), time.perf_counter()
            self._on_step_end(step)
            self.calls.append(time.process_time() - started)
            self.calls_on_the_wall.append(time.perf_counter() - wall)
        thread = time.thread_time() - thread
        self._written()
        wall = sum(self.steps_on_the_wall[-steps:]) + sum(self.calls_on_the_wall[-steps:])
        return Took(time.process_time() - begun, thread, wall)

    def end(self) -> None:
        self._end(len(self.steps))


def measured(model: str, rounds: int, every: int, **settings: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        plain, watched = (
            Run(model, Path(folder), name, (rounds + 1) * every, watched=name == "watched", **settings)
            for name in ("plain", "watched")
        )
        for way in (plain, watched):
            way.go_on(every // 2)  # what is done once is not counted
        ratios = []
        for number in range(rounds):
            ways = (plain, watched) if number % 2 == 0 else (watched, plain)
            took = {way: way.go_on(every) for way in ways}
            ratios.append([ours / theirs for ours, theirs in zip(took[watched], took[plain], strict=True)])
        watched.end()
    return {
        "every": every,
        **{name: [one[i] for one in ratios] for i, name in enumerate(("ratios", "thread", "thread_on_the_wall"))},
        **_of_steps(plain, watched, every),
    }


def _of_steps(plain: Run, watched: Run, every: int) -> dict[str, Any]:
    evaluated = every - every // 2 - 1  # the step of a round

    def rounds_of(values: list[float]) -> np.ndarray:
        return np.array(values[every // 2 :]).reshape(-1, every)

    # Each with the same step of the other run: some of them draw new data, which takes longer than the step.
    ratios, calls = rounds_of(watched.steps) / rounds_of(plain.steps), rounds_of(watched.calls)
    on_the_wall = rounds_of(watched.steps_on_the_wall) / rounds_of(plain.steps_on_the_wall)
    others = np.delete(ratios, evaluated + 1, axis=1), np.delete(on_the_wall, evaluated + 1, axis=1)
    return {
        "steps": (rounds_of(watched.steps).sum(1) / rounds_of(plain.steps).sum(1)).tolist(),
        "evaluation_s": calls[:, evaluated].tolist(),
        "evaluation_on_the_wall_s": rounds_of(watched.calls_on_the_wall)[:, evaluated].tolist(),
        "call_between_s": float(np.median(np.delete(calls, evaluated, axis=1))),
        "step_s": float(np.median(rounds_of(plain.steps))),
        "after_an_evaluation": ratios[:, evaluated + 1].tolist(),
        "others": np.quantile(others[0], [0.05, 0.95]).tolist(),
        "after_an_evaluation_on_the_wall": on_the_wall[:, evaluated + 1].tolist(),
        "others_on_the_wall": np.quantile(others[1], [0.05, 0.95]).tolist(),
    }


def in_words(name: str, found: dict[str, Any]) -> str:
    def told(values: list[float]) -> str:
        return f"{np.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"

    extra = (float(np.median(found["ratios"])) - 1) * found["every"] * found["step_s"]
    return (
        f"{name}, evaluated every {found['every']} steps: CPU time in all {told(found['ratios'])} ×; the training thread's CPU "
        f"time {told(found['thread'])} ×, on the wall {told(found['thread_on_the_wall'])} ×; the step after an evaluation "
        f"{told(found['after_an_evaluation'])} ×, others ({found['others'][0]:.2f} to {found['others'][1]:.2f}), on the wall "
        f"{told(found['after_an_evaluation_on_the_wall'])} ×, others ({found['others_on_the_wall'][0]:.2f} to "
        f"{found['others_on_the_wall'][1]:.2f}); an evaluation with its writing and drawing {extra:.2f} s of CPU, "
        f"{np.median(found['evaluation_on_the_wall_s']):.2f} s in which a step waits; a step {1000 * found['step_s']:.1f} ms, "
        f"a call between {1e6 * found['call_between_s']:.0f} µs: at most {RATIO} × in all where a step takes "
        f"{extra / (found['every'] * (RATIO - 1)):.2f} s or more"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument(
        "--model", choices=("inpainting", "edit", "real"), default="inpainting", help="default: inpainting"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds of both (default: 5), after a half that is not counted"
    )
    parser.add_argument("--every", type=int, default=100, help="steps from one evaluation to the next (default: 100)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = measured(args.model, args.rounds, args.every, every_n_steps=args.every)
    found["ratio"] = float(np.median(found["ratios"]))
    on_cuda = torch.cuda.is_available()
    found["reached"] = {
        "in all": on_cuda or found["ratio"] <= RATIO,
        "the training thread": float(np.median(found["thread_on_the_wall" if on_cuda else "thread"])) <= RATIO,
        "after an evaluation": float(np.median(found["after_an_evaluation_on_the_wall"]))
        <= found["others_on_the_wall"][1],
    }
    print(in_words(args.model, found), flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps({"torch": torch.__version__, **found}, indent=1) + "\n", encoding="utf-8")
    missed = [name for name, reached in found["reached"].items() if not reached]
    print(f"at most {RATIO} ×: " + (f"not reached: {', '.join(missed)}" if missed else "reached"))
    return 1 if missed else 0


if __name__ == "__main__":
    logging.getLogger("i2am_debug").setLevel(logging.ERROR)
    sys.exit(main())
