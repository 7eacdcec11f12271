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
    """What it does, once, to the modules of the pipeline."""
    predicts_noise: bool = False
    """Whether the training takes the model's prediction for one of the noise, which it is not."""

    def spoil(self, batch: Batch, evaluations: int, generator: torch.Generator) -> Batch:
        """The batch as the model gets it, so many evaluations after the fault began."""
        if self.corrupt is None:
            return batch
        wrong = self.corrupt(batch, generator)
        share = min(1.0, self.share + self.growth * evaluations)
        chosen = (torch.rand(len(batch["reference"]), generator=generator) < share).to(batch["reference"].device)
        return {
            name: clean if wrong[name] is clean else _where(chosen, wrong[name], clean) for name, clean in batch.items()
        }


def _where(chosen: torch.Tensor, wrong: Any, clean: Any) -> Any:
    if isinstance(clean, torch.Tensor):
        return torch.where(chosen[:, None, None, None], wrong, clean)
    return [w if choose else c for choose, w, c in zip(chosen.tolist(), wrong, clean, strict=True)]


def shuffled(name: str) -> Callable[[Batch, torch.Generator], Batch]:
    """What the batch has under this name, in another order."""

    def corrupt(batch: Batch, generator: torch.Generator) -> Batch:
        order = torch.randperm(len(batch[name]), generator=generator)
        own = batch[name]
        return {**batch, name: own[order] if isinstance(own, torch.Tensor) else [own[i] for i in order.tolist()]}

    return corrupt


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Batch, torch.Generator], Batch]:
    """The pictures of this name, changed."""
    return lambda batch, generator: {**batch, name: change(batch[name])}


def fresh_keys(module: nn.Module, names: tuple[str, ...]) -> None:
    """Gives the linear layers whose name ends so random weights of the size that they had; training goes on from them."""
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name.endswith(names):
                weight.copy_(torch.randn(weight.shape, generator=draws) * weight.std())


def shift(name: str, pixels: int) -> Callable[[Batch, torch.Generator], Batch]:
    """Shifts the pictures of this name to the right, around the edge."""
    return lambda batch, generator: {**batch, name: batch[name].roll(pixels, dims=-1)}


def forget(module: nn.Module, fresh: nn.Module) -> None:
    """Gives a module fresh weights and keeps training from them, as after a checkpoint that did not load."""
    module.load_state_dict(fresh.state_dict())
    module.requires_grad_(False)


def _zero(batch: Batch, generator: torch.Generator) -> Batch:
    return {**batch, "reference": torch.zeros_like(batch["reference"])}


ANY_MODEL: dict[str, Sabotage] = {
    "shuffle": Sabotage(what="references shuffled", corrupt=shuffled("reference")),
    "zero": Sabotage(what="references zeroed", corrupt=_zero),
    "drop": Sabotage(what="90 % of the references dropped", corrupt=_zero, share=0.9),
    "learning-rate": Sabotage(what="learning rate × 6", learning_rate=6.0),
    "flip": Sabotage(what="references mirrored", corrupt=changed("reference", lambda r: r.flip(-1))),
    "colours": Sabotage(
        what="red and blue swapped in the references", corrupt=changed("reference", lambda r: r.flip(1))
    ),
    "range": Sabotage(
        what="references in [0, 1] instead of [-1, 1]", corrupt=changed("reference", lambda r: (r + 1) / 2)
    ),
    "dim": Sabotage(what="references scaled × 0.3", corrupt=changed("reference", lambda r: 0.3 * r)),
    "bright": Sabotage(what="references scaled × 3", corrupt=changed("reference", lambda r: 3 * r)),
    "mean-target": Sabotage(
        what="targets replaced by their mean",
        corrupt=changed("target", lambda t: t.mean(0, keepdim=True).expand_as(t)),
    ),
    "prediction": Sabotage(what="the prediction taken for one of the noise", predicts_noise=True),
    "gradual": Sabotage(
        what="5 % more wrong references every evaluation", corrupt=shuffled("reference"), share=0.05, growth=0.05
    ),
    "gradual-drop": Sabotage(
        what="references dropped ever more often, from 2 to 60 %", corrupt=_zero, share=0.02, growth=0.042
    ),
}
"""Faults that every model can have, by the name that the command line takes."""
