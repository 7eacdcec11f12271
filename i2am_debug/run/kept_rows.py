"""Which evaluations keep their specific-reference rows, by far the largest part of a run on disk. Counts; opens no file."""

from __future__ import annotations


class KeptRows:
    """Of a run's evaluations the newest `keep`, and those that are protected: baseline, alerted ones.

    Each evaluation is looked at once when it becomes superfluous, so that the work does not grow with the run.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._steps: set[int] = set()
        self._protected: set[int] = set()

    def add(self, global_step: int) -> None:
        """An evaluation that has its rows on disk."""
        self._steps.add(global_step)

    def protect(self, global_step: int) -> None:
        """One whose rows stay."""
        self._protected.add(global_step)

    def superfluous(self, spared: int | None) -> list[int]:
        """Evaluations whose rows can go; `spared` is the best one so far, which may change."""
        old = sorted(self._steps)[: -self._keep]
        return [step for step in old if step not in self._protected and step != spared]

    def dropped(self, global_step: int) -> None:
        """Its rows are gone."""
        self._steps.discard(global_step)
