"""One of several processes fails, or stays away, in short; `python -m benchmarks.unharmed ranks` plays every scenario."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
from i2am_debug.callbacks.arrivals import Arrivals

from benchmarks.unharmed import ranks
from i2am_debug.errors import ProcessMissing


def test_training_goes_on_as_if_nobody_had_looked_and_figures_are_those_of_one_process():
    found = ranks.measure(long=False)
    assert not found.harm, "\n".join(found.harm)
    assert found.counted["cases"] == 13, found.table()


HEALTHY = {"same": True, "way": "teacher_forcing", "log": [], "log of the next": [], "evaluations": [10, 15]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"same": False}, "others than without us"),
        ({"way": "sampling"}, "looked by teacher_forcing, sampling"),
        ({"log": ["planted"]}, "told ['planted']"),
        ({"log of the next": ["the evaluation at step 15 failed and is skipped"]}, "next evaluation is skipped"),
        ({"evaluations": [15]}, "evaluated at [15]"),
    ],
)
def test_harm_would_be_seen(change, words):
    harmed = HEALTHY | change
    at_first = "log" in change or "evaluations" in change  # what the main process tells of
    played = [harmed, HEALTHY] if at_first else [HEALTHY, harmed]
    assert not list(ranks.of_scenario("healthy", [HEALTHY, HEALTHY], 2))
    assert words in "; ".join(ranks.of_scenario("healthy", played, 2))


class Member:
    """A process that comes to meetings, here a thread with its own count of them."""

    def __init__(self, patience: float | None) -> None:
        self.arrivals = Arrivals(patience)
        self.arrivals._of_run = 0

    def comes(self) -> str:
        try:
            self.arrivals.all_here()
        except ProcessMissing as error:
            return str(error)
        return "all here"


@pytest.fixture
def one_store(monkeypatch):
    store = torch.distributed.HashStore()
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    return store


def together(*members: Member) -> list[str]:
    with ThreadPoolExecutor(len(members)) as pool:
        return list(pool.map(Member.comes, members))


def test_processes_that_come_together_meet_as_often_as_they_like_and_leave_nothing_in_the_store(one_store):
    members = [Member(30.0) for _ in range(3)]
    for _ in range(20):
        assert together(*members) == ["all here"] * 3
    assert one_store.num_keys() <= 4


def test_who_stayed_away_is_counted_and_who_comes_late_finds_the_others_again(one_store, caplog, monkeypatch):
    monkeypatch.setattr("i2am_debug.callbacks.arrivals._HINT_AFTER", 0.05)
    early, other, late = (Member(0.5) for _ in range(3))
    assert all(
        text.startswith("2 of 3 processes have come in 0.5 s; call on_train_begin") for text in together(early, other)
    )
    assert "i2am: waiting: 2 of 3 processes have come after 0 s" in caplog.text
    assert late.comes().startswith("1 of 3 processes have come in 0.05 s"), (
        "it waits no more than a tenth where others gave up"
    )
    for member in (early, other, late):
        member.arrivals._patience = 300.0
    assert together(early, other, late) == ["all here"] * 3
    assert early.arrivals._keeps == 1.0


def test_patience_is_most_of_the_process_groups_own(one_store, monkeypatch):
    """With NCCL 10 minutes: a rank that is late by less may have saved a checkpoint or sampled pictures."""
    slept = []
    monkeypatch.setattr("i2am_debug.callbacks.arrivals.time.sleep", slept.append)
    clock = iter(range(10**6))
    monkeypatch.setattr("i2am_debug.callbacks.arrivals.time.monotonic", lambda: float(next(clock)))
    one_store.set_timeout(timedelta(minutes=10))
    alone = Member(None)
    assert alone.comes().startswith("1 of 3 processes have come in 450 s") and 440 < len(slept) <= 450
