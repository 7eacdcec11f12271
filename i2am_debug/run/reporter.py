"""What becomes of an evaluation on the main process of a run: judged and told here, before the training's next step, and handed
on to be written. Knows no model, no training loop.

Each part is on its own: a tracker, a picture, a full disk or a broken file keeps no alert from anybody.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..alerts.alert import Alert, can_be_diagnosed, what_broke
from ..alerts.alert_state import AlertState
from ..alerts.diagnosis import diagnose
from ..alerts.judge import judged_figures
from ..errors import StoreError
from ..figures.observation import Observation
from ..figures.record import Evaluation, differences, in_words
from ..figures.values import Undefined
from ..loop import Trackers
from ..pairs.collection import ValidationPairs
from ..report.log import log_line
from ..settings import MonitorSettings
from ..store.packing import unified_maps
from ..store.run_store import RunStore
from .follow_up import FollowUp
from .history import History
from .recorder import Judged, Recorder, Written
from .stages import Attempts, Failure, Stage
from .undelivered import Undelivered

logger = logging.getLogger("i2am_debug")


class Reporter:
    """Judges and tells of the evaluations of one run, and has them written.

    Args:
        pairs: gives the pairs that evaluations look at.
        open_trackers: opens the run's trackers; called when something is first written.
    """

    def __init__(
        self,
        settings: MonitorSettings,
        *,
        pairs: Callable[[], ValidationPairs],
        open_trackers: Callable[[], Trackers],
    ) -> None:
        self._settings, self._pairs, self._open_trackers = settings, pairs, open_trackers
        self.baseline: Evaluation | None = None
        self.baseline_maps: dict[str, Any] = {}
        self.newest: Evaluation | None = None
        self.alert_state = AlertState(settings.rules)
        self.undelivered = Undelivered()
        self.recorder = Recorder(settings, lambda: self.undelivered)
        self._trackers: Trackers | None = None
        self._store: RunStore | None = None
        self.resumed_at: int | None = None
        """Whatever the folder holds beyond this step is of an abandoned attempt; done away with when the folder is opened."""
        self._history: History | None = None
        self._said: set[str] = set()
        self._judged: Evaluation | None = None  # the last one
        self._alert: Alert | None = None  # its
        self._follow_up = FollowUp()
        self._attempts = Attempts()  # of the evaluation that is being reported

    # -- a run begins, goes on and ends ------------------------------------------------------------------------------

    def begin(self, global_step: int) -> list[Failure]:
        """Opens and tidies the run's folder: what it holds beyond this step is of an abandoned attempt."""
        self._attempts = Attempts()
        self.resumed_at = global_step if self.resumed_at is None else self.resumed_at
        if self._open() is not None:
            self._tell_everywhere()
        return self._attempts.failures

    def watched_layer(self, evaluation: Evaluation) -> str | None:
        """The baseline's copying layer, or that of an evaluation that becomes the baseline."""
        copying = (self.baseline or evaluation).copying_layer
        return None if isinstance(copying, Undefined) else copying

    def begin_anew(self) -> None:
        """The next evaluation is the baseline: it can't be compared with the one there is."""
        if self.baseline is not None:
            logger.warning(
                "i2am: the next evaluation is this run's baseline in place of that at step %d: what was lost before can't be "
                "seen",
                self.baseline.global_step,
            )
        self.baseline, self.baseline_maps = None, {}

    def stored(self) -> list[Evaluation]:
        """The run's evaluations on disk, by step."""
        self.recorder.wait()
        return [] if self._store is None else [stored.evaluation for stored in self._store.evaluations()]

    def end(self) -> list[Failure]:
        """Finishes the writing, tells what is still to be told, and closes what was opened."""
        self._attempts = Attempts()
        self.recorder.close()
        if self._trackers is not None:
            self._tell_everywhere()
            self._attempts.attempt(Stage.CLOSE, self._trackers.close)
            logger.info("i2am: to look at what was written: i2am-debug view %s", self._trackers.folder)
        return self._attempts.failures

    def written(self) -> list[Written]:
        """The evaluations whose writing has ended since this was last asked, and what of each could not be done."""
        return self.recorder.written()

    def wait(self) -> list[Written]:
        """As `written`, once everything is."""
        self.recorder.wait()
        return self.recorder.written()

    # -- one evaluation ----------------------------------------------------------------------------------------------

    def judge(self, evaluation: Evaluation, observations: Sequence[Observation]) -> bool:
        """Judges an evaluation; whether it deserves a closer look: as the baseline, or with an alert, or soon after one.

        An alert is in `undelivered` from then on.
        """
        self._attempts = Attempts()
        opened = self._open()
        is_baseline = self.baseline is None
        if is_baseline:
            self.baseline, self.baseline_maps = evaluation, unified_maps(observations)
        store, self._judged = opened[1] if opened else None, evaluation
        self.alert_state.fired = ()  # what is not judged, as where nothing can be compared, fires nothing
        self._alert = self._attempts.attempt(Stage.JUDGE, lambda: self._judge(evaluation, store))
        return is_baseline or self._alert is not None or self._is_followed

    def report(self, evaluation: Evaluation, observations: Sequence[Observation]) -> list[Failure]:
        """Tells of the evaluation that was judged last, and has it written; what could not be done of judging and telling."""
        opened = self._open()
        self.newest, alert, renewed = evaluation, self._alert, None
        assert self.baseline is not None
        if self.baseline is self._judged:
            self.baseline = evaluation  # once more, with its probes
        copying = self.baseline.copying_layer
        logger.info(log_line(evaluation, copying))
        if alert is not None:
            alert = self._with_diagnosis(alert, evaluation)
            self.undelivered.complete(alert)
            if can_be_diagnosed(alert.findings):
                self._follow_up.begin(alert)
            logger.log(getattr(logging, alert.severity.upper()), "i2am ALERT: %s", alert.text)
        elif self._is_followed:
            renewed = self._renewed_diagnosis(evaluation)
        if opened is not None:
            self._tell_the_file()  # a line, with which an alert outlasts whatever kills this process
            judged = Judged(
                evaluation=evaluation,
                observations=observations,
                pairs=self._pairs(),
                copying_layer=copying,
                alert=alert,
                renewed=renewed,
                protected=frozenset({self.baseline.global_step} | ({alert.global_step} if alert else set())),
                best=None if self._history is None or self._history.best is None else self._history.best[1],
            )
            self.recorder.record(*opened, judged)
        return self._attempts.failures

    def _with_diagnosis(self, alert: Alert, evaluation: Evaluation) -> Alert:
        baseline = self.baseline
        assert baseline is not None
        if not can_be_diagnosed(alert.findings):
            return alert
        return replace(alert, diagnosis=self._attempts.attempt(Stage.DIAGNOSE, lambda: diagnose(baseline, evaluation)))

    @property
    def _is_followed(self) -> bool:
        """Whether an alert came just before, and what it tells of still fires."""
        return self._alert is None and self._follow_up.left > 0 and can_be_diagnosed(self.alert_state.fired)

    def _renewed_diagnosis(self, evaluation: Evaluation) -> Alert | None:
        """The last alert, if what broke is known anew, which the log is told."""
        told = self._follow_up.once_more()
        diagnosis = self._with_diagnosis(told, evaluation).diagnosis
        if diagnosis is None:
            return None
        if told.diagnosis is not None:
            diagnosis = diagnosis.after(told.diagnosis)
        self._follow_up.alert = alert = replace(told, diagnosis=diagnosis)
        is_other = told.diagnosis is None or told.diagnosis.kind != diagnosis.kind
        text = "; ".join(what_broke(alert.findings, diagnosis))
        level = logging.WARNING if is_other else logging.INFO
        logger.log(level, "i2am: of the alert at step %d, once more: %s", alert.global_step, text)
        return alert

    def _open(self) -> tuple[Trackers, RunStore] | None:
        if self._trackers is None or self._store is None:
            self._trackers = self._attempts.attempt(Stage.OPEN, self._open_trackers)
            if self._trackers is None:
                return None
            self._store = RunStore(self._trackers.folder)
            self._attempts.attempt(Stage.OPEN, self._store.tidy)
        if self.resumed_at is not None:
            step, store = self.resumed_at, self._store
            self._attempts.attempt(Stage.OPEN, lambda: store.resume(step))
            self.resumed_at = None
        return self._trackers, self._store

    def _judge(self, evaluation: Evaluation, store: RunStore | None) -> Alert | None:
        """An alert for what has newly fallen."""
        baseline = self.baseline
        assert baseline is not None
        if self._history is None:
            self._history = self._take_up(store, baseline)
        self._history.add(evaluation)
        unlike = differences(evaluation, baseline)
        if unlike:
            self.say_once("no fall is looked for, the baseline is not comparable: %s", in_words(unlike))
            return None
        rules, count = self._settings.rules, len(baseline.pairs)
        if not rules.can_test(count):
            self.say_once("too few to tell a fall from noise, only limits and margins act: %s", rules.too_few(count))
        alert = self.alert_state.judge(baseline, self._history.comparable_with(evaluation))
        if alert is not None:
            self.undelivered.add(alert)  # at once: an interrupt from here on loses it nowhere
        return alert

    def _take_up(self, store: RunStore | None, baseline: Evaluation) -> History:
        """What the run has on disk."""
        self.recorder.wait()
        rows = self.recorder.rows
        history, broken = History(lambda: judged_figures(self._settings.rules, baseline)), []
        on_disk = [] if store is None else store.readable_evaluations()
        for one in on_disk:
            try:
                history.add(one.evaluation)
                rows.add(one.global_step)
            except StoreError as error:
                broken.append(str(error))
        rows.protect(baseline.global_step)
        for step in [] if store is None else store.alerted_steps():
            rows.protect(step)
        if broken:
            self.say_once("%s earlier evaluations are left out of judging: %s", len(broken), broken[0])
        return history

    def _tell_the_file(self) -> None:
        assert self._store is not None
        store = self._store
        self.undelivered.deliver(
            "alerts.jsonl", lambda alert: self._attempts.done(Stage.ALERT_FILE, lambda: store.write_alert(alert))
        )

    def _tell_everywhere(self) -> None:
        """Alerts that have not gone there: to the file that outlasts everything first, then to the trackers."""
        assert self._trackers is not None
        self._tell_the_file()
        self.recorder.tell_trackers(self._attempts, self._trackers)

    def say_once(self, text: str, *values: Any) -> None:
        """A warning that a run needs to hear once."""
        if text not in self._said:
            logger.warning("i2am: " + text, *values)
            self._said.add(text)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a resumed run needs: plain values, and the baseline's maps as arrays."""
        self.recorder.wait()
        if self._follow_up.alert is not None:
            self._follow_up.alert = self.recorder.with_panels(self._follow_up.alert)
        return {
            "baseline": None if self.baseline is None else json.dumps(self.baseline.to_json()),
            "baseline_maps": dict(self.baseline_maps),
            "alerting": {figure: list(known) for figure, known in self.alert_state.alerting.items()},
            "undelivered": json.dumps(self.undelivered.state()),
            "follow_up": json.dumps(self._follow_up.state()),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` gave, or as much of it as an older version did."""
        self.recorder.wait()
        if state.get("baseline") is not None:
            self.baseline = Evaluation.from_json(json.loads(state["baseline"]))
        self.baseline_maps = dict(state.get("baseline_maps", {}))
        self.alert_state = AlertState(self._settings.rules, state.get("alerting"))
        self.undelivered = Undelivered(json.loads(state.get("undelivered", "[]")))
        self._follow_up = FollowUp.of(json.loads(state.get("follow_up", "null")))
        self._history = None
