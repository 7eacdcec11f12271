"""What a script's Accelerator and pipelines do, told to the callback.

Everything is learned from methods of Accelerate's and diffusers' classes that the script calls anyway; it needs no line in the
script, and the methods are put back when it ends.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from diffusers import DiffusionPipeline

from .loaded_parts import LoadedParts
from .patches import Patches

logger = logging.getLogger("i2am_debug")


class Attached:
    """What is told; each method does nothing unless it is overridden. `watch` calls them on every process."""

    def about_to_train(self) -> None:
        """Before the first forward of the training."""

    def stepped(self, optimizer: Any) -> bool:
        """After `optimizer.step()`; returns whether that made a global step."""
        return False

    def step_ended(self) -> None:
        """After a global step, when the script has left `accelerator.accumulate`."""

    def calls(self, pipeline: Any, arguments: Mapping[str, Any], call: Callable[[], Any]) -> Any:
        """The script's own call of a pipeline, with its arguments by name; returns what `call` does."""
        return call()

    def training_ended(self) -> None:
        """Before the trackers are closed, or when the script has ended without closing them."""


class ScriptWatch(AbstractContextManager["ScriptWatch"]):
    """Watches the first `Accelerator` that is made inside the `with`.

    Args:
        attach: makes what is told, of that accelerator and of the parts that the script loads.
    """

    def __init__(self, attach: Callable[[Accelerator, LoadedParts], Attached]) -> None:
        self._attach = attach
        self._patches, self._loaded = Patches(), LoadedParts()
        self._accelerator: Accelerator | None = None
        self._attached = Attached()
        self._begun = self._ended = self._inside = self._is_due = False
        self._depth = 0  # of the blocks of accelerator.accumulate

    def __enter__(self) -> ScriptWatch:
        wrap = self._patches.wrap
        self._loaded.watch(self._patches)
        wrap(Accelerator, "__init__", self._made)
        wrap(Accelerator, "accumulate", self._accumulate)
        wrap(Accelerator, "backward", self._backward)
        wrap(Accelerator, "end_training", self._end_training)
        for kind in (AcceleratedOptimizer, *AcceleratedOptimizer.__subclasses__()):
            if "step" in vars(kind):
                wrap(kind, "step", self._step)
        wrap(DiffusionPipeline, "register_modules", self._pipeline_made)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._patches.__exit__(kind, error, trace)

    def script_ended(self) -> None:
        """The script has come to its end; it may have left its trackers open.

        Raises:
            what the last evaluation raises.
        """
        if self._accelerator is None:
            logger.warning("i2am: the script made no accelerate.Accelerator; nothing was looked at")
        elif not self._begun:
            logger.warning("i2am: the script made no training step; nothing was looked at")
        self._end()

    # -- the accelerator ---------------------------------------------------------------------------------------------

    def _made(self, original: Any, accelerator: Accelerator, *args: Any, **kwargs: Any) -> None:
        original(accelerator, *args, **kwargs)
        if self._accelerator is None:
            self._accelerator = accelerator
            self._attached = self._attach(accelerator, self._loaded)

    @contextmanager
    def _accumulate(self, original: Any, accelerator: Accelerator, *models: Any) -> Iterator[None]:
        if accelerator is not self._accelerator:
            with original(accelerator, *models):
                yield
            return
        self._begin()
        self._depth += 1
        try:
            with original(accelerator, *models):
                yield
        finally:
            self._depth -= 1
        self._tell_of_the_step()

    def _backward(self, original: Any, accelerator: Accelerator, *args: Any, **kwargs: Any) -> Any:
        if accelerator is self._accelerator:
            self._begin()
        return original(accelerator, *args, **kwargs)

    def _step(self, original: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(optimizer, *args, **kwargs)
        if self._begun and self._attached.stepped(optimizer):
            self._is_due = True
            if not self._depth:
                self._tell_of_the_step()
        return result

    def _end_training(self, original: Any, accelerator: Accelerator) -> Any:
        if accelerator is self._accelerator:
            self._end()
        return original(accelerator)

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            with self._telling():
                self._attached.about_to_train()

    def _tell_of_the_step(self) -> None:
        if self._is_due and not self._depth:
            self._is_due = False
            with self._telling():
                self._attached.step_ended()

    def _end(self) -> None:
        if self._begun and not self._ended:
            self._ended = True
            with self._telling():
                self._attached.training_ended()

    # -- pipelines ---------------------------------------------------------------------------------------------------

    def _pipeline_made(self, original: Any, pipeline: Any, **parts: Any) -> None:
        original(pipeline, **parts)
        kind = next((k for k in type(pipeline).__mro__ if "__call__" in vars(k)), None)
        if kind is not None:
            self._patches.wrap(kind, "__call__", self._pipeline_called)

    def _pipeline_called(self, original: Any, pipeline: Any, *args: Any, **kwargs: Any) -> Any:
        def call() -> Any:
            return original(pipeline, *args, **kwargs)

        if self._inside or self._ended:
            return call()
        arguments = inspect.signature(original).bind_partial(pipeline, *args, **kwargs).arguments
        with self._telling():
            return self._attached.calls(pipeline, arguments, call)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """A block whose own calls of pipelines are not the script's."""
        self._inside = True
        try:
            yield
        finally:
            self._inside = False
