"""What an evaluation takes does not grow with the run; `python -m benchmarks.unharmed growth` makes 3000 of them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.unharmed import growth
from i2am_debug.run.history import History


def test_an_evaluation_late_in_a_run_takes_no_longer_opens_no_more_and_takes_no_more_memory():
    found = growth.measure(long=False)
    assert not found.harm, found.table()


def test_what_grows_is_found(monkeypatch):
    memory, files = [], ExitStack()

    def leak(self, evaluation, real=History.add):
        memory.append(np.ones(2**19))
        files.enter_context(Path(__file__).open())  # noqa: SIM115
        real(self, evaluation)

    def digest_for_each(self, evaluation, real=History.comparable_with):
        for _ in self._by_step:
            evaluation.comparable_id  # noqa: B018  (a digest)
        return real(self, evaluation)

    monkeypatch.setattr(History, "add", leak)
    monkeypatch.setattr(History, "comparable_with", digest_for_each)
    with files:
        harm = " ".join(growth.measure(long=False).harm)
    assert "MiB more" in harm and "open files" in harm and "times what it took" in harm
