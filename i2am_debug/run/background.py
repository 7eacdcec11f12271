"""Work that no training step has to wait for, done by one thread in order, a bounded number of pieces at a time.

Knows no evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

AHEAD = 4
"""Pieces of work that are done or wait at a time, two evaluations' worth; a further one waits for the oldest, so that memory
stays bounded."""


class Background:
    """One thread that works off what it is given; at the interpreter's end, whatever ended it, the work is finished."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._working: list[Future[None]] = []

    def submit(self, work: Callable[[], None]) -> None:
        """Takes on a piece of work, which tells of its errors itself."""
        while len(self._working) >= AHEAD:
            self._await_oldest()
        self._pool = self._pool or ThreadPoolExecutor(max_workers=1, thread_name_prefix="i2am")
        self._working.append(self._pool.submit(work))

    def wait(self) -> None:
        """Until all is done."""
        while self._working:
            self._await_oldest()

    def close(self) -> None:
        """Until all is done; frees the thread. Further work starts another one."""
        self.wait()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _await_oldest(self) -> None:
        self._working[0].exception()  # an interrupt while waiting loses nothing
        del self._working[0]
