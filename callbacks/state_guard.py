"""What an evaluation must leave as it found it: random states, module modes, schedulers, processors."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import numpy as np
import torch
from torch import nn

from i2am_debug.capture.trace import find_denoiser
from i2am_debug.errors import I2AMError


class StateGuard(AbstractContextManager["StateGuard"]):
    """Puts modules into evaluation mode and restores, whatever happens inside:

    - the random states of Python, numpy, torch on the CPU and on every CUDA, MPS or XPU device;
    - of every submodule: `training` (each one's own: `.train()` on the whole would un-freeze modules deliberately in
      evaluation mode), the attention processor, and `requires_grad` of the parameters;
    - every attribute of the schedulers (`set_timesteps` changes the noise times that flow-matching training draws from);
    - a pipeline's progress bar settings.

    Raises:
        I2AMError: at the end, when something inside changed the dtype or device of a watched parameter, which can't be
            undone exactly.
    """

    def __init__(self, modules: Iterable[nn.Module] = ()) -> None:
        self._first = list(modules)
        self._training: dict[nn.Module, bool] = {}
        self._processors: dict[nn.Module, Any] = {}
        self._requires_grad: dict[nn.Parameter, bool] = {}
        self._places: dict[nn.Parameter, tuple[str, torch.dtype, torch.device]] = {}
        self._attributes: list[tuple[Any, dict[str, Any]]] = []

    def __enter__(self) -> StateGuard:
        self._random = _random_states()
        self._grad = torch.is_grad_enabled()
        self.watch(self._first)
        return self

    def watch(self, things: Iterable[Any]) -> None:
        """Also guards these modules, schedulers and pipelines from now on; modules go into evaluation mode."""
        for thing in things:
            if isinstance(thing, nn.Module):
                self._watch_module(thing)
            elif hasattr(thing, "set_timesteps"):
                self._attributes.append((thing, copy.deepcopy(thing.__dict__)))
            elif hasattr(thing, "_progress_bar_config"):
                self._attributes.append((thing, {"_progress_bar_config": dict(thing._progress_bar_config)}))

    def pipeline(self, given: Any) -> Any:
        """The pipeline given, or what the function given builds, with all of its parts watched."""
        is_built = isinstance(given, nn.Module) or any(hasattr(given, n) for n in ("unet", "transformer", "components"))
        pipeline = given if is_built else given()
        self.watch([pipeline, find_denoiser(pipeline), *getattr(pipeline, "components", {}).values()])
        if hasattr(pipeline, "set_progress_bar_config"):
            if not hasattr(pipeline, "_progress_bar_config"):
                pipeline.set_progress_bar_config()
                self.watch([pipeline])
            pipeline.set_progress_bar_config(disable=True)  # one bar over the pairs says more than one per sampling
        return pipeline

    def _watch_module(self, root: nn.Module) -> None:
        for name, parameter in root.named_parameters():
            self._requires_grad.setdefault(parameter, parameter.requires_grad)
            self._places.setdefault(parameter, (name, parameter.dtype, parameter.device))
        for module in root.modules():
            self._training.setdefault(module, module.training)
            if "processor" in module.__dict__:
                self._processors.setdefault(module, module.processor)
            module.training = False

    def __exit__(self, *exception: object) -> None:
        for module, training in self._training.items():
            module.training = training
        for module, processor in self._processors.items():
            if module.processor is not processor:
                module.processor = processor
        for parameter, requires_grad in self._requires_grad.items():
            parameter.requires_grad_(requires_grad)
        for thing, attributes in self._attributes:
            thing.__dict__.update(attributes)
        torch.set_grad_enabled(self._grad)
        _restore_random_states(self._random)
        moved = [n for p, (n, dtype, device) in self._places.items() if (p.dtype, p.device) != (dtype, device)]
        if moved and exception[0] is None:
            raise I2AMError(
                f"the pipeline changed dtype or device of {len(moved)} parameters that are being trained (such as "
                f"{moved[0]!r}), which can't be undone without loss. Build it without .to(dtype) or torch_dtype= on the "
                "trained modules"
            )


def _random_states() -> dict[str, Any]:
    states: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    for name in ("cuda", "mps", "xpu"):
        backend = getattr(torch, name, None)
        if backend is not None and backend.is_available():
            many = getattr(backend, "get_rng_state_all", None)
            states[name] = many() if many else backend.get_rng_state()
    return states


def _restore_random_states(states: dict[str, Any]) -> None:
    with ExitStack() as all_of_them:  # one that fails must not keep the others from being restored
        for name in ("cuda", "mps", "xpu"):
            if name in states:
                backend = getattr(torch, name)
                restore = getattr(backend, "set_rng_state_all", None) or backend.set_rng_state
                all_of_them.callback(restore, states[name])
        all_of_them.callback(torch.set_rng_state, states["cpu"])
        all_of_them.callback(np.random.set_state, states["numpy"])
        all_of_them.callback(random.setstate, states["python"])
