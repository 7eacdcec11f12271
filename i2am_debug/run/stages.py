"""Every stage of an evaluation by name, so that what fails says where, and of which pair. Knows nothing of what they do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

logger = logging.getLogger("i2am_debug")

T = TypeVar("T")


class Stage(Enum):
    """In the order in which an evaluation goes through them; the value says what is being done."""

    PIPELINE = "building the pipeline"
    PREPARE = "choosing how to look"
    LOOK = "looking"
    PICTURE = "making a picture"
    OPEN = "opening the run's trackers"
    SCORE = "scoring"
    JUDGE = "judging it"
    PROBE = "probing with changed references"
    PUT_BACK = "putting back what an evaluation may touch"
    DIAGNOSE = "finding out what broke"
    PACK = "packing the maps"
    STORE = "writing the evaluation"
    ALERT_PANELS = "drawing the alert's panels"
    ALERT_FILE = "writing the alert to alerts.jsonl"
    FIGURES = "writing the figures to the trackers"
    ALERT_TOLD = "writing the alert to the trackers"
    PAIRS = "writing the pairs' own pictures"
    THIN = "thinning the stored rows"
    DRAW = "drawing and writing the pictures"
    CLOSE = "closing the trackers"


@contextmanager
def at(stage: Stage, pairs: Sequence[str] = (), *, is_entered: bool = True) -> Iterator[None]:
    """Notes on what is raised inside at which stage it was, and for which pairs; of nested stages the innermost."""
    try:
        if is_entered:
            entered(stage, pairs)
        yield
    except Exception as error:
        if where(error) is None:
            with suppress(AttributeError):
                error.i2am_where = stage.value + (f" (pair {', '.join(map(repr, pairs))})" if pairs else "")  # type: ignore[attr-defined]
        raise


def where(error: BaseException) -> str | None:
    """What was being done when it was raised: a stage in words, with its pairs."""
    return getattr(error, "i2am_where", None)


def entered(stage: Stage, pairs: Sequence[str] = ()) -> None:
    """Called on entering a stage. Does nothing: where tests plant faults."""


@dataclass(frozen=True)
class Failure:
    """Something that could not be done for an evaluation."""

    stage: str
    text: str

    @classmethod
    def of(cls, error: BaseException, stage: Stage) -> Failure:
        """What went wrong at a stage, or at one inside it that the error names."""
        return cls(stage.value, f"{where(error) or stage.value}: {type(error).__name__}: {error}")


class Attempts:
    """Does parts of a whole, each on its own: one that fails is noted and keeps no other from being done."""

    def __init__(self) -> None:
        self.failures: list[Failure] = []

    def attempt(self, stage: Stage, work: Callable[[], T], pairs: Sequence[str] = ()) -> T | None:
        """What `work` returns; None, and a failure noted, when it raises."""
        try:
            with at(stage, pairs):
                return work()
        except Exception as error:
            self.note(error, stage)
            return None

    def done(self, stage: Stage, work: Callable[[], object]) -> bool:
        """Whether it went well."""
        before = len(self.failures)
        self.attempt(stage, work)
        return len(self.failures) == before

    def note(self, error: BaseException, stage: Stage) -> None:
        """Something that went wrong at a stage."""
        failure = Failure.of(error, stage)
        logger.debug("i2am: %s", failure.text, exc_info=error)
        self.failures.append(failure)
