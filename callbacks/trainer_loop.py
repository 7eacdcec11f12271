"""`I2AMTrainerCallback`: watches a fine-tune with transformers' Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from i2am_debug.monitor import Monitor

from .checkpoints import CheckpointFile
from .groups import AccelerateGroup
from .loggers import of_trainer
from .watched_run import WatchedRun

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    raise ImportError(
        "I2AMTrainerCallback needs transformers, which is not installed: pip install transformers"
    ) from error


class I2AMTrainerCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]  # transformers is not followed
    """As `I2AMCallback`: `trainer.add_callback(I2AMTrainerCallback(trainer, …))`. Its state is a file of its own in the
    Trainer's checkpoints; an alert as severe as `stop_on` sets `control.should_training_stop`.

    Args:
        trainer: the run's own; its processes and the writer of its TensorBoard integration are used.
        pipeline: a pipeline around the modules being trained, or a function without arguments that builds one from the
            current weights.
        pairs: what to look at; 8 or more make a drop distinguishable from noise.
        every_n_steps: how often, in optimizer steps (`state.global_step`); or `budget=` in place of it.
        logdir: where to write without TensorBoard among `report_to`; default `<output_dir>/i2am_debug`.
        resume_from_checkpoint: the folder given to `trainer.train(resume_from_checkpoint=…)`, which callbacks are not told;
            needed only if it does not lie in `output_dir`.
        settings: every further field of `settings.MonitorSettings`.

    Raises:
        ValueError: a setting is out of range. Whatever else is wrong is raised as training begins.
        TypeError: there is no such setting.
    """

    def __init__(
        self,
        trainer: Any,
        *,
        pipeline: Any,
        pairs: Any,
        every_n_steps: int | None = None,
        logdir: str | Path | None = None,
        resume_from_checkpoint: str | Path | None = None,
        **settings: Any,
    ) -> None:
        self._checkpoint = resume_from_checkpoint
        self._run = WatchedRun(
            "I2AMTrainerCallback",
            pipeline=pipeline,
            group=AccelerateGroup(trainer.accelerator),
            trackers=lambda: of_trainer(trainer),
            logdir=lambda: Path(logdir or Path(trainer.args.output_dir) / "i2am_debug"),
            pairs=pairs,
            every_n_steps=every_n_steps,
            **settings,
        )
        self._file = CheckpointFile(
            self._run.processes,
            state=self.monitor.state,
            resume=self._run.resume,
            cure="unless baseline= names one, or resume_from_checkpoint= the folder that training goes on from",
        )

    @property
    def monitor(self) -> Monitor:
        """What watches the run: `monitor.evaluate(step)`, `monitor.history()`."""
        return self._run.monitor

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Takes up the checkpoint that training goes on from, checks everything, and makes the baseline evaluation unless
        there is one."""
        if state.global_step > 0:
            self._file.load(self._checkpoint or _checkpoint(args, state))
        self._run.on_train_begin(state.global_step)
        self._stop_if_asked_to(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluates when it is time."""
        self._run.on_step_end(state.global_step)
        self._stop_if_asked_to(control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Writes the callback's file into the checkpoint that was just written."""
        self._file.save(_checkpoint(args, state))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluates the final weights unless just done, and closes what was opened."""
        self._run.on_train_end(state.global_step)

    def _stop_if_asked_to(self, control: Any) -> None:
        if self._run.should_stop:
            control.should_training_stop = True


def _checkpoint(args: Any, state: Any) -> Path:
    """Where the Trainer writes the checkpoint of this step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
