"""What a pipeline class gives to be tried: how to build it, the pairs it is called with, and how it is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from i2am_debug import ValidationPair
from i2am_debug.evaluation.calls import PipelineCall, default_call
from i2am_debug.families.family import Family

STEPS = 3
WIDTH, HEIGHT = 96, 64


@dataclass(frozen=True, kw_only=True)
class PipelineCase:
    """One pipeline class, complete, in one way of using it."""

    name: str
    """The class, and after a comma what sets the case apart from others of it."""
    build: Callable[[], Any]
    """Makes the pipeline, the same one each time."""
    family: str
    """The name of the family that it must be found to be."""
    pairs: Callable[[], Sequence[ValidationPair]] = field(default=lambda: [pair(number) for number in range(2)])
    size: tuple[int, int] | None = (WIDTH, HEIGHT)
    """Of the pictures that it makes of the first pair, in pixels."""
    asked_for: Family | None = None
    """The family to pass as family=, where it is not found by itself."""
    call: Callable[[], PipelineCall] | None = None
    """Makes what to pass as call=, where the pipeline's default call won't do."""
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    """What is entered before the pipeline is used."""
    encode: Callable[[Any, ValidationPair], torch.Tensor] | None = None
    """The truth of a pair in the layout of the pipeline's latents, by the pipeline's own methods."""
    tolerance: float = 0.0
    """By how much the package's truth may differ from `encode`'s: 0 where both do the same in the same order."""
    falls_back: str = ""
    """Why it can't be teacher-forced as it is; empty where it can. With an `encode` all the same, encode= is the cure."""

    def run(self, pipeline: Any, pair: ValidationPair, steps: int = STEPS) -> Any:
        """The pipeline's output for a pair, always of the same noise."""
        call = self.call() if self.call else default_call(pipeline, steps)
        return call(pipeline, pair, torch.Generator().manual_seed(0))


def picture(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Coloured squares of eight pixels: not the same everywhere, and not noise to an autoencoder."""
    squares = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(squares).resize((width, height), Image.Resampling.NEAREST)


def pair(
    number: int,
    *,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    reference: tuple[int, int] | None = None,
    further: int = 0,
    masked: bool = False,
    prompt: str | None = "a red cat",
    extra: Mapping[str, Any] | None = None,
) -> ValidationPair:
    """A pair of pictures of their own; `reference` is its size, that of the target if not given."""
    width, height = size
    hole = np.zeros((height, width), bool)
    hole[height // 4 : height // 2, width // 4 : width // 2] = True
    own = reference or size
    return ValidationPair(
        name=f"pair {number}",
        target=picture(10 * number, *size),
        reference=picture(10 * number + 1, *own),
        further_references=[picture(10 * number + 2 + i, *own) for i in range(further)],
        mask=hole if masked else None,
        prompt=prompt,
        extra=extra or {},
    )


def quiet(pipeline: Any) -> Any:
    """Without a progress bar, and as inference has it."""
    pipeline.set_progress_bar_config(disable=True)
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    return pipeline
