"""`I2AMLightningCallback`: watches a fine-tune with Lightning 2."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import nn

from i2am_debug.errors import I2AMError
from i2am_debug.monitor import Monitor

from .checkpoints import UNREADABLE
from .groups import TorchGroup
from .loggers import of_lightning
from .watched_run import WatchedRun

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError:
    try:
        from pytorch_lightning import Callback
    except ModuleNotFoundError as error:
        raise ImportError(
            "I2AMLightningCallback needs Lightning 2, which is not installed: pip install lightning"
        ) from error

logger = logging.getLogger("i2am_debug")


class I2AMLightningCallback(Callback):  # type: ignore[misc, unused-ignore]  # Lightning is not followed
    """As `I2AMCallback`, for `Trainer(callbacks=[…])`. Its state is in Lightning's checkpoints; an alert as severe as `stop_on`
    sets `trainer.should_stop`.

    Pairs are looked at as in a validation of Lightning's own: under the trainer's precision, at steps of `trainer.global_step`,
    which counts the steps of all optimizers.

    Args:
        pipeline: a pipeline around the modules being trained, or a function without arguments that builds one from the
            current weights.
        pairs: what to look at; 8 or more make a drop distinguishable from noise.
        every_n_steps: how often, in `trainer.global_step`; or `budget=` in place of it.
        logdir: where to write when the trainer has no TensorBoardLogger; default `<default_root_dir>/i2am_debug`.
        settings: every further field of `settings.MonitorSettings`.

    Raises:
        ValueError: a setting is out of range. Whatever else is wrong is raised as training begins.
        TypeError: there is no such setting.
    """

    def __init__(
        self,
        *,
        pipeline: Any,
        pairs: Any,
        every_n_steps: int | None = None,
        logdir: str | Path | None = None,
        **settings: Any,
    ) -> None:
        self._trainer: Any = None
        self._step: int | None = None
        self._run = WatchedRun(
            "I2AMLightningCallback",
            pipeline=pipeline,
            group=TorchGroup(self._trained),
            trackers=lambda: [of_lightning(one) for one in self._trainer.loggers],
            logdir=lambda: Path(logdir or Path(self._trainer.default_root_dir) / "i2am_debug"),
            around=self._precision,
            pairs=pairs,
            every_n_steps=every_n_steps,
            **settings,
        )

    @property
    def monitor(self) -> Monitor:
        """What watches the run: `monitor.evaluate(step)`, `monitor.history()`."""
        return self._run.monitor

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Checks pairs, pipeline and settings, and makes the baseline evaluation unless there is one."""
        self._trainer, self._step = trainer, trainer.global_step
        self._run.on_train_begin(trainer.global_step)
        self._stop_if_asked_to()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Evaluates when it is time."""
        if trainer.global_step == self._step:
            return  # a batch whose gradients are only added up
        self._step = trainer.global_step
        self._run.on_step_end(trainer.global_step)
        self._stop_if_asked_to()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Evaluates the final weights unless just done, and closes what was opened."""
        self._run.on_train_end(trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return self._run.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a checkpoint; if that can't be done, the callback begins anew and a warning says so."""
        try:
            self._run.load_state_dict(state_dict)
        except UNREADABLE as error:
            logger.warning(
                "i2am: the callback's state in the checkpoint can't be taken up, it begins anew and training goes on: %s: %s",
                type(error).__name__,
                error,
            )

    def _stop_if_asked_to(self) -> None:
        if self._run.should_stop:
            self._trainer.should_stop = True

    def _trained(self) -> list[nn.Module]:
        if self._trainer is None:
            raise I2AMError("I2AMLightningCallback is in no training yet: it looks at pairs from trainer.fit on")
        return [self._trainer.strategy.model]

    def _precision(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self._trainer.precision_plugin.forward_context()
        return context
