"""One run under watch: when it is evaluated, and what becomes of an evaluation. Knows no training loop.

A loop tells the monitor which step it is. What differs from loop to loop is handed in: the processes there are, the trackers,
and how to get at a pipeline of the current weights while the training stays untouched.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from PIL import Image
from tqdm.auto import tqdm

from .alerts.alert import Alert
from .alerts.alert_state import AlertState
from .alerts.judge import refuse_idle_rules
from .alerts.rule import at_least
from .errors import I2AMError, IMACSRegression
from .evaluation.memory import peak_memory
from .figures.declared import ATTENTION_INFORMATION, REFERENCE_GAP
from .figures.observation import Observation, merge_observations
from .figures.record import Evaluation, differences, in_words
from .figures.values import Undefined
from .loop import Processes, Trackers
from .report.found import what_was_found
from .report.log import log_line
from .report.pictures import alert_panels, pictures_of
from .settings import MonitorSettings
from .store.evaluation_file import read_evaluation
from .store.packing import pack_observations, unified_maps
from .store.run_store import RunStore

logger = logging.getLogger("i2am_debug")

T = TypeVar("T")
_Outcome = tuple[Evaluation, Alert | None, list[str]]  # what was found, and what could not be reported
_Observed = tuple[list[Observation], dict[int, Image.Image]]  # of pairs, and pictures sampled apart from them


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
        self._pipeline, self._processes, self._open_trackers = pipeline, processes, trackers
        self._alert_state = AlertState(settings.rules)
        self._trackers: Trackers | None = None
        self._store: RunStore | None = None
        self._baseline: Evaluation | None = None
        self._baseline_maps: dict[str, Any] = {}
        self._newest: Evaluation | None = None
        self._last_step: int | None = None
        self._resumed_at: int | None = None
        self._told: set[str] = set()
        self._unwritten: list[Alert] = []  # alerts that the disk did not take; tried again at every evaluation
        if settings.baseline is not None:
            self._baseline, self._baseline_maps = read_evaluation(settings.baseline)

    # -- the steps of a run ------------------------------------------------------------------------------------------

    def begin(self, global_step: int) -> None:
        """Checks pairs, pipeline and settings, and makes the baseline evaluation unless there is one.

        Raises:
            I2AMError, ValueError: something can't work; raised whatever `on_error` says, before training time is spent.
        """
        with ExitStack() as stack:
            pipeline = self._processes.agree(lambda: stack.enter_context(self._pipeline()))
            self._processes.agree(lambda: self._together(pipeline, self.evaluator.check))
            self._take_one_way(pipeline)
        if self._resumed_at is None and self._processes.is_main:
            self._resumed_at = global_step  # whatever the folder holds beyond this step is of an abandoned attempt
        # Only the main process has this run's own baseline, so it decides for all.
        if self._processes.from_main(lambda: self._is_due_at_the_beginning(global_step)):
            self._evaluate_or_warn(global_step)
        self._processes.from_main(self._check_rules)

    def step(self, global_step: int) -> None:
        """Evaluates when it is time (`every_n_steps` or `budget`); once a step, however often it is called."""
        if global_step != self._last_step:
            self._evaluate_or_warn(global_step, lambda: self._spacing.due(global_step, self._processes.from_main))

    def end(self, global_step: int) -> None:
        """Evaluates the final weights unless just done, and closes what was opened."""
        if global_step != self._last_step:
            self._evaluate_or_warn(global_step)
        failure = None
        # A script that ends now frees its process group while gloo's thread may still hold our last gather's tensors;
        # both then wait for the interpreter's lock for ever (torch 2.13, CPU). A barrier gives that thread time.
        for last in (lambda: self._trackers and self._trackers.close(), self._processes.wait):
            try:
                last()
            except Exception as error:  # the other processes must not wait for ever, nor the script's last save be lost
                failure = failure or error
        if failure is not None and self.settings.on_error == "raise":
            raise failure
        if failure is not None:
            logger.warning("i2am: the trackers could not be closed: %s; training goes on", failure)

    def evaluate(self, global_step: int) -> Evaluation:
        """Evaluates now, writes and compares; returns the figures on every process.

        Raises:
            IMACSRegression: an alert as severe as `fail_on`, on every process.
            Exception: what went wrong, whatever `on_error` says.
        """
        started = time.monotonic()
        evaluation, alert, failed = self._observe_and_write(global_step)
        self._spacing.evaluated(global_step, time.monotonic() - started)
        self._act_on(alert)
        if failed:
            raise self._what_failed(global_step, failed)
        return evaluation

    def history(self) -> list[Evaluation]:
        """The run's evaluations so far, by step; on the main process."""
        return [] if self._store is None else [stored.evaluation for stored in self._store.evaluations()]

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a resumed run needs: plain values, and the baseline's maps as arrays."""
        return {
            "last_step": self._last_step,
            "baseline": None if self._baseline is None else json.dumps(self._baseline.to_json()),
            "baseline_maps": dict(self._baseline_maps),
            "alerting": {figure: list(known) for figure, known in self._alert_state.alerting.items()},
            "should_stop": self.should_stop,
            "spacing": self._spacing.state(),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` gave, or as much of it as an older version did.

        Evaluations after it, if the folder has any, are superseded.
        """
        self._last_step = self._resumed_at = state.get("last_step")
        if state.get("baseline") is not None:
            self._baseline = Evaluation.from_json(json.loads(state["baseline"]))
            self.evaluator.heads = self._baseline.heads
        self._baseline_maps = dict(state.get("baseline_maps", {}))
        self._alert_state = AlertState(self.settings.rules, state.get("alerting"))
        self.should_stop = state.get("should_stop", False)
        self._spacing.resume(state.get("spacing", {}))

    # -- one evaluation ----------------------------------------------------------------------------------------------

    def _take_one_way(self, pipeline: Any) -> None:
        """What one process can't teacher-force, none does: their figures are of one evaluation."""
        ways = self._processes.gather(lambda: self._together(pipeline, self.evaluator.way_for))
        self.evaluator.use(next((way for way in ways if way.instead), ways[0]), pipeline)

    def _together(self, pipeline: Any, work: Callable[[Any], T]) -> T:
        """Work that runs forwards of the pipeline; if it fails on one process, it does on all."""
        with self._processes.in_lockstep(pipeline):
            return work(pipeline)

    def _is_due_at_the_beginning(self, global_step: int) -> bool:
        saved_before_it_was_evaluated = self._spacing.falls_on(global_step) and global_step != self._last_step
        return self._baseline is None or self._last_step is None or saved_before_it_was_evaluated

    def _evaluate_or_warn(self, global_step: int, is_due: Callable[[], bool] = lambda: True) -> None:
        alert, failed, started = None, None, time.monotonic()
        try:
            if not is_due():
                return
            _, alert, failed = self._observe_and_write(global_step)
        except Exception as error:
            if self.settings.on_error == "raise":
                raise
            self._last_step = global_step
            logger.warning(
                "i2am: the evaluation at step %d failed and is skipped; training goes on: %s",
                global_step,
                error,
                exc_info=not isinstance(error, I2AMError),
            )
        took = time.monotonic() - started
        self._spacing.evaluated(global_step, took)
        if self.settings.budget is not None and self._processes.is_main:
            logger.info("i2am: %.3g s of looking: %s", took, self._spacing.in_words(took))
        self._act_on(alert)  # outside the try: an on_alert that raises, and fail_on, mean to end the training
        if failed and self.settings.on_error == "raise":
            raise self._what_failed(global_step, failed)
        if failed:
            logger.warning("i2am: %s; training goes on", self._what_failed(global_step, failed))

    @staticmethod
    def _what_failed(global_step: int, failed: Sequence[str]) -> I2AMError:
        return I2AMError(
            f"of the evaluation at step {global_step} not everything could be reported: {'; '.join(failed)}"
        )

    def _observe_and_write(self, global_step: int) -> _Outcome:
        started, memory = time.monotonic(), peak_memory()
        with ExitStack() as stack:
            pipeline = self._processes.agree(lambda: stack.enter_context(self._pipeline()))
            self._take_one_way(pipeline)
            everyones = self._processes.gather(lambda: self._together(pipeline, self._observe))
            pictures = {i: picture for _, some in everyones for i, picture in some.items()}
            observations = [observation for some, _ in everyones for observation in some]
            observations = merge_observations(observations, pictures, len(self.evaluator.pairs))
            outcome = self._processes.from_main(
                lambda: self._score_and_write(pipeline, observations, global_step, started, memory)
            )
        self._last_step = global_step
        return outcome

    def _observe(self, pipeline: Any) -> _Observed:
        """This process's share of the pairs and pictures; every process runs the same number of forwards."""
        evaluator, processes = self.evaluator, self._processes
        evaluator.prepare(pipeline)
        batches, apart = processes.share(evaluator.batches), processes.share(evaluator.sampled_apart)
        no_bar = self.settings.disable_progress_bar or not processes.is_main
        observations, pictures = [], {}
        with tqdm(total=len(batches) + len(apart), desc="i2am", leave=False, disable=no_bar) as bar:
            for batch in batches:
                observations += evaluator.observe(pipeline, batch)
                bar.update()
            for index in apart:
                pictures[index] = evaluator.sample(pipeline, index)
                bar.update()
        return observations, pictures

    def _score_and_write(
        self, pipeline: Any, observations: list[Observation], global_step: int, started: float, memory: int
    ) -> _Outcome:
        """On the main process: score, store, judge, report."""
        trackers, store = self._open()
        evaluation = self.evaluator.score(
            observations, global_step=global_step, pipeline=pipeline, baseline=self._baseline_maps
        )
        copying = (self._baseline or evaluation).copying_layer
        watched = None if isinstance(copying, Undefined) else copying
        evaluation = replace(evaluation, watched_layer=watched, seconds=time.monotonic() - started)
        store.write(evaluation, *pack_observations(observations, watched))
        is_first = self._newest is None
        self._newest = evaluation  # only now: what is not stored is no baseline to compare with
        if self._baseline is None:
            self._baseline, self._baseline_maps = evaluation, unified_maps(observations)
        alert = self._judge(evaluation, store)
        told = self._report(evaluation, alert, observations, trackers, store)
        if is_first:
            seconds = time.monotonic() - started
            self._tell_what_was_found(evaluation, observations, seconds, peak_memory() - memory)
        return evaluation, *told

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

    def _report(
        self,
        evaluation: Evaluation,
        alert: Alert | None,
        observations: list[Observation],
        trackers: Trackers,
        store: RunStore,
    ) -> tuple[Alert | None, list[str]]:
        """Tells of an evaluation wherever it is to be told; returns the alert with its panels, and what could not be told.

        Each part is on its own: a tracker, a picture or a full disk must not keep an alert from anybody.
        """
        settings, step, copying = self.settings, evaluation.global_step, (self._baseline or evaluation).copying_layer
        failed: list[str] = []

        def attempt(what: str, work: Callable[[], T]) -> T | None:
            try:
                return work()
            except Exception as error:
                logger.debug("i2am: %s", what, exc_info=True)
                failed.append(f"{what}: {type(error).__name__}: {error}")
                return None

        attempt("the figures in the trackers", lambda: trackers.scalars(evaluation, copying))
        logger.info(log_line(evaluation, copying))
        if alert is not None:
            bare = alert
            drawn = attempt("its panels", lambda: self._keep_panels(bare, evaluation, observations, store))
            alert = told = drawn or bare
            self._unwritten.append(told)
            logger.log(getattr(logging, told.severity.upper()), "i2am ALERT: %s", told.text)
        self._unwritten = [one for one in self._unwritten if not attempt("alerts.jsonl", partial(_written, store, one))]
        attempt("the alert in the trackers", lambda: trackers.alert(alert, step))
        attempt("the pairs' pictures", lambda: store.write_pairs(evaluation, self.evaluator.pairs))
        pictures = pictures_of(
            evaluation, observations, self.evaluator.pairs, panels=settings.panels, strips=settings.pictures
        )
        attempt("the panels in the trackers", lambda: trackers.pictures(pictures, step))
        attempt("the trackers", trackers.flush)
        attempt("thinning the stored rows", lambda: store.thin(settings.keep_matrices, self._protected(store)))
        return alert, failed

    def _open(self) -> tuple[Trackers, RunStore]:
        if self._trackers is None or self._store is None:
            self._trackers = self._open_trackers()
            self._store = RunStore(self._trackers.folder)
        if self._resumed_at is not None:
            self._store.resume(self._resumed_at)
            self._resumed_at = None
        return self._trackers, self._store

    def _judge(self, evaluation: Evaluation, store: RunStore) -> Alert | None:
        """An alert for what has newly fallen."""
        baseline = self._baseline
        assert baseline is not None
        unlike = differences(evaluation, baseline)
        if unlike:
            self._tell_once("no fall is looked for, the baseline is not comparable: %s", in_words(unlike))
            return None
        rules, count = self.settings.rules, len(baseline.pairs)
        if not rules.can_test(count):
            self._tell_once("too few to tell a fall from noise, only limits and margins act: %s", rules.too_few(count))
        comparable = [s for s in store.evaluations() if s.comparable_id == evaluation.comparable_id]
        return self._alert_state.judge(baseline, [stored for stored in comparable if stored.path.is_file()])

    def _act_on(self, alert: Alert | None) -> None:
        """What an alert does, the same on every process but for `on_alert`."""
        if alert is None:
            return
        settings = self.settings
        if settings.stop_on is not None and at_least(alert.severity, settings.stop_on):
            self.should_stop = True
        if settings.on_alert is not None and self._processes.is_main:
            settings.on_alert(alert)
        if settings.fail_on is not None and at_least(alert.severity, settings.fail_on):
            raise IMACSRegression(alert.text, alert)

    def _check_rules(self) -> None:
        if self._baseline is None:
            return  # no evaluation has succeeded yet
        refuse_idle_rules(self.settings.rules, self._baseline)
        if self.settings.baseline is not None and self._newest is not None:
            unlike = differences(self._newest, self._baseline)
            if unlike:
                raise I2AMError(f"baseline= is not comparable with this run, they differ in {in_words(unlike)}")

    def _tell_once(self, text: str, *values: Any) -> None:
        if text not in self._told:
            logger.warning("i2am: " + text, *values)
            self._told.add(text)

    def _keep_panels(
        self, alert: Alert, evaluation: Evaluation, observations: list[Observation], store: RunStore
    ) -> Alert:
        """With the panels of the pairs most to blame as files, which outlast TensorBoard's last ten pictures."""
        drawn = alert_panels(alert, evaluation, observations, self.evaluator.pairs)
        files = {
            evaluation.pairs[number]: store.write_panel(alert.global_step, number, panel)
            for number, panel in drawn.items()
        }
        return replace(alert, panels=files)

    def _protected(self, store: RunStore) -> set[int]:
        """Evaluations whose rows are kept: the baseline, the one with the most attention information, alerted ones."""
        assert self._baseline is not None
        steps = {self._baseline.global_step, *(a.global_step for a in store.alerts())}
        scored = [(s.mean(ATTENTION_INFORMATION.tag), s.global_step) for s in store.evaluations()]
        best = max(((v, step) for v, step in scored if not isinstance(v, Undefined)), default=None)
        return steps if best is None else steps | {best[1]}


def _written(store: RunStore, alert: Alert) -> bool:
    store.write_alert(alert)
    return True
