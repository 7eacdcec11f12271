"""The parts of a run's reporting, each on its own: remembered, kept, delivered, worked off, refused for want of room."""

from __future__ import annotations

import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from stored_runs import evaluation

from i2am_debug.alerts.alert import Alert
from i2am_debug.alerts.finding import Finding
from i2am_debug.errors import NoRoom
from i2am_debug.figures.values import Undefined
from i2am_debug.run import room
from i2am_debug.run.background import AHEAD, Background
from i2am_debug.run.follow_up import FollowUp
from i2am_debug.run.history import History, Remembered
from i2am_debug.run.kept_rows import KeptRows
from i2am_debug.run.room import require_room
from i2am_debug.run.stages import Stage, at, where
from i2am_debug.run.undelivered import Undelivered


def test_an_error_says_at_which_stage_and_for_which_pair_it_was_raised():
    with pytest.raises(ValueError) as caught, at(Stage.PREPARE), at(Stage.LOOK, ["vase"]):
        raise ValueError("planted")
    assert where(caught.value) == "looking (pair 'vase')"
    assert where(ValueError()) is None


def test_what_is_remembered_of_an_evaluation_is_what_it_says():
    whole = evaluation(0)
    tags = [*whole.figures, "no such figure"]
    seen = Remembered(whole, tags)
    for tag in tags:
        np.testing.assert_array_equal(seen.values(tag), whole.values(tag))
        assert seen.mean(tag) == whole.mean(tag) or isinstance(seen.mean(tag), Undefined)
        assert seen.reasons(tag) == whole.reasons(tag)
        half = [number % 2 == 0 for number in range(len(whole.pairs))]
        assert seen.reasons(tag, half) == whole.reasons(tag, half)


def test_a_history_is_by_step_and_of_what_is_comparable():
    history = History(lambda: ["imacs_g"])
    for step in (20, 0, 10, 10):
        history.add(evaluation(step))
    assert [seen.global_step for seen in history.comparable_with(evaluation(30))] == [0, 10, 20]
    other = SimpleNamespace(comparable_id="another")
    assert history.comparable_with(other) == []


def test_rows_are_kept_of_the_newest_the_protected_and_the_best():
    rows = KeptRows(2)
    for step in (0, 10, 20, 30, 40):
        rows.add(step)
    rows.protect(0)
    assert rows.superfluous(spared=20) == [10]
    rows.dropped(10)
    assert rows.superfluous(spared=20) == []
    assert rows.superfluous(spared=40) == [20], "no longer the best"


def test_an_alert_waits_until_it_has_gone_everywhere_even_through_a_checkpoint():
    finding = Finding(rule="loud", kind="drop", severity="warning", figure="loss", fired=True)
    alert = Alert(global_step=5, baseline_step=0, fine_at=None, findings=(finding,))
    pending, told = Undelivered(), []
    pending.add(alert)
    pending.deliver("alerts.jsonl", lambda one: False)
    pending.deliver("trackers", lambda one: told.append(one) is None)
    with pytest.raises(RuntimeError):
        pending.deliver("on_alert", lambda one: (_ for _ in ()).throw(RuntimeError("planted")))
    resumed = Undelivered(pending.state())
    resumed.deliver("trackers", lambda one: told.append(one) is None)
    assert len(told) == 1
    for channel in ("alerts.jsonl", "on_alert"):
        resumed.deliver(channel, lambda one: told.append(one) is None)
    assert told == [alert, alert, alert] and resumed.state() == []


def test_background_work_is_done_in_order_bounded_and_whatever_it_raises():
    background, order, gate, others = Background(), [], threading.Event(), set(threading.enumerate())
    background.submit(lambda: (gate.wait(10), order.append(0)))
    background.submit(lambda: 1 / 0)
    for number in range(2, AHEAD):
        background.submit(lambda number=number: order.append(number))
    blocked = threading.Thread(target=background.submit, args=(lambda: order.append(AHEAD),))
    blocked.start()
    blocked.join(0.2)
    assert blocked.is_alive() and AHEAD == 4, "a fifth piece waits for the oldest"
    gate.set()
    blocked.join(10)
    background.wait()
    assert order == [0, 2, 3, 4]
    background.close()
    assert set(threading.enumerate()) <= others
    background.submit(lambda: order.append(5))
    background.close()
    assert order == [0, 2, 3, 4, 5]


def test_too_little_room_is_refused_and_the_trainings_reserve_is_left(tmp_path, monkeypatch):
    disk = SimpleNamespace(total=2000 * 2**20, used=0, free=30 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: (disk.total, disk.used, disk.free))
    require_room(tmp_path / "not" / "there yet", 5 * 2**20)
    with pytest.raises(NoRoom, match=r"30.0 MiB free; 15.0 MiB are needed and 20.0 MiB are left to the training"):
        require_room(tmp_path, 15 * 2**20)
    require_room(tmp_path, 15 * 2**20, leave_reserve=False)
    assert room._MOST_RESERVED == 2**30
    assert list(tmp_path.iterdir()) == [], "what was reserved for a moment is gone"


def test_a_quota_that_free_space_does_not_know_of_is_found(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(NoRoom, match="quota"):
        require_room(tmp_path, 100)


def test_a_cause_is_looked_for_once_more_whether_it_is_found_or_not():
    fallen = Finding(rule="r", kind="drop", severity="warning", figure="x", fired=True)
    alert = Alert(global_step=8, baseline_step=0, fine_at=0, findings=(fallen,))
    follow = FollowUp()
    assert follow.left == 0 and follow.state() is None
    follow.begin(alert)
    resumed = FollowUp.of(follow.state())
    assert resumed == follow and resumed.left == 1
    assert resumed.once_more() == alert
    assert resumed.left == 0 and resumed.state() is None
