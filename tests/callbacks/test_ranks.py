"""One of several processes fails, or stays away: nobody waits for ever, training goes on as if nobody had looked."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from i2am_debug.callbacks.arrivals import Arrivals
from rank_scenarios import NOT_FOR, SCENARIOS, figures
from several_processes import forked

from i2am_debug.errors import ProcessMissing
from i2am_debug.figures.record import Evaluation
from i2am_debug.figures.values import Undefined

SCRIPT = Path(__file__).parents[1] / "rank_scenarios.py"
KINDS = ("ddp", "fsdp2", "plugin")  # the plugin last: it can't be turned off again in a process
# Whole models do no otherwise than sharded ones but in what touches the model, and that is the same for all of them.
WHOLE = [
    "healthy",
    "by a loss",
    "resumed",
    "factory raises",
    "inside at the second pair",
    "main's write raises",
    "main only",
]
ON_TWO = {"ddp": WHOLE, "fsdp2": list(SCENARIOS), "plugin": ["healthy", "inside at the second pair", "more forwards"]}
ON_FOUR = {"fsdp2": ["inside at the first pair", "before a forward", "trial fails inside", "main only"]}
CASES = [
    (processes, kind, name)
    for processes, asked in ((2, ON_TWO), (4, ON_FOUR))
    for kind, names in asked.items()
    for name in names
    if kind not in NOT_FOR.get(name, ())
]

SKIPPED = r"the evaluation at step \d+ failed (while .+)?and is skipped; training goes on: (\w+: )?"
AWAY = SKIPPED + r"1 of \d processes have come in 1 s; call on_train_begin, .* on every process, not under `if"
UNEQUAL = SKIPPED + r"the processes do not run the same forwards \(process 0 has ended; process 1 begins FSDP"
TOLD = {  # scenario → what the process that fails (or misses the others) says, and what one of the others
    "in the middle": (SKIPPED + "planted", SKIPPED + "another process failed: RuntimeError: planted"),
    "factory raises": (
        SKIPPED + "planted in the",
        SKIPPED + "another process failed: ValueError: planted in the factory",
    ),
    "before a forward": (SKIPPED + "planted", SKIPPED + "another process failed: RuntimeError: planted"),
    "inside at the first pair": (SKIPPED + "planted", SKIPPED + "another process failed: RuntimeError: planted"),
    "inside at the second pair": (SKIPPED + "planted", SKIPPED + "another process failed: RuntimeError: planted"),
    "inside the encoder": (SKIPPED + "planted", SKIPPED + "another process failed: RuntimeError: planted"),
    "out of memory inside": (SKIPPED + "planted", SKIPPED + "another process failed: OutOfMemoryError: planted"),
    "out of memory in a collective": (
        SKIPPED + "planted",
        SKIPPED + "another process failed: OutOfMemoryError: planted",
    ),
    "out of memory with two pairs": (
        "",
        r"looking at 2 pairs at once ran out of memory \(planted\).* it is 1 at once.* figures stay comparable",
    ),
    "out of memory with two pairs, by a loss": (
        "",
        r"looking at 2 pairs at once ran out of memory \(planted\).* it is 1 at once.* not comparable with those before",
    ),
    "more forwards": (UNEQUAL, UNEQUAL),
    "trial fails": ("", "every pair is sampled, which is slow: .*planted: no truth here"),
    "trial fails inside": ("", "every pair is sampled, which is slow: the teacher-forced call raised .*planted"),
    "main's write raises": ("", "not everything could be done: writing the evaluation: OSError: .*planted: no space"),
    "tracker's close raises": ("", "closing the trackers: OSError: planted in close; training goes on"),
    "main only": ("", AWAY),
    "main only by budget": ("", AWAY),
}
EVALUATED = {  # after the first step of a scenario; none where it failed
    **{name: [0, 5] for name in ("healthy", "by a loss", "in the middle", "begun twice", "resumed")},
    "out of memory with two pairs": [0, 5],
    "out of memory with two pairs, by a loss": [0, 1, 5],
    **{name: [0, 5] for name in ("trial fails", "trial fails inside", "tracker's close raises")},
    "main only by budget": [],
}


def asked(play: dict[str, list[str]], counts: list[int]) -> str:
    return json.dumps({"play": play, "figures": dict.fromkeys(KINDS, counts)})


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[int, Any]:
    """Number of processes → what they found. One start of the processes for many scenarios: it takes ten seconds."""
    results = {}
    for processes, play, counts in ((2, ON_TWO, [7]), (4, ON_FOUR, [3, 7])):
        folder = tmp_path_factory.mktemp(f"on_{processes}")
        forked(processes, SCRIPT, folder, asked(play, counts), seconds=600)
        results[processes] = json.loads((folder / "results.json").read_text())
    return results


@pytest.mark.parametrize(("processes", "kind", "name"), CASES)
def test_training_goes_on_as_if_nobody_had_looked(found, processes, kind, name):
    ranks = found[processes]["played"][kind][name]
    assert len(ranks) == processes
    assert [rank["same"] for rank in ranks] == [True] * processes, "weights or random states are others than without us"
    assert len({rank["way"] for rank in ranks}) == 1, "all processes look in the same way"
    assert ranks[0]["way"] == ("sampling" if name.startswith("trial") else ranks[0]["way"])
    failing, others = TOLD.get(name, ("", ""))
    for rank, text in ((ranks[-1], failing), *((rank, others) for rank in ranks[: -1 if failing else 1])):
        lines = [line for line in rank["log"] if "too few to tell" not in line and "ALERT" not in line]
        assert any(re.search(text, line, re.DOTALL) for line in lines) if text else not lines, lines
    assert not any("is skipped" in line for rank in ranks for line in rank["log of the next"])
    steps = ranks[0]["evaluations"]
    first = steps[0] // 10 * 10 if steps else 0
    assert [step - first for step in steps] == EVALUATED.get(name, [5]), "the next evaluation works"


@pytest.mark.parametrize(("processes", "pairs"), [(2, 7), (4, 7), (4, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_figures_are_those_of_one_process(found, alone, processes, pairs, kind):
    """Shares that are not equal, and fewer pairs than processes."""
    ours = Evaluation.from_json(found[processes]["figures"][kind][str(pairs)])
    theirs = alone[pairs]
    assert ours.pairs == theirs.pairs and len(ours.pairs) == pairs and ours.figures.keys() == theirs.figures.keys()
    for tag, values in theirs.figures.items():
        for a, b in zip(values, ours.figures[tag], strict=True):
            assert a == b if isinstance(a, Undefined) else a == pytest.approx(b, abs=1e-6), tag


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[int, Evaluation]:
    folder = tmp_path_factory.mktemp("alone")
    return {pairs: Evaluation.from_json(figures(folder / str(pairs), "ddp", pairs)) for pairs in (3, 7)}


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
