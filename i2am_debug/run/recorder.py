"""What is written of an evaluation that was judged: packed, stored, drawn, told to trackers; by one thread, in order.

It is given plain values that nothing changes any more, and shares with the training's thread only `Undelivered`. Knows no
history and no rules.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from ..alerts.alert import Alert
from ..figures.observation import Observation
from ..figures.record import Evaluation
from ..figures.values import Undefined
from ..loop import Trackers
from ..pairs.collection import ValidationPairs
from ..report.pictures import alert_panels, pictures_of
from ..report.render import get_ready_to_draw
from ..settings import MonitorSettings
from ..store.packing import pack_observations
from ..store.run_store import RunStore
from .background import Background
from .kept_rows import KeptRows
from .room import require_room
from .stages import Attempts, Failure, Stage, at
from .undelivered import Undelivered

# Bytes, generously: what must be free for each picture, and for an evaluation's figures.
_A_PICTURE, _FIGURES = 2**20, 2**19


@dataclass(frozen=True, kw_only=True)
class Judged:
    """An evaluation, and what was decided of it."""

    evaluation: Evaluation
    observations: Sequence[Observation]
    pairs: ValidationPairs
    copying_layer: str | Undefined
    """The baseline's."""
    alert: Alert | None
    """Raised by it."""
    renewed: Alert | None
    """An earlier one, with a cause that is known better now."""
    protected: frozenset[int]
    """Steps whose rows stay."""
    best: int | None
    """The step whose rows stay for now."""


@dataclass(frozen=True)
class Written:
    """An evaluation whose writing is over, and what of it could not be done."""

    global_step: int
    failures: Sequence[Failure]


@dataclass
class _Writing(Attempts):
    """One evaluation's writing, from its first piece to its last."""

    trackers: Trackers
    store: RunStore
    judged: Judged
    is_stored: bool = False
    failures: list[Failure] = field(default_factory=list)


