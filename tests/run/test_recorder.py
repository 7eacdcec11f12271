"""What is written by a thread of its own: in order, bounded, waited for where it must be, and never an alert's only way."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from i2am_debug.callbacks.trackers import RunTrackers
from training import Run

from i2am_debug import CapturePlan, Rule, Rules
from i2am_debug.demo.inpainting.pairs import validation_pairs
from i2am_debug.errors import I2AMError
from i2am_debug.run import stages
from i2am_debug.run.stages import Stage
from i2am_debug.store.run_store import RunStore

pytestmark = pytest.mark.usefixtures("few_probes")

LOUD = Rules(rules=(Rule(name="loud", kind="ceiling", figure="loss", limit=0.0, severity="critical"),))


def callback_of(run: Run, **changes: Any) -> Any:
    small = {
        "pairs": validation_pairs(2, seed=11),
        "plan": CapturePlan(sampler_steps=1),
        "rules": LOUD,
        "every_n_steps": 1,
        "synchronous": False,
    }
    return run.callback(**{**small, **changes})


class Gate:
    """Holds the thread that writes at its first stage until it is opened; notes who entered which stage."""

    def __init__(self) -> None:
        self.open, self.failing, self.entered = threading.Event(), set(), []

    def __call__(self, stage: Stage, pairs: Any = ()) -> None:
        self.entered.append((stage, threading.current_thread()))
        if stage is Stage.PACK:
            assert self.open.wait(60)
        if stage in self.failing:
            raise OSError(f"planted at {stage.name}")

    def stages_of(self, thread: threading.Thread) -> set[Stage]:
        return {stage for stage, one in self.entered if one is thread}


@pytest.fixture
def gate(monkeypatch):
    gate = Gate()
    monkeypatch.setattr(stages, "entered", gate)
    yield gate
    gate.open.set()


def evaluations(store: RunStore) -> list[int]:
    return [one.global_step for one in store.evaluations()]


def waits(work: Any, until: Any = lambda thread: True) -> tuple[threading.Thread, list[Any]]:
    """A thread that, having come to where it is to wait, is still at it after a while, and where its result will be."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    while not until(thread) and thread.is_alive():
        time.sleep(0.01)
    thread.join(1.0)
    assert thread.is_alive() and not found
    return thread, found


def test_an_alert_is_told_before_the_step_goes_on_and_a_checkpoint_waits_for_the_rest(tmp_path, gate):
    run, told = Run(tmp_path), []
    callback, store = callback_of(run, on_alert=told.append), RunStore(tmp_path / "run")
    callback.on_step_end(1)
    assert callback.should_stop and [alert.global_step for alert in told] == [1]
    (written,) = store.alerts()
    assert written == told[0] and not written.panels, "in the file that outlasts everything, panels are drawn later"
    assert evaluations(store) == [], "nothing else is written before the step goes on"
    writing = {Stage.PACK, Stage.STORE, Stage.ALERT_PANELS, Stage.FIGURES, Stage.ALERT_TOLD, Stage.THIN, Stage.PAIRS}
    checkpoint, state = waits(callback.state_dict)
    gate.open.set()
    checkpoint.join(60)
    assert evaluations(store) == [1] and state[0]["undelivered"] == "[]"
    (complete,) = store.alerts()
    assert complete.panels and all((store.folder / panel).is_file() for panel in complete.panels.values())
    assert not gate.stages_of(threading.main_thread()) & writing and writing <= {stage for stage, _ in gate.entered}


def test_two_evaluations_wait_in_order_and_a_third_for_the_oldest(tmp_path, gate):
    others = set(threading.enumerate())
    callback, store = callback_of(Run(tmp_path)), RunStore(tmp_path / "run")
    callback.on_step_end(1), callback.on_step_end(2)
    third, _ = waits(lambda: callback.on_step_end(3), until=lambda thread: Stage.PUT_BACK in gate.stages_of(thread))
    gate.open.set()
    third.join(60)
    callback.on_train_end(3)
    lines = [line for line in store.index.read_text().splitlines() if "global_step" in line]
    assert evaluations(store) == [1, 2, 3] and len(lines) == 3
    assert not [one for one in set(threading.enumerate()) - others if one.name.startswith("i2am")]


