"""The evaluations of a run so far, as far as judging a later one needs them. Grows by some numbers an evaluation.

What is on disk is read once, when a run goes on; what a training has seen itself it remembers, so that a file which was
deleted, or could never be written, keeps no alert from anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ..figures.declared import ATTENTION_INFORMATION
from ..figures.record import Evaluation
from ..figures.values import Figure, Undefined


class Remembered:
    """The values of some figures of one evaluation (`alerts.finding.Judged`)."""

    def __init__(self, evaluation: Evaluation, tags: Iterable[str]) -> None:
        self.global_step, self.comparable_id = evaluation.global_step, evaluation.comparable_id
        self._nothing = np.full(len(evaluation.pairs), np.nan)
        known = [tag for tag in tags if tag in evaluation.figures]
        self._values = {tag: evaluation.values(tag) for tag in known}
        self._means = {tag: evaluation.mean(tag) for tag in known}
        self._reasons: dict[str, list[str | None]] = {
            tag: [v.reason if isinstance(v, Undefined) else None for v in evaluation.figures[tag]]
            for tag in known
            if np.isnan(self._values[tag]).any()
        }

    def mean(self, tag: str) -> Figure:
        """As `Evaluation.mean`."""
        found = self._means.get(tag)
        return Undefined("not recorded") if found is None else found

    def values(self, tag: str) -> np.ndarray:
        """As `Evaluation.values`."""
        return self._values.get(tag, self._nothing)

    def reasons(self, tag: str, among: Sequence[bool] | None = None) -> tuple[str, ...]:
        """As `Evaluation.reasons`."""
        found = self._reasons.get(tag, [] if tag in self._values else ["not recorded"] * len(self._nothing))
        asked = among if among is not None else [True] * len(found)
        return tuple(sorted({reason for reason, ask in zip(found, asked, strict=False) if ask and reason is not None}))


class History:
    """Evaluations by step.

    Args:
        judged: gives the tags that rules judge; asked whenever an evaluation is added, since it takes a baseline to know them.
    """

    def __init__(self, judged: Callable[[], Iterable[str]]) -> None:
        self._judged = judged
        self._by_step: dict[int, Remembered] = {}
        self.best: tuple[float, int] | None = None
        """The most attention information that an evaluation had, and its step."""

    def add(self, evaluation: Evaluation) -> None:
        """Takes up an evaluation; one of the same step is superseded."""
        self._by_step[evaluation.global_step] = Remembered(evaluation, self._judged())
        information = evaluation.mean(ATTENTION_INFORMATION.tag)
        if not isinstance(information, Undefined) and (self.best is None or information > self.best[0]):
            self.best = information, evaluation.global_step

    def comparable_with(self, evaluation: Evaluation) -> list[Remembered]:
        """Those that can be judged together with an evaluation, by step, itself included."""
        wanted = evaluation.comparable_id  # once: it is a digest of everything that figures depend on
        alike = (one for one in self._by_step.values() if one.comparable_id == wanted)
        return sorted(alike, key=lambda one: one.global_step)
