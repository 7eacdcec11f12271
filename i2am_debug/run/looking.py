"""The pairs are looked at by all processes, each its share; where one runs out of memory, by all of them fewer at once.

Knows nothing of what becomes of what was seen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from PIL import Image
from tqdm.auto import tqdm

from ..errors import ProcessFailed
from ..evaluation.evaluator import Evaluator
from ..evaluation.memory import free_memory, ran_out_of_memory
from ..evaluation.pilot import Choice
from ..figures.observation import Observation
from ..figures.values import Figure
from ..loop import Processes
from .stages import Failure, Stage, at

logger = logging.getLogger("i2am_debug")

T = TypeVar("T")

_WITH_FEWER = {
    "teacher_forcing": "each pair keeps its noise, so its figures stay comparable",
    "loss_fn": "a batch draws its noise together, so figures from here on are not comparable with those before",
}


@dataclass
class Looked:
    """What a process has seen of its share of the pairs."""

    observations: list[Observation] = field(default_factory=list)
    pictures: dict[int, Image.Image] = field(default_factory=dict)
    """Sampled apart from looking, by pair number."""
    probes: dict[int, dict[str, Figure]] = field(default_factory=dict)
    """Pair number → name of the probe → its loss."""
    failures: list[Failure] = field(default_factory=list)


@dataclass(frozen=True)
class _CutShort:
    """A process came to no end. A text, not the error: that would hold the tensors of the forward it came out of."""

    out_of_memory: str = ""
    by_another: str = ""


class Looking:
    """How the processes of a run look at its pairs."""

    def __init__(self, evaluator: Evaluator, processes: Processes, *, progress_bar: bool) -> None:
        self._evaluator, self._processes = evaluator, processes
        self._bar = progress_bar and processes.is_main

    def look(self, pipeline: Any) -> list[Looked]:
        """All processes' shares, on every process.

        Raises:
            torch.OutOfMemoryError: not even one pair at a time fits in memory.
        """
        before = self._evaluator.choice

        def choose() -> Choice | None:
            self._evaluator.choice = before  # one process may have chosen already, from larger batches
            with self._processes.in_lockstep(pipeline), at(Stage.PREPARE):
                self._evaluator.prepare(pipeline)
            return self._evaluator.choice

        # The main process's, since what is measured differs from process to process.
        self._evaluator.choice = self._until_it_fits(choose)[0]
        return self._until_it_fits(lambda: self._share(pipeline))

    def _until_it_fits(self, work: Callable[[], T]) -> list[T]:
        """What it gives on each process, with fewer pairs at once after one of them has run out of memory."""
        while self._evaluator.pairs_at_once > 1:
            found = self._processes.gather(lambda: _or_cut_short(work))
            cut_short = [one for one in found if isinstance(one, _CutShort)]
            if not cut_short:
                return found  # type: ignore[return-value]
            reason = next((one.out_of_memory for one in cut_short if one.out_of_memory), "")
            if not reason:
                raise ProcessFailed(cut_short[0].by_another)
            self._look_at_fewer(reason)
        return self._processes.gather(work)

    def probe(self, pipeline: Any) -> list[Looked]:
        """All processes' shares of the probes; one that can't be tried costs no figures."""
        return self._processes.gather(lambda: self._probe(pipeline))

    def _look_at_fewer(self, reason: str) -> None:
        """The same on every process, and for the rest of the run."""
        before = self._evaluator.pairs_at_once
        self._evaluator.look_at_fewer()
        free_memory()
        if self._processes.is_main:
            way = self._evaluator.chosen
            logger.warning(
                "i2am: looking at %d pairs at once ran out of memory (%s); in the rest of this run it is %d at once, "
                "batch_size=%d asks for no more; %s",
                before,
                reason,
                self._evaluator.pairs_at_once,
                self._evaluator.pairs_at_once,
                _WITH_FEWER[way.name] if way else "",
            )

    def _share(self, pipeline: Any) -> Looked:
        """This process's share of the pairs and pictures; every process runs the same number of forwards."""
        evaluator, processes, looked = self._evaluator, self._processes, Looked()
        with tqdm(desc="i2am", leave=False, disable=not self._bar) as bar:
            with processes.in_lockstep(pipeline):
                batches, apart = processes.share(evaluator.batches), processes.share(evaluator.sampled_apart)
                bar.total = len(batches) + len(apart)
                for batch in batches:
                    with at(Stage.LOOK, evaluator.names_of(batch)):
                        looked.observations += evaluator.observe(pipeline, batch)
                    bar.update()
            for index in apart:
                self._sample(pipeline, index, looked)
                bar.update()
        return looked

    def _sample(self, pipeline: Any, index: int, looked: Looked) -> None:
        """A picture that can't be made costs no figures."""
        try:
            with self._processes.in_lockstep(pipeline), at(Stage.PICTURE, self._evaluator.names_of([index])):
                looked.pictures[index] = self._evaluator.sample(pipeline, index)
        except Exception as error:
            looked.failures.append(Failure.of(error, Stage.PICTURE))

    def _probe(self, pipeline: Any) -> Looked:
        looked = Looked()
        for batch in self._processes.share(self._evaluator.probed):
            try:
                with self._processes.in_lockstep(pipeline), at(Stage.PROBE, self._evaluator.names_of(batch)):
                    looked.probes.update(self._evaluator.probe(pipeline, batch))
            except Exception as error:
                looked.failures.append(Failure.of(error, Stage.PROBE))
        return looked


def _or_cut_short(work: Callable[[], T]) -> T | _CutShort:
    try:
        return work()
    except ProcessFailed as error:
        return _CutShort(by_another=str(error))
    except RuntimeError as error:
        if not ran_out_of_memory(error):
            raise
        return _CutShort(out_of_memory=str(error).partition("\n")[0] or type(error).__name__)
