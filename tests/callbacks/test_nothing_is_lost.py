"""Alerts, baselines and abandoned steps of a real callback, over failures, resumes and folders that hold something already."""

from __future__ import annotations

import json
import logging

import pytest
from training import Run

from i2am_debug import CapturePlan, Rule, Rules
from i2am_debug.demo.inpainting.pairs import validation_pairs
from i2am_debug.run import stages
from i2am_debug.run.stages import Stage
from i2am_debug.store.run_store import RunStore

pytestmark = pytest.mark.usefixtures("few_probes")

LOUD = Rules(rules=(Rule(name="loud", kind="ceiling", figure="loss", limit=0.0, severity="critical"),))


def callback_of(run, **changes):
    plan = CapturePlan(sampler_steps=1)
    small = {"pairs": validation_pairs(2, seed=11), "plan": plan, "pictures": 0, "panels": 0, "on_error": "warn"}
    return run.callback(**{**small, "every_n_steps": 1, **changes})


@pytest.fixture
def failing(monkeypatch):
    """Stages that fail as long as they are in this set."""
    broken = set()

    def entered(stage, pairs=()):
        if stage in broken:
            raise OSError(f"planted at {stage.name}")

    monkeypatch.setattr(stages, "entered", entered)
    return broken


def test_an_alert_that_could_not_be_told_is_told_after_a_resume(tmp_path, failing):
    run, told = Run(tmp_path), []
    callback = callback_of(run, rules=LOUD)
    failing.update({Stage.ALERT_FILE, Stage.ALERT_TOLD})
    callback.on_step_end(1)
    store = RunStore(tmp_path / "run")
    assert callback.should_stop and not store.alerts()
    run.accelerator.save_state(str(tmp_path / "checkpoint"))

    failing.clear()
    again = Run(tmp_path)
    resumed = callback_of(again, rules=LOUD, on_alert=told.append)
    again.accelerator.load_state(str(tmp_path / "checkpoint"))
    resumed.on_train_begin(1)
    assert [alert.global_step for alert in store.alerts()] == [1], "without another evaluation"
    assert resumed.should_stop and not told, "on_alert had been called"


@pytest.mark.parametrize(
    # A pipeline that can't be put back fails the evaluation as a whole.
    "stage",
    [s for s in Stage if list(Stage).index(s) > list(Stage).index(Stage.SCORE) and s is not Stage.PUT_BACK],
)
def test_four_evaluations_with_a_part_that_keeps_failing_raise_their_alert(tmp_path, failing, stage):
    run, told = Run(tmp_path), []
    callback = callback_of(run, rules=LOUD, on_alert=told.append)
    failing.add(stage)
    for step in (1, 2, 3, 4):
        callback.on_step_end(step)
    if stage is Stage.JUDGE:
        assert not told
        failing.clear()
        callback.on_step_end(5)
    assert [alert.global_step for alert in told] == [5 if stage is Stage.JUDGE else 1] and callback.should_stop


def test_a_failure_that_stays_is_said_once_and_again_when_it_comes_back(tmp_path, failing, caplog):
    callback = callback_of(Run(tmp_path))
    failing.add(Stage.STORE)
    with caplog.at_level(logging.WARNING, "i2am_debug"):
        callback.on_step_end(1), callback.on_step_end(2)
        assert caplog.text.count("writing the evaluation: OSError: planted") == 1
        failing.clear()
        callback.on_step_end(3)
        failing.add(Stage.STORE)
        callback.on_step_end(4)
    assert caplog.text.count("writing the evaluation: OSError: planted") == 2


def test_a_baseline_that_is_late_is_said_and_so_is_what_was_skipped(tmp_path, failing, caplog):
    callback = callback_of(Run(tmp_path))
    failing.add(Stage.LOOK)
    with caplog.at_level(logging.WARNING, "i2am_debug"):
        callback.on_train_begin(0)
        failing.clear()
        callback.on_step_end(1)
        callback.on_train_end(1)
    assert "failed while looking (pair 'demo_00', 'demo_01') and is skipped; training goes on" in caplog.text
    assert "the evaluation at step 1 is this run's baseline, since that at step 0 failed" in caplog.text
    assert "1 evaluations failed and were skipped: at steps 0" in caplog.text


def test_steps_of_an_abandoned_attempt_are_gone_as_soon_as_training_goes_on(tmp_path):
    run = Run(tmp_path)
    callback = callback_of(run)
    for step in (0, 1, 2, 3):
        callback.on_step_end(step)
    state = {**callback.state_dict(), "last_step": 1}
    (tmp_path / "run/plugins/i2am_debug/step_00000009.safetensorsxyz.tmp").write_bytes(b"half")
    resumed = callback_of(run, every_n_steps=10)
    resumed.load_state_dict(state)
    resumed.on_train_begin(1)
    store = RunStore(tmp_path / "run")
    assert [one.global_step for one in store.evaluations()] == [0, 1] and not list(store.folder.glob("*.tmp"))


def test_lines_that_nobody_understands_keep_no_evaluation_from_its_place(tmp_path, caplog):
    run = Run(tmp_path)
    callback_of(run).on_step_end(1)
    store = RunStore(tmp_path / "run")
    with open(store.index, "a", encoding="utf-8") as file:
        file.write(json.dumps({"format": 1, "global_step": 2, "means": []}) + "\n" + json.dumps({"format": 99}) + "\n")
    (store.folder / "step_00000001.safetensors").write_bytes(b"broken")
    later = callback_of(run, rules=LOUD)
    with caplog.at_level(logging.WARNING, "i2am_debug"):
        later.on_step_end(3), later.on_step_end(4)
    assert [one.global_step for one in store.readable_evaluations()] == [1, 3, 4]
    assert later.should_stop and "1 earlier evaluations are left out of judging" in caplog.text
    assert "failed" not in caplog.text


def test_judging_needs_no_file(tmp_path):
    run, told = Run(tmp_path), []
    patient = Rule(name="loud", kind="ceiling", figure="loss", limit=0.0, severity="critical", patience=3)
    callback = callback_of(run, rules=Rules(rules=(patient,)), on_alert=told.append)
    for step in (1, 2, 3):
        for file in (tmp_path / "run/plugins/i2am_debug").glob("step_*"):
            file.unlink()
        callback.on_step_end(step)
    assert [alert.global_step for alert in told] == [3]
