"""`I2AMCallback`: watches a fine-tune with Accelerate. The loop's own business; what is done is the monitor's."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

from i2am_debug.figures.record import Evaluation
from i2am_debug.guard.state_guard import StateGuard
from i2am_debug.monitor import Monitor
from i2am_debug.settings import MonitorSettings

from .checkpoints import STATE_FILE, CheckpointFile
from .processes import AccelerateProcesses
from .trackers import RunTrackers

logger = logging.getLogger("i2am_debug")


class I2AMCallback:
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
        self._given_pipeline = pipeline
        self._logdir = logdir
        self._told: set[str] = set()
        processes = AccelerateProcesses(accelerator)
        self.monitor = Monitor(
            MonitorSettings.of("I2AMCallback", pairs=pairs, every_n_steps=every_n_steps, **settings),
            pipeline=self._pipeline,
            processes=processes,
            trackers=self._open_trackers,
        )
        CheckpointFile(
            accelerator, processes, state=self.monitor.state, resume=self._resume, registered=self._is_registered
        )

    @property
    def should_stop(self) -> bool:
        """Whether an alert as severe as `stop_on` was raised; the same on every process. The training loop decides."""
        return self.monitor.should_stop

    def on_train_begin(self, global_step: int = 0) -> None:
        """Checks pairs, pipeline and settings, and makes the baseline evaluation unless there is one.

        Raises:
            I2AMError, ValueError: something can't work; raised whatever `on_error` says, before training time is spent.
        """
        if self._is_registered():
            logger.info("i2am: accelerator.register_for_checkpointing(callback) can go: %s holds its state", STATE_FILE)
        self.monitor.begin(global_step)

    def on_step_end(self, global_step: int) -> None:
        """Evaluates when it is time (`every_n_steps` or `budget`); once a step, however often it is called."""
        self.monitor.step(global_step)

    def on_validation(self, global_step: int) -> None:
        """Evaluates now, unless this step just was: for loops that look when they validate (`every_n_steps="asked"`)."""
        self.monitor.asked(global_step)

    def on_train_end(self, global_step: int) -> None:
        """Evaluates the final weights unless just done, and closes what was opened."""
        self.monitor.end(global_step)

    def evaluate(self, global_step: int) -> Evaluation:
        """Evaluates now, writes and compares; returns the figures on every process.

        Raises:
            IMACSRegression: an alert as severe as `fail_on`, on every process.
            Exception: what went wrong, whatever `on_error` says.
        """
        return self.monitor.evaluate(global_step)

    def history(self) -> list[Evaluation]:
        """The run's evaluations so far, by step; on the main process."""
        return self.monitor.history()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: plain values and tensors, loadable with `weights_only=True`."""
        state = self.monitor.state()
        return {**state, "baseline_maps": {k: torch.as_tensor(v) for k, v in state["baseline_maps"].items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a checkpoint; evaluations after it, if the folder has any, are superseded."""
        maps = {name: tensor.numpy() for name, tensor in state.get("baseline_maps", {}).items()}
        self._resume({**state, "baseline_maps": maps})

    def _resume(self, state: Mapping[str, Any]) -> None:
        before = self.monitor.state()
        try:
            self.monitor.resume(state)
        except Exception:
            self.monitor.resume(before)
            raise

    def _is_registered(self) -> bool:
        return any(one is self for one in self.accelerator._custom_objects)

    @contextmanager
    def _pipeline(self) -> Iterator[Any]:
        """A pipeline of the current weights, with everything that is being trained left as it was."""
        with StateGuard(self.accelerator._models, told=self._told) as guard:
            yield guard.pipeline(self._given_pipeline)

    def _open_trackers(self) -> RunTrackers:
        own = self._logdir or Path(self.accelerator.project_dir or "runs") / "i2am_debug"
        return RunTrackers(self.accelerator.trackers, Path(own))
