"""What an evaluation takes does not grow with the run; `python -m benchmarks.unharmed growth` makes 3000 of them."""

from __future__ import annotations

from benchmarks.unharmed import growth
from i2am_debug.run.history import History


def test_an_evaluation_late_in_a_run_opens_no_more_and_takes_no_more_memory():
    found = growth.measure(long=False)
    print(found.table())
    assert [one for one in found.harm if "takes" not in one] == []  # times are for a quiet machine


def test_a_leak_is_found(monkeypatch):
    kept = []

    def leak(self, evaluation, real=History.add):
        kept.append([bytes(2**20) for _ in range(2)])
        kept.append(open(__file__))  # noqa: SIM115
        real(self, evaluation)

    monkeypatch.setattr(History, "add", leak)
    harm = " ".join(growth.measure(long=False).harm)
    assert "MiB more" in harm and "open files" in harm
