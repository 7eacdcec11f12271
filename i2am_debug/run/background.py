"""Work that nobody has to wait for, done by one thread in order, a bounded number of pieces at a time. Knows no evaluation."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

AHEAD = 2
"""Pieces of work that are done or wait at a time; a further one waits for the oldest, so that memory stays bounded."""


class Background:
    """One thread that works off what it is given; at the interpreter's end, whatever ended it, the work is finished."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._working: list[Future[None]] = []
        self._failed: list[BaseException] = []

    def submit(self, work: Callable[[], None]) -> None:
        """Takes on a piece of work; its errors come from `failures`."""
        while len(self._working) >= AHEAD:
            self._await_oldest()
        self._pool = self._pool or ThreadPoolExecutor(max_workers=1, thread_name_prefix="i2am")
        self._working.append(self._pool.submit(work))

    def wait(self) -> None:
        """Until all is done."""
        while self._working:
            self._await_oldest()

    def failures(self) -> list[BaseException]:
        """What went wrong in work that is done, each once."""
        while self._working and self._working[0].done():
            self._await_oldest()
        failed, self._failed = self._failed, []
        return failed

    def close(self) -> None:
        """Until all is done; frees the thread. Further work starts another one."""
        self.wait()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _await_oldest(self) -> None:
        error = self._working[0].exception()  # an interrupt while waiting loses nothing
        del self._working[0]
        if error is not None:
            self._failed.append(error)
