"""`I2AMCallback`: watches a fine-tune with Accelerate. The loop's own business; what is done is the monitor's."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator

from .checkpoints import STATE_FILE, in_checkpoints_of
from .groups import AccelerateGroup
from .watched_run import WatchedRun

logger = logging.getLogger("i2am_debug")


class I2AMCallback(WatchedRun):
    """Evaluates how a model uses its reference, every so many optimizer steps, and never changes the training.

    Call the `on_…` methods on every process; they decide inside. Make the callback before `accelerator.load_state`: every
    checkpoint holds its state in a file of its own, so that a resumed run keeps its baseline.

    Args:
        accelerator: the run's own; its TensorBoard tracker's writer is used.
        pipeline: a pipeline around the modules being trained, or a function without arguments that builds one from the
            current weights, as official training scripts do for their validation.
        pairs: what to look at; 8 or more make a drop distinguishable from noise.
        every_n_steps: how often, in global (optimizer) steps; or, in place of it, `budget`: the share of the run's time that
            evaluations may take.
        logdir: where to write when the run has no TensorBoard tracker; default `<project_dir or "runs">/i2am_debug`.
        settings: every further field of `settings.MonitorSettings`, which describes them: `loss_fn`, `call`, `plan`,
            `way`, `encode`, `size`, `kept_threshold`, `budget`, `baseline`, `rules`, `on_alert`, `stop_on`, `fail_on`,
            `on_error`, `family`, `imacs`, `num_inference_steps`, `batch_size`, `pictures`, `panels`, `keep_matrices`,
            `seed`, `disable_progress_bar`, `synchronous`.

    Raises:
        ValueError: a setting is out of range. Whatever else is wrong is raised by `on_train_begin`.
        TypeError: there is no such setting.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        *,
        pipeline: Any,
        pairs: Any,
        every_n_steps: int | Literal["asked"] | None = None,
        logdir: str | Path | None = None,
        **settings: Any,
    ) -> None:
        self.accelerator = accelerator
        super().__init__(
            "I2AMCallback",
            pipeline=pipeline,
            group=AccelerateGroup(accelerator),
            trackers=lambda: accelerator.trackers,
            logdir=lambda: Path(logdir or Path(accelerator.project_dir or "runs") / "i2am_debug"),
            pairs=pairs,
            every_n_steps=every_n_steps,
            **settings,
        )
        in_checkpoints_of(
            accelerator,
            self.processes,
            state=self.monitor.state,
            resume=self.resume,
            registered=self._is_registered,
        )

    def on_train_begin(self, global_step: int = 0) -> None:
        """Checks pairs, pipeline and settings, and makes the baseline evaluation unless there is one.

        Raises:
            I2AMError, ValueError: something can't work; raised whatever `on_error` says, before training time is spent.
        """
        if self._is_registered():
            logger.info("i2am: accelerator.register_for_checkpointing(callback) can go: %s holds its state", STATE_FILE)
        super().on_train_begin(global_step)

    def _is_registered(self) -> bool:
        return any(one is self for one in self.accelerator._custom_objects)
