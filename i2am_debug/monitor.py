"""One run under watch: when it is evaluated, and what happens when that fails. Knows no training loop.

A loop tells the monitor which step it is. What differs from loop to loop is handed in: the processes there are, the trackers,
and how to get at a pipeline of the current weights while the training stays untouched. What becomes of an evaluation once the
pairs are looked at is `run.reporter`'s.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from .alerts.alert import Alert
from .alerts.judge import refuse_idle_rules
from .alerts.rule import at_least
from .errors import I2AMError, IMACSRegression, ProcessMissing, TrainingChanged
from .evaluation.memory import peak_memory
from .figures.declared import REFERENCE_GAP
from .figures.observation import Observation, merge_observations
from .figures.record import Evaluation, differences, in_words
from .figures.scoring import with_probes
from .figures.values import Undefined
from .loop import Processes, Trackers
from .report.found import what_was_found
from .run import stages
from .run.looking import Looked, Looking
from .run.recorder import Written
from .run.reporter import Reporter
from .run.stages import Failure, Stage, at, where
from .settings import MonitorSettings
from .store.evaluation_file import read_evaluation

logger = logging.getLogger("i2am_debug")

T = TypeVar("T")


@dataclass(frozen=True)
class _Outcome:
    """What an evaluation has come to, the same on every process."""

    evaluation: Evaluation
    alerts: Sequence[Alert]
    """Raised now, and earlier ones that an interrupt kept from being acted on."""
    failures: Sequence[Failure]


class Monitor:
    """Evaluates a run every so many steps, writes, compares and reports.

    Args:
        pipeline: a context that yields a pipeline of the current weights and leaves everything as it found it.
        trackers: opens the run's trackers; called once, on the main process, when something is first written.
    """

    def __init__(
        self,
        settings: MonitorSettings,
        *,
        pipeline: Callable[[], AbstractContextManager[Any]],
        processes: Processes,
        trackers: Callable[[], Trackers],
    ) -> None:
        self.settings = settings
        self.evaluator = settings.evaluator()
        self._spacing = settings.spacing()
        self.should_stop = False
        """Whether an alert as severe as `stop_on` was raised; the same on every process. The training loop decides."""
        self.evaluator.in_step, self.evaluator.in_lockstep = processes.several, processes.in_lockstep
        self._pipeline, self._processes = pipeline, processes
        self._looking = Looking(self.evaluator, processes, progress_bar=not settings.disable_progress_bar)
        self.reporter = Reporter(settings, pairs=lambda: self.evaluator.pairs, open_trackers=trackers)
        self._last_step: int | None = None
        self._evaluated = False  # since this program started
        self._lost: list[int] = []  # steps whose evaluation failed
        # Stages that failed last time, which need no second warning; in writing (True), which ends later, and before it.
        self._failing: dict[bool, set[str]] = {}
        if settings.baseline is not None:
            self.reporter.baseline, self.reporter.baseline_maps = read_evaluation(settings.baseline)
            self.evaluator.look_as(self.reporter.baseline)

    # -- the steps of a run ------------------------------------------------------------------------------------------

    def begin(self, global_step: int) -> None:
        """Checks pairs, pipeline and settings, and makes the baseline evaluation unless there is one.

        Raises:
            I2AMError, ValueError: something can't work; raised whatever `on_error` says, before training time is spent.
        """
        with self._pipeline_on_all() as pipeline:
            self._processes.agree(lambda: self._together(pipeline, self.evaluator.check))
            self._take_one_way(pipeline)
        self._tell_of(self._processes.from_main(lambda: self.reporter.begin(global_step)))
        self._act_on(self._processes.from_main(lambda: self.reporter.undelivered.waiting("on_alert")))
        # Only the main process has this run's own baseline, so it decides for all.
        if self._processes.from_main(lambda: self._is_due_at_the_beginning(global_step)):
            self._evaluate_or_warn(global_step)
        self._processes.from_main(self._check_rules)

    def step(self, global_step: int) -> None:
        """Evaluates when it is time (`every_n_steps` or `budget`); once a step, however often it is called."""
        if self.settings.on_error == "warn":  # what raises waits for the next evaluation, where all processes do
            self._tell_of_written(self.reporter.written())
        if global_step != self._last_step:
            self._evaluate_or_warn(global_step, lambda: self._spacing.due(global_step, self._processes.from_main))

    def asked(self, global_step: int) -> None:
        """Evaluates now, unless this step just was; a failure is what `on_error` says."""
        if global_step != self._last_step:
            self._evaluate_or_warn(global_step)

    def end(self, global_step: int) -> None:
        """Evaluates the final weights unless just done, finishes the writing, and closes what was opened."""
        self.asked(global_step)
        failures: list[Failure] = []
        written: list[Written] = []

        def close() -> None:
            of_end, of_evaluations = self._processes.from_main(lambda: (self.reporter.end(), self.reporter.written()))
            failures.extend(of_end)
            written.extend(of_evaluations)

        # A script that ends now frees its process group while gloo's thread may still hold our last gather's tensors;
        # both then wait for the interpreter's lock for ever (torch 2.13, CPU). A barrier gives that thread time.
        for last in (close, self._processes.wait):
            try:
                last()
            except Exception as error:  # the other processes must not wait for ever, nor the script's last save be lost
                failures.append(Failure.of(error, Stage.CLOSE))
        if self._lost and self._processes.is_main:
            steps = ", ".join(map(str, self._lost[:8])) + (", …" if len(self._lost) > 8 else "")
            logger.warning("i2am: %d evaluations failed and were skipped: at steps %s", len(self._lost), steps)
        self._tell_of_written(written)
        self._tell_of(failures, f"at the end, step {global_step},")

    def evaluate(self, global_step: int) -> Evaluation:
        """Evaluates now, writes, compares and draws, all before it returns the figures on every process.

        Raises:
            IMACSRegression: an alert as severe as `fail_on`, on every process.
            Exception: what went wrong, whatever `on_error` says.
        """
        started = time.monotonic()
        outcome = self._look_and_report(global_step)
        self._spacing.evaluated(global_step, time.monotonic() - started)
        self._act_on(outcome.alerts)
        written = self._processes.from_main(self.reporter.wait)
        if failures := [*outcome.failures, *(failure for one in written for failure in one.failures)]:
            raise _not_everything(f"of the evaluation at step {global_step}", failures)
        return outcome.evaluation

    def history(self) -> list[Evaluation]:
        """The run's evaluations so far, by step; on the main process."""
        return self.reporter.stored()

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a resumed run needs: plain values, and the baseline's maps as arrays."""
        return {
            "last_step": self._last_step,
            "should_stop": self.should_stop,
            "spacing": self._spacing.state(),
            "pairs_at_once": self.evaluator.at_most,
            **self.reporter.state(),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` gave, or as much of it as an older version did.

        Evaluations after it, if the folder has any, are superseded.
        """
        self._last_step = self.reporter.resumed_at = state.get("last_step")
        self.reporter.resume(state)
        if state.get("baseline") is not None and self.reporter.baseline is not None:
            self.evaluator.look_as(self.reporter.baseline)
        self.should_stop = state.get("should_stop", False)
        self._spacing.resume(state.get("spacing", {}))
        self.evaluator.at_most = state.get("pairs_at_once")

    # -- one evaluation ----------------------------------------------------------------------------------------------

    def _evaluate_or_warn(self, global_step: int, is_due: Callable[[], bool] = lambda: True) -> None:
        outcome, started = None, time.monotonic()
        try:
            if not is_due():
                return
            outcome = self._look_and_report(global_step)
        except TrainingChanged:
            raise  # going on would be worse
        except Exception as error:
            if self.settings.on_error == "raise":
                raise
            self._last_step = global_step
            self._lost.append(global_step)
            logger.warning(
                "i2am: the evaluation at step %d failed %sand is skipped; training goes on: %s",
                global_step,
                f"while {where(error)} " if where(error) else "",
                error if isinstance(error, I2AMError) else f"{type(error).__name__}: {error}",
                exc_info=not isinstance(error, I2AMError),
            )
        took = time.monotonic() - started
        self._spacing.evaluated(global_step, took)
        if self.settings.budget is not None and self._processes.is_main:
            logger.info("i2am: %.3g s of looking: %s", took, self._spacing.in_words(took))
        if outcome is not None:
            self._act_on(outcome.alerts)  # outside the try: an on_alert that raises, and fail_on, mean to end training
            self._tell_of_written(self._processes.from_main(self.reporter.written))
            self._tell_of(outcome.failures, f"of the evaluation at step {global_step}")

    def _look_and_report(self, global_step: int) -> _Outcome:
        """Everything that can fail on one process alone is agreed on before any waits for another in a forward."""
        started, memory = time.monotonic(), peak_memory()
        with self._pipeline_on_all() as pipeline:
            self._take_one_way(pipeline)
            shares = self._look(pipeline)
            pictures = {i: picture for share in shares for i, picture in share.pictures.items()}
            everything = [observation for share in shares for observation in share.observations]
            observations = merge_observations(everything, pictures, len(self.evaluator.pairs))
            scored: list[Evaluation] = []
            self._processes.from_main(lambda: scored.append(self._score(pipeline, observations, global_step, started)))
            if self._processes.from_main(lambda: self.reporter.judge(scored[0], observations)):
                shares += self._looking.probe(pipeline)
        failures = list({failure.text: failure for share in shares for failure in share.failures}.values())
        probes = {i: losses for share in shares for i, losses in share.probes.items()}
        outcome = self._processes.from_main(
            lambda: self._report(with_probes(scored[0], probes), observations, failures, started, memory)
        )
        self._last_step = global_step
        return outcome

    @contextmanager
    def _pipeline_on_all(self) -> Iterator[Any]:
        """A pipeline on every process or an error on every process; the same when everything is put back."""
        stack = ExitStack()
        try:

            def build() -> Any:
                with at(Stage.PIPELINE):
                    return stack.enter_context(self._pipeline())

            yield self._processes.agree(build)
        except BaseException as error:
            raised = sys.exc_info()
            if isinstance(error, Exception) and not isinstance(error, ProcessMissing):
                self._processes.agree(lambda: stack.__exit__(*raised))
            else:
                stack.__exit__(*raised)  # an interrupt, or nobody there: the others can't be asked
            raise

        def put_back() -> None:
            with at(Stage.PUT_BACK, is_entered=False), stack:
                stages.entered(Stage.PUT_BACK)

        self._processes.agree(put_back)

    def _take_one_way(self, pipeline: Any) -> None:
        """What one process can't teacher-force, none does: their figures are of one evaluation."""
        ways = self._processes.gather(lambda: self._together(pipeline, self.evaluator.way_for))
        self.evaluator.use(next((way for way in ways if way.instead), ways[0]), pipeline)

    def _together(self, pipeline: Any, work: Callable[[Any], T]) -> T:
        """Work that runs forwards of the pipeline; if it fails on one process, it does on all."""
        with self._processes.in_lockstep(pipeline):
            return work(pipeline)

    def _look(self, pipeline: Any) -> list[Looked]:
        """What each process has seen of its share."""
        at_once = self.evaluator.at_most
        shares = self._looking.look(pipeline)
        if self.evaluator.at_most != at_once and not self.evaluator.noise_is_by_pair and self.settings.baseline is None:
            self.reporter.begin_anew()
        return shares

    def _score(self, pipeline: Any, observations: list[Observation], global_step: int, started: float) -> Evaluation:
        with at(Stage.SCORE):
            maps = self.reporter.baseline_maps
            evaluation = self.evaluator.score(observations, global_step=global_step, pipeline=pipeline, baseline=maps)
            watched = self.reporter.watched_layer(evaluation)
            return replace(evaluation, watched_layer=watched, seconds=time.monotonic() - started)

    def _report(
        self,
        evaluation: Evaluation,
        observations: list[Observation],
        failed: list[Failure],
        started: float,
        memory: int,
    ) -> _Outcome:
        """On the main process."""
        if not self._evaluated:  # before the observations are another thread's
            seconds = time.monotonic() - started
            self._tell_what_was_found(evaluation, observations, seconds, peak_memory() - memory)
        self._evaluated = True
        failures = self.reporter.report(evaluation, observations)
        if self.reporter.baseline is evaluation and self._lost:
            logger.warning(
                "i2am: the evaluation at step %d is this run's baseline, since that at step %d failed: what was lost before "
                "can't be seen",
                evaluation.global_step,
                self._lost[0],
            )
        return _Outcome(evaluation, self.reporter.undelivered.waiting("on_alert"), [*failed, *failures])

    def _tell_what_was_found(
        self, evaluation: Evaluation, observations: list[Observation], seconds: float, memory: int
    ) -> None:
        way = self.evaluator.chosen
        assert way is not None
        found = what_was_found(
            evaluation, observations, way, seconds=seconds, memory=memory, cost=self._spacing.in_words(seconds)
        )
        logger.info("i2am: %s", found)
        if way.instead:
            logger.warning("i2am: every pair is sampled, which is slow: %s", way.instead)
        gap = evaluation.mean(REFERENCE_GAP.tag)
        if isinstance(gap, Undefined):
            logger.warning("i2am: no reference gap, which tells most: %s", gap.reason)

    # -- what it comes to --------------------------------------------------------------------------------------------

    def _is_due_at_the_beginning(self, global_step: int) -> bool:
        saved_before_it_was_evaluated = self._spacing.falls_on(global_step) and global_step != self._last_step
        return self.reporter.baseline is None or self._last_step is None or saved_before_it_was_evaluated

    def _act_on(self, alerts: Sequence[Alert]) -> None:
        """What alerts do, the same on every process; depends on no picture, tracker or disk.

        What `on_alert` raises ends the training, on every process.
        """
        if not alerts:
            return
        settings = self.settings
        for alert in alerts:
            if settings.stop_on is not None and at_least(alert.severity, settings.stop_on):
                self.should_stop = True

        def call(alert: Alert) -> bool:
            if settings.on_alert is not None:
                settings.on_alert(alert)
            return True

        self._processes.from_main(lambda: self.reporter.undelivered.deliver("on_alert", call))
        for alert in alerts:
            if settings.fail_on is not None and at_least(alert.severity, settings.fail_on):
                raise IMACSRegression(alert.text, alert)

    def _check_rules(self) -> None:
        baseline, newest = self.reporter.baseline, self.reporter.newest
        if baseline is None:
            return  # no evaluation has succeeded yet
        refuse_idle_rules(self.settings.rules, baseline)
        if self.settings.baseline is not None and newest is not None:
            unlike = differences(newest, baseline)
            if unlike:
                raise I2AMError(f"baseline= is not comparable with this run, they differ in {in_words(unlike)}")

    def _tell_of_written(self, written: Sequence[Written]) -> None:
        """Of evaluations whose writing has ended."""
        for one in written:
            self._tell_of(one.failures, f"of the evaluation at step {one.global_step}", is_written=True)

    def _tell_of(
        self, failures: Sequence[Failure], of_what: str = "at the beginning", *, is_written: bool = False
    ) -> None:
        """What could not be done, as an error or once as a warning; again when it went well in between."""
        if failures and self.settings.on_error == "raise":
            raise _not_everything(of_what, failures)
        news = [failure for failure in failures if failure.stage not in self._failing.get(is_written, ())]
        self._failing[is_written] = {failure.stage for failure in failures}
        if news and self._processes.is_main:
            logger.warning("i2am: %s; training goes on", _not_everything(of_what, news))


def _not_everything(of_what: str, failures: Sequence[Failure]) -> I2AMError:
    return I2AMError(f"{of_what} not everything could be done: {'; '.join(failure.text for failure in failures)}")
