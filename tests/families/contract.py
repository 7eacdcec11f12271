"""What a family gives to be held to the contract: a tiny model, how its pipeline calls it, and where the truth lies.

The truth is every attention product as the oracle wrote it down; a case says which of them hold the reference, and which
rows, queries and keys of them are whose. It shares nothing with the family that it checks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from oracle import Recorded, recorded_products
from torch import nn

from i2am_debug.families.family import Family

Tokens = Any
"""A slice, or a list of numbers."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One family's model under the contract."""

    family: Family
    model: Callable[[], Any]
    """Makes the model, or a pipeline around it."""
    run: Callable[[Any, int, bool], Sequence[torch.Tensor]]
    """(model, images, guided) → the outputs of two sampler steps; the same at every call."""
    modules: Callable[[Any], Mapping[str, nn.Module]]
    """Layer → its module, in the model's order."""
    queries: Callable[[Recorded], Tokens] = lambda product: slice(None)
    """The generated tokens among a product's queries."""
    keys: Callable[[Recorded], Sequence[Tokens]] = lambda product: (slice(None),)
    """The tokens of each reference among its keys."""
    products: Callable[[Sequence[Any], bool], Sequence[Any]] = lambda made, guided: made
    """(what a module made in order, guided) → those of the conditional forward that hold the reference."""
    row: Callable[[int, int, bool], int] = lambda image, images, guided: image
    """(image, images, guided) → its conditional row in the batch."""
    joint: bool = False
    """Other keys compete: the reference mass is the model's own softmax over all of them."""
    has_grid: bool = True
    """Whether the reference tokens lie on a grid."""
    ways: Sequence[bool] = (False, True)
    """Guided or not: the ways in which its pipelines call it."""
    recorder: Callable[[Mapping[str, nn.Module]], Any] = recorded_products
    not_planted: str | None = None
    """Why the contract can't plant a copy, and where that is tested."""
    asked_for: bool = False
    """Whether the family is never found, only given with family=."""

    def looked_at(
        self, model: Any = None, images: int = 1, guided: bool | None = None
    ) -> tuple[Any, Sequence[torch.Tensor]]:
        """The first image's maps, and the outputs."""
        from i2am_debug import trace

        model = self.model() if model is None else model
        with trace(model, family=self.family) as t:
            outputs = self.run(model, images, self.ways[0] if guided is None else guided)
        return t.maps(), outputs


def latent_rows(image: int, images: int, guided: bool) -> int:
    """In a guidance batch of [unconditional, conditional] halves."""
    return image + images * guided


@contextmanager
def planted_copies(
    modules: Mapping[str, nn.Module],
    plant: Callable[[str, int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
) -> Iterator[None]:
    """Replaces queries and keys of the modules' products: `plant(name, number, q, k)` → (q, k), each (B, N, tokens, H)."""
    inside: list[str] = []
    made: Counter[str] = Counter()
    handles = []
    for name, module in modules.items():
        handles.append(module.register_forward_pre_hook(lambda *_, n=name: inside.append(n)))
        handles.append(module.register_forward_hook(lambda *_: inside.pop() and None))
    real = F.scaled_dot_product_attention

    def planting(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if inside:
            query, key = plant(inside[-1], made[inside[-1]], query, key)
            made[inside[-1]] += 1
        return real(query, key, *args, **kwargs)

    F.scaled_dot_product_attention = planting
    try:
        yield
    finally:
        F.scaled_dot_product_attention = real
        for handle in handles:
            handle.remove()
