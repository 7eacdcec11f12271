"""Faults that a fine-tune of the tiny model can be given: what goes wrong in data loaders, optimizers and checkpoints.

Each is one that people report or that a line of code away would cause. Knows no training loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .model import ReferenceEncoder

Pictures = dict[str, torch.Tensor]
"""A batch of B pairs: "target" and "reference" (B, 3, S, S) in [-1, 1], "hole" (B, 1, S, S) in {0, 1}."""

_SHIFT = 8  # pixels


@dataclass(frozen=True, kw_only=True)
class Sabotage:
    """One fault, and from when on how much of it."""

    what: str
    """What a person reads at the step where it begins."""
    corrupt: Callable[[Pictures, torch.Generator], Pictures] | None = None
    """Of a whole batch; `spoil` applies it to a share."""
    share: float = 1.0
    """Of the pairs that are corrupted from the first step on."""
    growth: float = 0.0
    """By how much the share grows from one evaluation to the next."""
    learning_rate: float = 1.0
    """Factor of the learning rate."""
    random_encoder: bool = False
    """Whether the reference encoder is replaced by a random one that is not trained."""

    def spoil(self, pictures: Pictures, evaluations: int, generator: torch.Generator) -> Pictures:
        """The batch as the model gets it, so many evaluations after the fault began."""
        if self.corrupt is None:
            return pictures
        wrong = self.corrupt(pictures, generator)
        share = min(1.0, self.share + self.growth * evaluations)
        chosen = (torch.rand(len(pictures["reference"]), generator=generator) < share).to(pictures["reference"].device)
        return {name: torch.where(chosen[:, None, None, None], wrong[name], clean) for name, clean in pictures.items()}


def break_encoder(encoder: ReferenceEncoder) -> None:
    """Random weights that training leaves alone, as after a checkpoint that did not load."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder.load_state_dict(ReferenceEncoder().state_dict())
    encoder.requires_grad_(False)


def _shuffle(pictures: Pictures, generator: torch.Generator) -> Pictures:
    order = torch.randperm(len(pictures["reference"]), generator=generator)
    return {**pictures, "reference": pictures["reference"][order]}


def _zero(pictures: Pictures, generator: torch.Generator) -> Pictures:
    return {**pictures, "reference": torch.zeros_like(pictures["reference"])}


def _flip(pictures: Pictures, generator: torch.Generator) -> Pictures:
    return {**pictures, "reference": pictures["reference"].flip(-1)}


def _swap_colours(pictures: Pictures, generator: torch.Generator) -> Pictures:
    return {**pictures, "reference": pictures["reference"].flip(1)}


def _shift_hole(pictures: Pictures, generator: torch.Generator) -> Pictures:
    return {**pictures, "hole": pictures["hole"].roll(_SHIFT, dims=-1)}


SABOTAGES: dict[str, Sabotage] = {
    "shuffle": Sabotage(what="references shuffled", corrupt=_shuffle),
    "zero": Sabotage(what="references zeroed", corrupt=_zero),
    "drop": Sabotage(what="90 % of the references dropped", corrupt=_zero, share=0.9),
    "learning-rate": Sabotage(what="learning rate × 6", learning_rate=6.0),
    "encoder": Sabotage(what="reference encoder random and frozen", random_encoder=True),
    "flip": Sabotage(what="references mirrored", corrupt=_flip),
    "shift-mask": Sabotage(what=f"holes shifted by {_SHIFT} px", corrupt=_shift_hole),
    "colours": Sabotage(what="red and blue swapped in the references", corrupt=_swap_colours),
    "gradual": Sabotage(what="5 % more wrong references every evaluation", corrupt=_shuffle, share=0.05, growth=0.05),
}
"""By the name that the command line takes."""
