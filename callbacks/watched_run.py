"""`WatchedRun`: what the callbacks of all loops have in common. A loop says what it trains, on which processes, and where it
logs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from i2am_debug.figures.record import Evaluation
from i2am_debug.guard.state_guard import StateGuard
from i2am_debug.monitor import Monitor
from i2am_debug.report.notebook import show_in_notebooks
from i2am_debug.settings import MonitorSettings

from .groups import Group
from .processes import GroupProcesses
from .trackers import RunTrackers


class WatchedRun:
    """Call the `on_…` methods on every process; they decide inside.

    Args:
        asked_by: who is named in an error about a setting.
        pipeline: a pipeline around the modules being trained, or a function that builds one.
        group: the processes, and what they train.
        trackers: the loop's own loggers, as `trackers.RunTrackers` takes them; asked when something is first written.
        logdir: where to write when none of them is TensorBoard's; asked then too.
        around: a context in which the loop itself would validate, such as its autocast.
    """

    def __init__(
        self,
        asked_by: str,
        *,
        pipeline: Any,
        group: Group,
        trackers: Callable[[], list[Any]],
        logdir: Callable[[], Path],
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
        **settings: Any,
    ) -> None:
        self._given_pipeline, self._group, self._around = pipeline, group, around
        self._told: set[str] = set()
        show_in_notebooks()
        self.processes = GroupProcesses(group)
        self.monitor = Monitor(
            MonitorSettings.of(asked_by, **settings),
            pipeline=self._pipeline,
            processes=self.processes,
            trackers=lambda: RunTrackers(trackers(), logdir()),
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
        self.resume({**state, "baseline_maps": maps})

    def resume(self, state: Mapping[str, Any]) -> None:
        """Takes up what `monitor.state()` gave; where it can't, all is left as it was and the error is raised."""
        before = self.monitor.state()
        try:
            self.monitor.resume(state)
        except Exception:
            self.monitor.resume(before)
            raise

    @contextmanager
    def _pipeline(self) -> Iterator[Any]:
        """A pipeline of the current weights, with everything that is being trained left as it was."""
        with StateGuard(self._group.trained(), told=self._told) as guard, self._around():
            yield guard.pipeline(self._given_pipeline)
