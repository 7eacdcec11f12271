"""Whether all processes have come, found out before any waits in a collective, where nothing could tell it to stop.

The classical mistake is `if accelerator.is_main_process: callback.on_step_end(step)`. It is told by the process group's
key-value store, in which a process counts itself in and can give up.
"""

from __future__ import annotations

import itertools
import logging
import time
from typing import Any

from torch import distributed

from i2am_debug.errors import ProcessMissing

logger = logging.getLogger("i2am_debug")

_PATIENCE = 0.75
"""Of the process group's own timeout. A process that is late by more ends the training with or without us: the others wait for
it in their next gradients. Less than the whole, so that this error comes first."""
_IN_VAIN = (
    0.1  # how much of its patience a process keeps that waited in vain; in a run gone wrong it would wait at every step
)
_HINT_AFTER = 60.0  # seconds
_GIVEN_UP = 1 << 32
_numbers = itertools.count()


class Arrivals:
    """Meetings of all processes, one after another; every process comes to the same ones in the same order."""

    def __init__(self, patience: float | None = None) -> None:
        """`patience`: seconds that a process waits for the others; by default three quarters of the process group's timeout,
        7.5 minutes of NCCL's, 22.5 of gloo's."""
        self._patience, self._keeps = patience, 1.0
        self._of_run, self._met = next(_numbers), 0

    def all_here(self) -> None:
        """Waits until all processes have come to this meeting.

        Who comes to one that others gave up joins the next, so that processes find together again.

        Raises:
            ProcessMissing: they have not in time.
        """
        store, processes = distributed.distributed_c10d._get_default_store(), distributed.get_world_size()
        count = _GIVEN_UP
        while count >= _GIVEN_UP:
            self._met += 1
            count = store.add(self._key("count"), 1)
            if count >= _GIVEN_UP:
                self._keeps *= _IN_VAIN
        if count < processes:
            self._wait(store, processes)
        else:
            store.set(self._key("all"), "")
            for name in ("count", "all"):  # all who come here have left the last one
                store.delete_key(self._key(name, ago=1))
        self._keeps = 1.0

    def _key(self, name: str, ago: int = 0) -> str:
        return f"i2am_debug/{self._of_run}/{self._met - ago}/{name}"

    def _wait(self, store: Any, processes: int) -> None:
        patience = self._keeps * (self._patience or _PATIENCE * store.timeout.total_seconds())
        begin, hinted = time.monotonic(), False
        while (waited := time.monotonic() - begin) < patience:
            if store.check([self._key("all")]):
                return
            if waited > _HINT_AFTER and not hinted:
                hinted = True
                came = store.add(self._key("count"), 0) % _GIVEN_UP
                logger.warning("i2am: waiting: %s", _text(came, processes, f"after {waited:.0f} s"))
            time.sleep(min(0.25, 0.001 + waited / 20))
        count = store.add(self._key("count"), _GIVEN_UP)
        all_came_in_the_last_moment = count == processes + _GIVEN_UP
        if not all_came_in_the_last_moment:
            self._keeps *= _IN_VAIN
            raise ProcessMissing(_text(count % _GIVEN_UP, processes, f"in {patience:.3g} s"))


def _text(came: int, processes: int, when: str) -> str:
    return (
        f"{came} of {processes} processes have come {when}; call on_train_begin, on_step_end, on_train_end and evaluate on "
        "every process, not under `if accelerator.is_main_process`"
    )
