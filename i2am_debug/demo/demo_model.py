"""What the demo must be told of a tiny model: how to load it, train it further, look at it and break it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..evaluation.loss_function import LossFunction
from ..pairs.collection import ValidationPairs
from .sabotage import Batch, Sabotage

MODELS = {
    "inpainting": "i2am_debug.demo.inpainting.training",
    "edit": "i2am_debug.demo.edit.training",
    "super-resolution": "i2am_debug.demo.super_resolution.training",
}
"""Name → the module that has its `DEMO`; each is imported when it is asked for, since diffusers' pipelines take seconds."""


@dataclass(frozen=True, kw_only=True)
class DemoModel:
    """One tiny model, as the fine-tune and the benchmarks see it."""

    name: str
    load: Callable[..., Any]
    """`load(device=…)` → a pipeline with the shipped weights."""
    trained: tuple[str, ...]
    """Names of the pipeline's modules that the fine-tune trains."""
    learning_rate: float
    """Gentle enough that a healthy fine-tune changes no figure by more than the default rules allow."""
    new_data: Callable[[int, torch.Generator], Batch]
    """`new_data(count, generator)` → pairs drawn from the generator, as one batch."""
    training_loss: Callable[..., torch.Tensor]
    """`training_loss(pipeline, modules, batch, predicts_noise=…)` → the loss to train on, one number; `modules` are those of
    `trained`, prepared. Its noise comes from torch's own random state."""
    loss_fn: Callable[[Any], LossFunction]
    """`loss_fn(pipeline)` → the callback's teacher-forced way."""
    validation_pairs: Callable[[], ValidationPairs]
    """The pairs that every demo looks at."""
    quality: Callable[[Any, ValidationPairs], float]
    """`quality(pipeline, pairs)` → mean peak signal-to-noise ratio of what the pipeline makes, dB."""
    sabotages: Mapping[str, Sabotage]
    """The faults it can be given, by name."""


def demo_model(name: str) -> DemoModel:
    """The model of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in MODELS:
        raise ValueError(f"model={name!r}: expected one of {', '.join(MODELS)}")
    return importlib.import_module(MODELS[name]).DEMO
