"""Faults that a fine-tune of a tiny model can be given: what goes wrong in data loaders, optimizers and checkpoints.

Each is one that people report or that a line of code away would cause. Those that one model alone can have stand with it.
Knows neither the models nor a training loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Batch = Mapping[str, Any]
"""A batch of B pairs: the pictures "target" and "reference", (B, 3, S, S) in [-1, 1], and what else the model's pairs have."""


@dataclass(frozen=True, kw_only=True)
class Sabotage:
    """One fault, and from when on how much of it."""

    what: str
    """What a person reads at the step where it begins."""
    corrupt: Callable[[Batch, torch.Generator], Batch] | None = None
    """Of a whole batch; `spoil` applies it to a share."""
    share: float = 1.0
    """Of the pairs that are corrupted from the first step on."""
    growth: float = 0.0
    """By how much the share grows from one evaluation to the next."""
    learning_rate: float = 1.0
    """Factor of the learning rate."""
    break_weights: Callable[[Any], None] | None = None
    """What it does, once, to the weights of the pipeline."""

    def spoil(self, batch: Batch, evaluations: int, generator: torch.Generator) -> Batch:
        """The batch as the model gets it, so many evaluations after the fault began."""
        if self.corrupt is None:
            return batch
        wrong = self.corrupt(batch, generator)
        share = min(1.0, self.share + self.growth * evaluations)
        chosen = (torch.rand(len(batch["reference"]), generator=generator) < share).to(batch["reference"].device)
        return {
            name: clean if wrong[name] is clean else torch.where(chosen[:, None, None, None], wrong[name], clean)
            for name, clean in batch.items()
        }


def shift(name: str, pixels: int) -> Callable[[Batch, torch.Generator], Batch]:
    """Shifts the pictures of this name to the right, around the edge."""
    return lambda batch, generator: {**batch, name: batch[name].roll(pixels, dims=-1)}


def forget(module: nn.Module, fresh: nn.Module) -> None:
    """Gives a module fresh weights and keeps training from them, as after a checkpoint that did not load."""
    module.load_state_dict(fresh.state_dict())
    module.requires_grad_(False)


def _shuffle(batch: Batch, generator: torch.Generator) -> Batch:
    order = torch.randperm(len(batch["reference"]), generator=generator)
    return {**batch, "reference": batch["reference"][order]}


def _zero(batch: Batch, generator: torch.Generator) -> Batch:
    return {**batch, "reference": torch.zeros_like(batch["reference"])}


def _flip(batch: Batch, generator: torch.Generator) -> Batch:
    return {**batch, "reference": batch["reference"].flip(-1)}


def _swap_colours(batch: Batch, generator: torch.Generator) -> Batch:
    return {**batch, "reference": batch["reference"].flip(1)}


ANY_MODEL: dict[str, Sabotage] = {
    "shuffle": Sabotage(what="references shuffled", corrupt=_shuffle),
    "zero": Sabotage(what="references zeroed", corrupt=_zero),
    "drop": Sabotage(what="90 % of the references dropped", corrupt=_zero, share=0.9),
    "learning-rate": Sabotage(what="learning rate × 6", learning_rate=6.0),
    "flip": Sabotage(what="references mirrored", corrupt=_flip),
    "colours": Sabotage(what="red and blue swapped in the references", corrupt=_swap_colours),
    "gradual": Sabotage(what="5 % more wrong references every evaluation", corrupt=_shuffle, share=0.05, growth=0.05),
}
"""Faults that every model can have, by the name that the command line takes."""