@pytest.mark.parametrize("stage", [Stage.PACK, Stage.STORE, Stage.FIGURES, Stage.DRAW])
def test_what_fails_while_writing_is_told_at_the_next_step_and_costs_no_alert(tmp_path, gate, caplog, stage):
    callback, told = callback_of(Run(tmp_path), on_error="warn", every_n_steps=2), []
    gate.open.set()
    gate.failing.add(stage)
    with caplog.at_level(logging.WARNING, "i2am_debug"):
        callback.on_step_end(2)
        assert "planted" not in caplog.text or stage is Stage.DRAW  # getting ready to draw is the training thread's
        callback.monitor.reporter.recorder.wait()
        callback.on_step_end(3)
    about = [record.getMessage() for record in caplog.records if "planted" in record.getMessage()]
    assert len(about) == 1 and f"of the evaluation at step 2 not everything could be done: {stage.value}" in about[0]
    assert [alert.global_step for alert in RunStore(tmp_path / "run").alerts()] == [2] and not told


def test_where_errors_raise_it_is_the_next_evaluation_that_does(tmp_path, gate):
    callback = callback_of(Run(tmp_path), every_n_steps=2)
    gate.open.set()
    gate.failing.add(Stage.STORE)
    callback.on_step_end(2)
    callback.monitor.reporter.recorder.wait()
    gate.failing.clear()
    callback.on_step_end(3)
    with pytest.raises(I2AMError, match="evaluation at step 2 not everything .* planted at STORE"):
        callback.on_step_end(4)
    callback.on_train_end(4)
    assert evaluations(RunStore(tmp_path / "run")) == [4]


def test_synchronous_writes_before_the_step_goes_on(tmp_path, gate):
    gate.open.set()
    callback = callback_of(Run(tmp_path), synchronous=True)
    callback.on_step_end(1)
    store = RunStore(tmp_path / "run")
    assert evaluations(store) == [1] and store.alerts()[0].panels
    assert {thread for _, thread in gate.entered} == {threading.main_thread()}
    with pytest.raises(ValueError, match="synchronous='no': expected True or False"):
        callback_of(Run(tmp_path / "other"), synchronous="no")


def test_a_tracker_that_takes_calls_of_one_thread_gets_its_figures_there(tmp_path):
    own = SimpleNamespace(name="tensorboard", writer=SimpleNamespace(log_dir=str(tmp_path)))
    mlflow, wandb = SimpleNamespace(name="mlflow"), SimpleNamespace(name="wandb", log_images=print)
    in_order = [
        (one.figures_in_order, one.pictures_in_order)
        for one in (RunTrackers(trackers, tmp_path) for trackers in ([own], [own, mlflow], [own, wandb]))
    ]
    assert in_order == [(False, False), (True, False), (True, True)]


@pytest.mark.parametrize("end", ["raise", "kill"])
def test_a_run_that_ends_badly(tmp_path, end):
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path), end],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    store = RunStore(tmp_path / "run")
    assert [alert.global_step for alert in store.alerts()] == [1], done.stderr[-2000:]
    if end == "raise":
        assert done.returncode == 1 and "planted by the loop" in done.stderr
        assert evaluations(store) == [1] and store.alerts()[0].panels, "what was taken on is written all the same"
        assert list((tmp_path / "run/i2am_pictures").iterdir())
    else:
        assert done.returncode == -signal.SIGKILL and evaluations(store) == []


def _ends_badly(folder: Path, end: str) -> None:
    stages.entered = gate = Gate()
    callback = callback_of(Run(folder))
    callback.on_step_end(1)
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    gate.open.set()
    raise RuntimeError("planted by the loop")


if __name__ == "__main__":
    _ends_badly(Path(sys.argv[1]), sys.argv[2])
