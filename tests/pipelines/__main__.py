"""Prints how each pipeline is looked at where no `loss_fn` is given, as Markdown.

`PYTHONPATH=tests:tests/families python -m pipelines`

Nothing of the table is written down anywhere: each line is what a tiny pipeline of the class did.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import diffusers
import torch

from i2am_debug import CapturePlan, ValidationPairs
from i2am_debug.capture.trace import find_denoiser
from i2am_debug.evaluation import teacher_forcing
from i2am_debug.evaluation.evaluator import Evaluator
from i2am_debug.evaluation.ways import choose_way

from .case import PipelineCase
from .classes import CASES

BEGIN, END = (
    "<!-- teacher-forcing: PYTHONPATH=tests:tests/families python -m pipelines -->",
    "<!-- /teacher-forcing -->",
)
TITLES = ("pipeline", "way", "where the truth comes from", "classifier-free guidance", "why not teacher forcing")
READ, ENCODED = "the pipeline, given the target as its reference", "the VAE's mean of the target"


@dataclass
class Watched:
    """What a pipeline did in one call."""

    truth: str = ""
    rows: list[torch.Tensor] = field(default_factory=list)
    """Outputs of the denoiser since the last step of the scheduler, (1, …) each."""
    most: int = 0
    """Rows that the denoiser computed for one picture at one noise time."""
    combined: bool = False
    """Whether a prediction was none of the denoiser's own."""


@contextmanager
def watching(pipeline: Any) -> Iterator[Watched]:
    """Watches the denoiser's outputs, what becomes of them, and how the truth is made."""
    watched = Watched()
    scored, encoded = teacher_forcing.forced_scheduler, teacher_forcing.encoded

    def collect(module: Any, inputs: Any, output: Any) -> None:
        watched.rows.extend(output[0].detach().split(1))
        watched.most = max(watched.most, len(watched.rows))

    def forced_scheduler(own: Any) -> Any:
        scheduler = scored(own)
        step = scheduler.step

        def compare(model_output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            same = tuple(slice(0, side) for side in model_output.shape)
            watched.combined |= not any(
                torch.allclose(row[same], model_output, rtol=1e-3, atol=1e-4) for row in watched.rows
            )
            watched.rows.clear()
            return step(model_output, *args, **kwargs)

        scheduler.step = compare
        return scheduler

    def by_vae(*args: Any) -> torch.Tensor:
        watched.truth = ENCODED
        return encoded(*args)

    handle = find_denoiser(pipeline).register_forward_hook(collect)
    try:
        with (
            patch.object(teacher_forcing, "forced_scheduler", forced_scheduler),
            patch.object(teacher_forcing, "encoded", by_vae),
        ):
            yield watched
    finally:
        handle.remove()


def guided_by_itself(case: PipelineCase, pipeline: Any) -> bool:
    """Whether the denoiser is asked more than once for one picture at one noise time, as its users call it."""
    times: dict[float, int] = {}

    def count(module: Any, args: Any, kwargs: Any) -> None:
        sample = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        time = kwargs.get("timestep", args[1] if len(args) > 1 else None)
        key = float(torch.as_tensor(time).flatten()[0])
        times[key] = times.get(key, 0) + len(sample)

    handle = find_denoiser(pipeline).register_forward_pre_hook(count, with_kwargs=True)
    try:
        case.run(pipeline, case.pairs()[0])
    finally:
        handle.remove()
    return min(times.values()) > 1  # PNDM asks twice at one time


def row(case: PipelineCase) -> str:
    """The case's line of the table."""
    with case.around(), torch.no_grad():
        pipeline = case.build()
        guided = guided_by_itself(case, pipeline)
        looking = Evaluator(
            pairs=ValidationPairs(case.pairs()),
            plan=CapturePlan(sampler_steps=2, heads=None),
            family=case.asked_for,
            call=case.call() if case.call else None,
        )
        with watching(pipeline) as watched:
            way = choose_way(looking, pipeline)
    told = getattr(find_denoiser(pipeline).config, "guidance_embeds", False)
    if way.instead:
        cells = ["", "", way.instead]
    else:
        kept = "kept, as `call=` has it" if watched.combined else "left out"
        guidance = (kept if guided else "none") + (", but for the scale that the model is told" if told else "")
        cells = [watched.truth or READ, guidance, ""]
    name, _, note = case.name.partition(", ")
    needs = [f"`{key}=`" for key, given in (("call", case.call), ("family", case.asked_for)) if given is not None]
    with_arguments = f" (with {' and '.join(needs)})" if needs else ""
    first = f"`{name}`{', ' + note if note else ''}{with_arguments}"
    return f"| {' | '.join([first, way.name.replace('_', ' '), *cells])} |"


def table() -> str:
    lines = [f"| {' | '.join(TITLES)} |", f"| {' | '.join(['---'] * len(TITLES))} |"]
    return "\n".join([*lines, *(row(case) for case in CASES.values())])


if __name__ == "__main__":
    diffusers.logging.set_verbosity_error()
    logging.disable()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(table())
