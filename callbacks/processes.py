"""The processes of a run, so that all of them run the same forwards and none waits for ever."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

from torch import distributed

from i2am_debug.errors import ProcessFailed, TrainingChanged

from .arrivals import Arrivals
from .groups import Group

if TYPE_CHECKING:
    from .lockstep import Lockstep

T = TypeVar("T")


class GroupProcesses:
    """What a `monitor.Monitor` needs to know of the processes (`loop.Processes`)."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._arrivals = Arrivals()

    @property
    def is_main(self) -> bool:
        return self._group.is_main

    @property
    def several(self) -> bool:
        return self._group.several

    def share(self, work: list[Any]) -> list[Any]:
        """This process's part of the work, padded with repetitions so that all parts are of one length."""
        return self._group.share(work) if work else []

    def in_lockstep(self, pipeline: Any) -> AbstractContextManager[None]:
        """A block in which an error on one process is an error on all, although the model that runs may be shared."""
        if not self._talk_by_torch:
            return nullcontext()
        parts = getattr(pipeline, "components", {}).values()
        return self._lockstep.over([*self._group.trained(), pipeline, *parts])

    def agree(self, work: Callable[[], T]) -> T:
        """What `work` returns on this process; an error on one is an error on all, and an interrupt too."""
        self._all_here()
        found: list[T] = []
        error: BaseException | None = None
        try:
            found = [work()]
        except BaseException as raised:
            error = raised
        if self.several:
            told = self._group.gather(
                error and (isinstance(error, TrainingChanged), f"{type(error).__name__}: {error}")
            )
            if error is None and any(told):
                ends_the_training, text = max(one for one in told if one)
                raise (TrainingChanged if ends_the_training else ProcessFailed)(f"another process failed: {text}")
        if error is not None:
            raise error
        return found[0]

    def gather(self, work: Callable[[], T]) -> list[T]:
        """What `work` returns on each process, on every process; an error on one is an error on all."""
        found = self.agree(work)
        return self._group.gather(found) if self.several else [found]

    def from_main(self, work: Callable[[], T]) -> T:
        """What `work` returns on the main process, on every process; its error too."""
        self._all_here()
        outcome: list[Any] = [None, None]
        error: BaseException | None = None
        if self.is_main:
            try:
                outcome = [work(), None]
            except BaseException as raised:  # an `on_alert` may exit: the others must hear of it
                error, outcome = raised, [None, f"{type(raised).__name__}: {raised}"]
        if self.several:
            outcome = self._group.from_main(outcome)
        if error is not None:
            raise error
        if outcome[1] is not None:
            raise ProcessFailed(f"the main process failed: {outcome[1]}")
        of_main: T = outcome[0]
        return of_main

    def wait(self) -> None:
        """Until all have come here."""
        self._all_here()
        self._group.wait()

    def _all_here(self) -> None:
        if self._talk_by_torch:
            self._arrivals.all_here()

    @property
    def _talk_by_torch(self) -> bool:
        return self.several and distributed.is_available() and distributed.is_initialized()

    @cached_property
    def _lockstep(self) -> Lockstep:
        from .lockstep import Lockstep, greatest  # knows FSDP, which not every build of torch has

        return Lockstep(partial(greatest, self._group.device), self._group.gather)
