"""Pairs evaluated while an unmodified script trains: what the script does, handed to `I2AMCallback`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache

from i2am_debug.errors import I2AMError, TrainingStopped

from ..accelerate_loop import I2AMCallback
from .loaded_parts import LoadedParts
from .options import RunOptions
from .script_pipeline import ScriptPipeline
from .step_count import StepCount
from .watch import Attached

logger = logging.getLogger("i2am_debug")


class Evaluating(Attached):
    """One callback for the script's accelerator.

    Raises:
        I2AMError: several processes train, and evaluations were to come with validations, which only one of them makes.
    """

    def __init__(self, options: RunOptions, accelerator: Accelerator, loaded: LoadedParts) -> None:
        self._accelerator, self._options = accelerator, options
        self._when_it_validates = options.settings.get("every_n_steps") == "asked"
        if self._when_it_validates and accelerator.num_processes > 1:
            raise I2AMError(
                f"{accelerator.num_processes} processes train, and scripts validate on the main one alone, where the others "
                "would be waited for in vain; give --every-n-steps N or --budget 0.02, at which all of them look"
            )
        self._pipeline = ScriptPipeline(accelerator, loaded, asked_for=options.pipeline, model=options.model)
        self._steps = StepCount(accelerator)
        self.callback = I2AMCallback(accelerator, pipeline=self._pipeline, logdir=options.logdir, **options.settings)
        self._told_to_stop = False

    def about_to_train(self) -> None:
        with self._undisturbed():
            self.callback.on_train_begin(self._steps.global_step)
        if self._when_it_validates:
            logger.info("i2am: the pairs are evaluated when the script validates, and at the end")
        self._stop_if_asked()

    def stepped(self, optimizer: Any) -> bool:
        return self._steps.stepped(optimizer)

    def step_ended(self) -> None:
        with self._undisturbed():
            self.callback.on_step_end(self._steps.global_step)
        self._stop_if_asked()

    def calls(self, pipeline: Any, arguments: Mapping[str, Any], call: Callable[[], Any]) -> Any:
        if self._when_it_validates and self._pipeline.is_of_the_training(pipeline):
            with self._undisturbed():
                self.callback.on_validation(self._steps.global_step)
            self._stop_if_asked()
        return call()

    def training_ended(self) -> None:
        with self._undisturbed():
            self.callback.on_train_end(self._steps.global_step)

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """The same surroundings at every evaluation, wherever the script is: its autocast would make them incomparable."""
        device = self._accelerator.device.type
        with self._pipeline.parts_held(), torch.autocast(device, enabled=False):
            yield
        if self._pipeline.was_built:
            self._pipeline.was_built = False
            clear_device_cache(
                garbage_collection=True
            )  # what was loaded for the evaluation is the training's memory again

    def _stop_if_asked(self) -> None:
        """A script has no place where it could be told to stop: it is ended where a step ends, with a checkpoint."""
        if not self.callback.should_stop:
            return
        step = self._steps.global_step
        if not self._options.stops:
            if not self._told_to_stop:
                logger.warning(
                    "i2am: an alert at step %d, after which training goes on; stop_on = %r in the config file ends it there, "
                    "with a checkpoint",
                    step,
                    self.callback.monitor.settings.stop_on,
                )
            self._told_to_stop = True
            return
        folder = Path(self._accelerator.project_dir or ".") / f"checkpoint-{step}"
        if not folder.exists():
            self._accelerator.save_state(str(folder))
        self._accelerator.end_training()  # which asks for the last evaluation, and closes the trackers
        raise TrainingStopped(
            f"training was stopped at step {step} by an alert as severe as stop_on={self.callback.monitor.settings.stop_on!r}; "
            f"its state is in {folder}"
        )
