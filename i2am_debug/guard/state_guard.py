"""`StateGuard`: what an evaluation must leave as it found it. The parts say what each of them is; this is their order."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from torch import nn

from ..capture.trace import find_denoiser
from ..errors import TrainingChanged
from .mentioned import mentioned
from .modules import KeptObjects
from .process_settings import ProcessSettings, leave_autocast_cache_alone
from .random_states import RandomStates
from .tensors import KeptTensors
from .verdict import what_is_lost, what_was_put_back, what_was_written_elsewhere
from .wrappers import has_reducer, named_tensors, reshard

logger = logging.getLogger("i2am_debug")


class StateGuard(AbstractContextManager["StateGuard"]):
    """Puts modules into evaluation mode and restores, whatever happens inside:

    - the random states of Python, numpy, torch on the CPU and on every CUDA, MPS or XPU device;
    - settings of the process: default dtype, grad mode, autocast, determinism, precision, attention backends, threads;
    - what modules, pipelines and schedulers hold: training flags (each module's own), parameters, parts, hooks, attention
      processors, adapters, every other attribute (`set_timesteps` changes the noise times that a training draws from);
    - parameters' and buffers' data, gradients and `requires_grad`. Data that was replaced is put back exactly, and said
      once. The bytes of what is trained are summed before and after, to tell whether they were written to.

    A function that builds the pipeline is looked into first, for the parts that it may change before it returns them.

    Left alone: the state of wrappers (DDP, FSDP, DeepSpeed, `torch.compile`), parameters that FSDP1 or ZeRO-3 exchange, and
    what hangs on a module but is neither of torch, diffusers, peft, transformers, Accelerate nor a processor.

    Args:
        trained: the modules that are being trained.
        told: the warnings that were given already.

    Raises:
        TrainingChanged: at the end, when what is trained was changed and can't be put back; from the exception that is
            on its way, if there is one. An interrupt goes on as it is, and this is logged.
    """

    def __init__(self, trained: Iterable[nn.Module] = (), *, told: set[str] | None = None) -> None:
        self._trained = list(trained)
        self._told = set() if told is None else told

    def __enter__(self) -> StateGuard:
        self._objects, self._tensors = KeptObjects(), KeptTensors()
        with ExitStack() as undo:
            undo.callback(RandomStates().put_back)
            undo.callback(ProcessSettings().put_back)
            undo.callback(self._tensors.put_back)
            undo.callback(self._objects.put_back)
            undo.callback(reshard, self._trained)
            leave_autocast_cache_alone()
            reshard(self._trained)
            for module in self._trained:
                self._watch(module, trained=True)
            self._undo = undo.pop_all()
        return self

    def watch(self, things: Iterable[Any]) -> None:
        """Also guards these modules, schedulers and pipelines from now on; modules go into evaluation mode."""
        for thing in things:
            self._watch(thing, trained=False)

    def pipeline(self, given: Any) -> Any:
        """The pipeline given, or what the function given builds, with all of its parts watched."""
        is_built = isinstance(given, nn.Module) or any(hasattr(given, n) for n in ("unet", "transformer", "components"))
        if not is_built:
            for part in mentioned(given):
                self._remember(part, trained=False)
        pipeline = given if is_built else given()
        self.watch([pipeline, find_denoiser(pipeline), *getattr(pipeline, "components", {}).values()])
        if hasattr(pipeline, "set_progress_bar_config"):
            pipeline.set_progress_bar_config(disable=True)  # one bar over the pairs says more than one per sampling
        return pipeline

    def _watch(self, thing: Any, *, trained: bool) -> None:
        self._remember(thing, trained=trained)
        if isinstance(thing, nn.Module):
            for module in thing.modules():
                module.training = False

    def _remember(self, thing: Any, *, trained: bool) -> None:
        if self._objects.knows(thing):
            return
        self._objects.remember(thing)
        if isinstance(thing, nn.Module):
            self._tensors.remember(named_tensors(thing), trained=trained)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        lost, cause = self._put_back()
        if not lost:
            return
        if error is not None and not isinstance(error, Exception):
            logger.error("i2am: %s", lost)
            return
        raise TrainingChanged(lost) from (error or cause)

    def _put_back(self) -> tuple[str, Exception | None]:
        """Why the training can't go on as it was, empty where it can; and what kept something from being put back."""
        try:
            self._tensors.notice(pair for module in self._trained for pair in named_tensors(module))
            self._undo.close()
            changes = self._tensors.changes()
        except Exception as error:
            self._undo.close()
            return (
                f"what an evaluation changed could not be put back or checked: {type(error).__name__}: {error}",
                error,
            )
        lost = what_is_lost(changes, has_reducer=any(map(has_reducer, self._trained)))
        if not lost:
            self._tell_once(what_was_put_back(changes))
            self._tell_once(what_was_written_elsewhere(self._tensors.written_elsewhere()))
        return lost, None

    def _tell_once(self, text: str) -> None:
        if text and text not in self._told:
            logger.warning("i2am: %s", text)
            self._told.add(text)
