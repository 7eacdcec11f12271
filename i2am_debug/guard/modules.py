"""Modules, pipelines and schedulers by what they hold, put back whatever it was that changed it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from .attributes import Attributes, has_attributes
from .wrappers import inside_fsdp1, keeps_its_own_state

_FOLLOWED = ("diffusers.", "peft.", "transformers.", "accelerate.hooks.")


class KeptObjects:
    """Their attributes with parameters, parts and hooks, and those of the small objects that belong to them: attention
    processors, Accelerate's hooks, adapters' settings. Each once.

    Nothing is known here of FreeU, adapters, tiling or offloading: all of them are attributes.
    """

    def __init__(self) -> None:
        self._attributes: dict[int, Attributes] = {}
        self._training: dict[nn.Module, bool] = {}

    def knows(self, thing: Any) -> bool:
        """Whether it is remembered; of a module that includes all that was inside."""
        return id(thing) in self._attributes or (isinstance(thing, nn.Module) and thing in self._training)

    def remember(self, thing: Any) -> None:
        """Also this module with all that is inside, or this other object."""
        if isinstance(thing, nn.Module):
            modules = list(thing.modules())
            exchanged = inside_fsdp1(modules)
            for module in modules:
                self._training.setdefault(module, module.training)
                if module not in exchanged and not keeps_its_own_state(module):
                    self._remember_one(module)
        elif has_attributes(thing):
            self._remember_one(thing)

    def put_back(self) -> None:
        """One that fails does not keep the others from being put back."""
        with ExitStack() as stack:
            for module, training in self._training.items():
                stack.callback(setattr, module, "training", training)
            for attributes in self._attributes.values():
                stack.callback(attributes.put_back)

    def _remember_one(self, thing: Any) -> None:
        if id(thing) in self._attributes:
            return
        attributes = self._attributes[id(thing)] = Attributes(thing)
        for part in _belonging(attributes):
            self._remember_one(part)


def _belonging(attributes: Attributes) -> Iterator[Any]:
    """The small objects among them; a processor is one of whatever class. A script's own objects are not: what hangs on a
    module may lead anywhere, to the run itself."""
    processor = attributes.value("processor")
    for part in [processor, *_small_objects(attributes.parts())]:
        if has_attributes(part) and not isinstance(part, nn.Module | torch.Tensor | type):
            yield part


def _small_objects(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if type(value) in (tuple, list):
            yield from _small_objects(value)
        elif f"{type(value).__module__}.".startswith(_FOLLOWED):
            yield value
