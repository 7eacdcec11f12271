"""How the shipped weights of a model were trained; what all models' recipes have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

Modules = dict[str, nn.Module]
"""The pipeline's modules that are trained, by their names in the pipeline."""

OPTIMIZER: Mapping[str, Any] = {
    "optimizer": "AdamW",
    "betas": [0.9, 0.99],
    "weight_decay": 1e-4,
    "warm_up_steps": 30,
    "final_learning_rate": 0.03,  # as a share of the highest, reached along a cosine
    "clip_norm": 1.0,
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Fixed but for seed, steps and output."""

    settings: Mapping[str, Any]
    """Written beside the weights; "learning_rate" and what `OPTIMIZER` names are those of the training."""
    steps: int
    seed: int
    """Of the shipped weights."""
    weights: Path
    """Where they lie."""
    new_modules: Callable[[], Modules]
    """With fresh weights, from torch's own random state."""
    batch_loss: Callable[[Modules, torch.Generator], torch.Tensor]
    """The loss of one batch, one number; batch and noise are drawn from the generator."""
    held_out: Callable[[Modules], dict[str, float]]
    """What is measured on pairs that the training never draws, by name."""
