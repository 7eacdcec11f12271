"""What becomes of an evaluation: stored, judged, told, drawn, on the main process of a run. Knows no model, no training loop.

Each part is on its own: a tracker, a picture, a full disk or a broken file keeps no alert from anybody.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

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
from ..report.pictures import alert_panels, pictures_of
from ..report.render import get_ready_to_draw
from ..settings import MonitorSettings
from ..store.packing import pack_observations, unified_maps
from ..store.run_store import RunStore
from .background import Background
from .follow_up import FollowUp
from .history import History
from .kept_rows import KeptRows
from .room import require_room
from .stages import Failure, Stage, at
from .undelivered import Undelivered

logger = logging.getLogger("i2am_debug")

T = TypeVar("T")
_A_PICTURE, _FIGURES = (
    2**20,
    2**19,
)  # bytes, generously: what must be free for each picture, and for an evaluation's figures


class Reporter:
    """Stores, judges and tells of the evaluations of one run.

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
        self.drawing = Background()
        self._trackers: Trackers | None = None
        self._store: RunStore | None = None
        self.resumed_at: int | None = None
        """Whatever the folder holds beyond this step is of an abandoned attempt; done away with when the folder is opened."""
        self._history: History | None = None
        self._rows = KeptRows(settings.keep_matrices)
        self._said: set[str] = set()
        self._judged: Evaluation | None = None  # the last one
        self._alert: Alert | None = None  # its
        self._follow_up = FollowUp()
        self._failures: list[Failure] = []  # of the evaluation that is being reported

    # -- a run begins, goes on and ends ------------------------------------------------------------------------------

    def begin(self, global_step: int) -> list[Failure]:
        """Opens and tidies the run's folder: what it holds beyond this step is of an abandoned attempt."""
        self._failures = []
        self.resumed_at = global_step if self.resumed_at is None else self.resumed_at
        if self._open() is not None:
            self._tell_pending()
        return self._failures

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
        return [] if self._store is None else [stored.evaluation for stored in self._store.evaluations()]

    def end(self) -> list[Failure]:
        """Finishes the drawing, tells what is still to be told, and closes what was opened."""
        self._failures = []
        self.drawing.close()
        self._note_drawing()
        if self._trackers is not None:
            self._tell_pending()
            self._attempt(Stage.CLOSE, self._trackers.close)
        return self._failures

    # -- one evaluation ----------------------------------------------------------------------------------------------

    def judge(self, evaluation: Evaluation, observations: Sequence[Observation]) -> bool:
        """Judges an evaluation; whether it deserves a closer look: as the baseline, or with an alert, or soon after one.

        An alert is in `undelivered` from then on.
        """
        self._failures = []
        opened = self._open()
        is_baseline = self.baseline is None
        if is_baseline:
            self.baseline, self.baseline_maps = evaluation, unified_maps(observations)
        store, self._judged = opened[1] if opened else None, evaluation
        self.alert_state.fired = ()  # what is not judged, as where nothing can be compared, fires nothing
        self._alert = self._attempt(Stage.JUDGE, lambda: self._judge(evaluation, store))
        return is_baseline or self._alert is not None or self._is_followed

    def report(self, evaluation: Evaluation, observations: Sequence[Observation]) -> list[Failure]:
        """Stores and tells of the evaluation that was judged last; what of both could not be done."""
        self._note_drawing()
        opened = self._open()
        store = opened[1] if opened else None
        stored = store is not None and self._write(store, evaluation, observations)
        self.newest, alert = evaluation, self._alert
        assert self.baseline is not None
        if self.baseline is self._judged:
            self.baseline = evaluation  # once more, with its probes
        copying = self.baseline.copying_layer
        logger.info(log_line(evaluation, copying))
        if alert is not None:
            alert = self._with_diagnosis(alert, evaluation)
            if store is not None and stored:
                alert = self._with_panels(alert, evaluation, observations, store)
            self.undelivered.complete(alert)
            if can_be_diagnosed(alert.findings):
                self._follow_up.begin(alert)
            logger.log(getattr(logging, alert.severity.upper()), "i2am ALERT: %s", alert.text)
        elif self._is_followed:
            self._renew_diagnosis(evaluation, store)
        if opened is not None:
            trackers, store = opened
            self._attempt(Stage.FIGURES, lambda: trackers.scalars(evaluation, copying))
            self._tell_pending()
            if alert is None:
                self._attempt(Stage.ALERT_TOLD, lambda: trackers.alert(None, evaluation.global_step))
            if stored:
                self._attempt(Stage.THIN, lambda: self._thin(store, evaluation))
                self._draw(trackers, store, evaluation, observations)
        return self._failures

    def _with_diagnosis(self, alert: Alert, evaluation: Evaluation) -> Alert:
        baseline = self.baseline
        assert baseline is not None
        if not can_be_diagnosed(alert.findings):
            return alert
        return replace(alert, diagnosis=self._attempt(Stage.DIAGNOSE, lambda: diagnose(baseline, evaluation)))

    @property
    def _is_followed(self) -> bool:
        """Whether an alert came just before, and what it tells of still fires."""
        return self._alert is None and self._follow_up.left > 0 and can_be_diagnosed(self.alert_state.fired)

    def _renew_diagnosis(self, evaluation: Evaluation, store: RunStore | None) -> None:
        """Tells of the last alert anew what broke: in the log, and in `alerts.jsonl`, where its later line counts."""
        told = self._follow_up.once_more()
        alert = self._with_diagnosis(told, evaluation)
        if alert.diagnosis is None:
            return
        if told.diagnosis is not None:
            alert = replace(alert, diagnosis=alert.diagnosis.after(told.diagnosis))
        self._follow_up.alert = alert
        self.undelivered.complete(alert)
        if store is not None:
            self._attempt(Stage.ALERT_FILE, lambda: store.write_alert(alert))
        is_other = told.diagnosis is None or told.diagnosis.kind != alert.diagnosis.kind
        text = "; ".join(what_broke(alert.findings, alert.diagnosis))
        level = logging.WARNING if is_other else logging.INFO
        logger.log(level, "i2am: of the alert at step %d, once more: %s", alert.global_step, text)

    def wait_for_drawing(self) -> list[Failure]:
        """Until everything is drawn and written; what could not be."""
        self._failures = []
        self.drawing.wait()
        self._note_drawing()
        return self._failures

    def _open(self) -> tuple[Trackers, RunStore] | None:
        if self._trackers is None or self._store is None:
            self._trackers = self._attempt(Stage.OPEN, self._open_trackers)
            if self._trackers is None:
                return None
            self._store = RunStore(self._trackers.folder)
            self._attempt(Stage.OPEN, self._store.tidy)
        if self.resumed_at is not None:
            step, store = self.resumed_at, self._store
            self._attempt(Stage.OPEN, lambda: store.resume(step))
            self.resumed_at = None
        return self._trackers, self._store

    def _write(self, store: RunStore, evaluation: Evaluation, observations: Sequence[Observation]) -> bool:
        packed = self._attempt(Stage.PACK, lambda: pack_observations(observations, evaluation.watched_layer))
        if packed is None:
            return False
        arrays, grids = packed
        size = sum(array.nbytes for array in arrays.values()) + _FIGURES

        def write() -> bool:
            require_room(store.folder, size)
            store.write(evaluation, arrays, grids)
            return True

        if self._attempt(Stage.STORE, write):
            self._rows.add(evaluation.global_step)
            return True
        return False

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
            self._rows.protect(alert.global_step)
        return alert

    def _take_up(self, store: RunStore | None, baseline: Evaluation) -> History:
        """What the run has on disk."""
        history, broken = History(lambda: judged_figures(self._settings.rules, baseline)), []
        on_disk = [] if store is None else store.readable_evaluations()
        for one in on_disk:
            try:
                history.add(one.evaluation)
                self._rows.add(one.global_step)
            except StoreError as error:
                broken.append(str(error))
        self._rows.protect(baseline.global_step)
        for step in [] if store is None else store.alerted_steps():
            self._rows.protect(step)
        if broken:
            self.say_once("%s earlier evaluations are left out of judging: %s", len(broken), broken[0])
        return history

    def _with_panels(
        self, alert: Alert, evaluation: Evaluation, observations: Sequence[Observation], store: RunStore
    ) -> Alert:
        """With the panels of the pairs most to blame as files, which outlast TensorBoard's last ten pictures."""

        def draw() -> dict[str, str]:
            require_room(store.folder, len(alert.pairs) * _A_PICTURE)
            drawn = alert_panels(alert, evaluation, observations, self._pairs())
            return {
                evaluation.pairs[number]: store.write_panel(alert.global_step, number, panel)
                for number, panel in drawn.items()
            }

        return replace(alert, panels=self._attempt(Stage.ALERT_PANELS, draw, alert.pairs) or {})

    def _tell_pending(self) -> None:
        """Alerts that have not gone there: to the file that outlasts everything first, then to the trackers."""
        assert self._store is not None and self._trackers is not None
        store, trackers = self._store, self._trackers

        def written(alert: Alert) -> bool:
            return self._done(Stage.ALERT_FILE, lambda: store.write_alert(alert))

        def shown(alert: Alert) -> bool:
            return self._done(Stage.ALERT_TOLD, lambda: trackers.alert(alert, alert.global_step))

        self.undelivered.deliver("alerts.jsonl", written)
        self.undelivered.deliver("trackers", shown)

    def _thin(self, store: RunStore, evaluation: Evaluation) -> None:
        best = None if self._history is None or self._history.best is None else self._history.best[1]
        for step in self._rows.superfluous(spared=best):
            store.drop_rows(step)
            self._rows.dropped(step)

    # -- pictures ----------------------------------------------------------------------------------------------------

    def _draw(
        self, trackers: Trackers, store: RunStore, evaluation: Evaluation, observations: Sequence[Observation]
    ) -> None:
        """Draws in the background, unless a tracker takes nothing once the run's steps have gone on."""
        settings, pairs = self._settings, self._pairs()
        count = min(settings.panels, len(pairs)) + 4 * min(settings.pictures, len(pairs))

        def draw() -> None:
            with at(Stage.PAIRS):
                store.write_pairs(evaluation, pairs)
            with at(Stage.DRAW):
                pictures = pictures_of(
                    evaluation, observations, pairs, panels=settings.panels, strips=settings.pictures
                )
            failed = None
            for tag, (name, picture) in pictures.items():
                try:
                    with at(Stage.DRAW, (name,)):
                        trackers.picture(tag, picture(), evaluation.global_step)
                except Exception as error:  # the others can be drawn all the same
                    failed = failed or error
            with at(Stage.DRAW):
                trackers.flush()
            if failed is not None:
                raise failed

        def begin() -> None:
            require_room(store.folder, count * _A_PICTURE)
            if trackers.pictures_in_order:
                draw()
            else:
                get_ready_to_draw()
                self.drawing.submit(draw)

        self._attempt(Stage.DRAW, begin)

    def _note_drawing(self) -> None:
        for error in self.drawing.failures():
            self._fail(error, Stage.DRAW)

    # -- what goes wrong ---------------------------------------------------------------------------------------------

    def _attempt(self, stage: Stage, work: Callable[[], T], pairs: Sequence[str] = ()) -> T | None:
        """What `work` returns; None, and a failure noted, when it raises."""
        try:
            with at(stage, pairs):
                return work()
        except Exception as error:
            self._fail(error, stage)
            return None

    def _done(self, stage: Stage, work: Callable[[], object]) -> bool:
        before = len(self._failures)
        self._attempt(stage, work)
        return len(self._failures) == before

    def _fail(self, error: BaseException, stage: Stage) -> None:
        failure = Failure.of(error, stage)
        logger.debug("i2am: %s", failure.text, exc_info=error)
        self._failures.append(failure)

    def say_once(self, text: str, *values: Any) -> None:
        """A warning that a run needs to hear once."""
        if text not in self._said:
            logger.warning("i2am: " + text, *values)
            self._said.add(text)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a resumed run needs: plain values, and the baseline's maps as arrays."""
        self.drawing.wait()
        return {
            "baseline": None if self.baseline is None else json.dumps(self.baseline.to_json()),
            "baseline_maps": dict(self.baseline_maps),
            "alerting": {figure: list(known) for figure, known in self.alert_state.alerting.items()},
            "undelivered": json.dumps(self.undelivered.state()),
            "follow_up": json.dumps(self._follow_up.state()),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` gave, or as much of it as an older version did."""
        if state.get("baseline") is not None:
            self.baseline = Evaluation.from_json(json.loads(state["baseline"]))
        self.baseline_maps = dict(state.get("baseline_maps", {}))
        self.alert_state = AlertState(self._settings.rules, state.get("alerting"))
        self.undelivered = Undelivered(json.loads(state.get("undelivered", "[]")))
        self._follow_up = FollowUp.of(json.loads(state.get("follow_up", "null")))
        self._history = None