class Recorder:
    """Writes the evaluations of one run.

    Args:
        undelivered: gives the alerts that are still to be told.
    """

    def __init__(self, settings: MonitorSettings, undelivered: Callable[[], Undelivered]) -> None:
        self._settings, self._undelivered = settings, undelivered
        self._background = Background()
        self._written: deque[Written] = deque()  # appended to by one thread, emptied by the other
        self._panels: dict[int, Mapping[str, str]] = {}  # of the newest alert
        self.rows = KeptRows(settings.keep_matrices)
        """Belongs to the writing thread: after `wait`, to whoever waited."""

    def record(self, trackers: Trackers, store: RunStore, judged: Judged) -> None:
        """Takes on an evaluation; waits only where more of them wait than memory should hold."""
        writing = _Writing(trackers, store, judged)
        at_once = self._settings.synchronous
        writing.attempt(Stage.DRAW, get_ready_to_draw)
        self._do(self._write, writing, at_once or trackers.figures_in_order)
        self._do(self._draw, writing, at_once or trackers.pictures_in_order)

    def wait(self) -> None:
        """Until everything taken on is written."""
        self._background.wait()

    def close(self) -> None:
        """As `wait`; frees the thread."""
        self._background.close()

    def written(self) -> list[Written]:
        """The evaluations whose writing is over, each once, in order."""
        return [self._written.popleft() for _ in range(len(self._written))]

    def with_panels(self, alert: Alert) -> Alert:
        """The alert with the panels that were drawn of it; as `rows`."""
        return replace(alert, panels=self._panels.get(alert.global_step, alert.panels))

    def tell_trackers(self, attempts: Attempts, trackers: Trackers, up_to: int | None = None) -> None:
        """Of the alerts that have not gone there, up to a step; as `rows`."""

        def shown(alert: Alert) -> bool:
            is_told = up_to is None or alert.global_step <= up_to
            return is_told and attempts.done(Stage.ALERT_TOLD, lambda: trackers.alert(alert, alert.global_step))

        self._undelivered().deliver("trackers", shown)

    def _do(self, piece: Callable[[_Writing], None], writing: _Writing, at_once: bool) -> None:
        def whole() -> None:
            try:
                piece(writing)
            except BaseException as error:  # what ends a thread's work, nobody else hears of
                writing.note(error, Stage.DRAW)

        if at_once:
            piece(writing)
        else:
            self._background.submit(whole)

    # -- pieces of work ----------------------------------------------------------------------------------------------

    def _write(self, writing: _Writing) -> None:
        judged, trackers, store = writing.judged, writing.trackers, writing.store
        evaluation, alert = judged.evaluation, judged.alert
        for step in judged.protected:
            self.rows.protect(step)
        writing.is_stored = self._store(writing)
        if alert is not None and writing.is_stored:
            self._draw_panels(writing, alert)
        for again in (alert if alert is not None and self._panels.get(alert.global_step) else None, judged.renewed):
            if again is not None:  # its later line counts
                complete = self.with_panels(again)
                self._undelivered().complete(complete)
                writing.attempt(Stage.ALERT_FILE, partial(store.write_alert, complete))
        writing.attempt(Stage.FIGURES, lambda: trackers.scalars(evaluation, judged.copying_layer))
        self.tell_trackers(writing, trackers, up_to=evaluation.global_step)
        if alert is None:
            writing.attempt(Stage.ALERT_TOLD, lambda: trackers.alert(None, evaluation.global_step))
        if writing.is_stored:
            writing.attempt(Stage.THIN, lambda: self._thin(store, judged.best))

    def _store(self, writing: _Writing) -> bool:
        evaluation, store = writing.judged.evaluation, writing.store
        observations = writing.judged.observations
        packed = writing.attempt(Stage.PACK, lambda: pack_observations(observations, evaluation.watched_layer))
        if packed is None:
            return False
        arrays, grids = packed
        size = sum(array.nbytes for array in arrays.values()) + _FIGURES

        def write() -> None:
            require_room(store.folder, size)
            store.write(evaluation, arrays, grids)

        if not writing.done(Stage.STORE, write):
            return False
        self.rows.add(evaluation.global_step)
        return True

    def _draw_panels(self, writing: _Writing, alert: Alert) -> None:
        """Of the pairs most to blame, as files, which outlast TensorBoard's last ten pictures."""
        judged, store = writing.judged, writing.store

        def draw() -> dict[str, str]:
            require_room(store.folder, len(alert.pairs) * _A_PICTURE)
            drawn = alert_panels(alert, judged.evaluation, judged.observations, judged.pairs)
            return {
                judged.evaluation.pairs[number]: store.write_panel(alert.global_step, number, panel)
                for number, panel in drawn.items()
            }

        self._panels = {alert.global_step: writing.attempt(Stage.ALERT_PANELS, draw, alert.pairs) or {}}

    def _thin(self, store: RunStore, best: int | None) -> None:
        for step in self.rows.superfluous(spared=best):
            store.drop_rows(step)
            self.rows.dropped(step)

    def _draw(self, writing: _Writing) -> None:
        try:
            if writing.is_stored:
                writing.attempt(Stage.DRAW, lambda: self._draw_pictures(writing))
        finally:
            self._written.append(Written(writing.judged.evaluation.global_step, writing.failures))

    def _draw_pictures(self, writing: _Writing) -> None:
        settings, judged, trackers = self._settings, writing.judged, writing.trackers
        evaluation, pairs = judged.evaluation, judged.pairs
        count = min(settings.panels, len(pairs)) + 4 * min(settings.pictures, len(pairs))
        require_room(writing.store.folder, count * _A_PICTURE)
        with at(Stage.PAIRS):
            writing.store.write_pairs(evaluation, pairs)
        pictures = pictures_of(evaluation, judged.observations, pairs, panels=settings.panels, strips=settings.pictures)
        failed = None
        for tag, (name, picture) in pictures.items():
            try:
                with at(Stage.DRAW, (name,)):
                    trackers.picture(tag, picture(), evaluation.global_step)
            except Exception as error:  # the others can be drawn all the same
                failed = failed or error
        trackers.flush()
        if failed is not None:
            raise failed
