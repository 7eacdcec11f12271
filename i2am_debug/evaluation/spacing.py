"""When a run is evaluated next: every so many steps, or so that looking takes a given share of the time. Knows no training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Protocol

_STEPS_TO_TIME = 10
"""Training steps whose time says what one takes, before the first evaluation can be placed."""


FromMain = Callable[[Callable[[], Any]], Any]
"""`from_main(work)` gives every process what `work` returns on the main one."""


class Spacing(Protocol):
    """Where the evaluations of a run lie. All processes ask the same and are answered the same."""

    def falls_on(self, global_step: int) -> bool:
        """Whether this step is one for an evaluation whatever was evaluated before."""
        ...

    def due(self, global_step: int, from_main: FromMain) -> bool:
        """Whether this step, at which training now is, is evaluated."""
        ...

    def evaluated(self, global_step: int, seconds: float) -> None:
        """Takes note of an evaluation that took so long and ended now."""
        ...

    def in_words(self, seconds: float) -> str:
        """What evaluations of so many seconds mean for the run."""
        ...

    def state(self) -> dict[str, Any]: ...
    def resume(self, state: Mapping[str, Any]) -> None: ...


class EveryNSteps:
    """At every multiple of a number of steps."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def falls_on(self, global_step: int) -> bool:
        return global_step % self._steps == 0

    def due(self, global_step: int, from_main: FromMain) -> bool:
        return self.falls_on(global_step)

    def evaluated(self, global_step: int, seconds: float) -> None:
        pass

    def in_words(self, seconds: float) -> str:
        return (
            f"every {self._steps} steps that is {seconds / self._steps:.2g} s a step; budget=0.02 in place of every_n_steps "
            "spaces evaluations so that they take at most 2 % of the time"
        )

    def state(self) -> dict[str, Any]:
        return {}

    def resume(self, state: Mapping[str, Any]) -> None:
        pass


class WhenAsked:
    """At the beginning, at the end, and where the loop asks for one: where it validates."""

    def falls_on(self, global_step: int) -> bool:
        return False

    def due(self, global_step: int, from_main: FromMain) -> bool:
        return False

    def evaluated(self, global_step: int, seconds: float) -> None:
        pass

    def in_words(self, seconds: float) -> str:
        return (
            "evaluations come with the script's own validations; every_n_steps=N or budget=0.02 places them otherwise"
        )

    def state(self) -> dict[str, Any]:
        return {}

    def resume(self, state: Mapping[str, Any]) -> None:
        pass


class Budget:
    """So that evaluations take at most a share of the run's time, from what the last two and the steps since then took.

    The processes talk to each other a few times an evaluation, not at every step: at a step that all know, the main process
    says that it is time, or which step to ask again at.
    """

    def __init__(self, share: float, clock: Callable[[], float] = monotonic) -> None:
        self._share, self._clock = share, clock
        self._seconds: list[float] = []  # of the last two evaluations
        self._since: tuple[int, float] | None = None  # step and time from which on training went undisturbed
        self._ask_at: int | None = None

    def falls_on(self, global_step: int) -> bool:
        return False

    def due(self, global_step: int, from_main: FromMain) -> bool:
        if self._since is None:  # nothing was evaluated in this process yet
            self._since = global_step - 1, self._clock()
        if self._ask_at is None:
            self._ask_at = global_step + _STEPS_TO_TIME
        if global_step < self._ask_at:
            return False
        self._ask_at = from_main(lambda: self._place(global_step))
        return self._ask_at <= global_step

    def evaluated(self, global_step: int, seconds: float) -> None:
        self._seconds = [*self._seconds[-1:], seconds]
        self._since, self._ask_at = (global_step, self._clock()), global_step + _STEPS_TO_TIME

    def in_words(self, seconds: float) -> str:
        between = self._needed([seconds])
        return (
            f"the next one comes after {between:.3g} s of training, so that looking takes {self._share:.1%} of the time"
        )

    def _place(self, global_step: int) -> int:
        """The step at which training will have gone on for long enough, as fast as it has since the last evaluation."""
        assert self._since is not None
        begin, time = self._since
        passed = self._clock() - time
        if passed >= self._needed(self._seconds):
            return global_step
        a_step = max(passed / max(1, global_step - begin), 1e-9)
        return max(global_step + 1, begin + math.ceil(self._needed(self._seconds) / a_step))

    def _needed(self, seconds: list[float]) -> float:
        """Seconds of training for an evaluation that takes as long as the longer of these."""
        return max(seconds, default=0.0) * (1 - self._share) / self._share

    def state(self) -> dict[str, Any]:
        begin, time = self._since or (0, self._clock())
        return {
            "ask_at": self._ask_at,
            "seconds": list(self._seconds),
            "step": begin,
            "passed": self._clock() - time,
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        if "step" in state:
            self._ask_at, self._seconds = state["ask_at"], list(state["seconds"])
            self._since = state["step"], self._clock() - state["passed"]
