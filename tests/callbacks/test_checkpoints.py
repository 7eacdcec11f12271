"""Checkpoints hold the callback's state in a file of its own; a checkpoint without it, or with a broken one, harms nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from i2am_debug.callbacks.checkpoints import STATE_FILE, read_state
from safetensors.numpy import save_file
from training import Run

from i2am_debug import CapturePlan
from i2am_debug.store.run_store import RunStore

pytestmark = pytest.mark.usefixtures("few_probes")

QUICK = {"every_n_steps": 2, "plan": CapturePlan(sampler_steps=1), "pictures": 0, "panels": 0}


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path, tracker=False)


def log_of(caplog) -> str:
    lines = [record.getMessage() for record in caplog.records if record.name == "i2am_debug"]
    caplog.clear()
    return "\n".join(line for line in lines if "too few to tell" not in line)


def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path):
    """Nothing is registered for checkpointing; `test_callback` has the same of a callback that is, as older scripts do."""

    def begun(name):
        run = Run(tmp_path / name, tracker=False)
        callback = run.callback(logdir=tmp_path / name / "own", **QUICK)
        return run, callback

    whole, callback = begun("whole")
    callback.on_train_begin(0)
    whole.train(2, callback)
    whole.accelerator.save_state(str(tmp_path / "checkpoint"))
    assert not (tmp_path / "checkpoint" / "custom_checkpoint_0.pkl").exists()
    draws = whole.draws.get_state()
    whole.train(2, callback)
    resumed, again = begun("resumed")
    resumed.accelerator.load_state(str(tmp_path / "checkpoint"))
    assert again.monitor.state() | {"baseline_maps": 0} == read_state(tmp_path / "checkpoint" / STATE_FILE) | {
        "baseline_maps": 0
    }
    resumed.draws.set_state(draws)
    resumed.step = 2
    again.on_train_begin(2)
    resumed.train(2, again)
    ours, theirs = (one.history() for one in (callback, again))
    assert [e.global_step for e in ours] == [0, 2, 4] and [e.global_step for e in theirs] == [4]
    assert ours[-1] == theirs[-1] and any("drift" in tag for tag in ours[-1].figures)


def test_a_checkpoint_from_before_the_callback_is_loaded(run, tmp_path, caplog):
    run.train(1)
    run.accelerator.save_state(str(tmp_path / "before"))
    expected = run.state()["weights"]
    run.train(1)
    callback = run.callback(**QUICK)
    run.accelerator.load_state(str(tmp_path / "before"))
    weights = run.state()["weights"]
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    said = log_of(caplog)
    assert f"before holds no state of the callback ({STATE_FILE}); its baseline will be the first evaluation" in said
    callback.on_train_begin(1)
    assert [evaluation.global_step for evaluation in callback.history()] == [1]


def break_off(path):
    path.write_bytes(path.read_bytes()[:100])


def of_another_kind(path):
    save_file({"weight": np.zeros(3)}, str(path))


def of_another_shape(path):
    save_file(
        {}, str(path), {"i2am_debug_state": json.dumps({"last_step": 4, "baseline": "{}", "spacing": {"step": 1}})}
    )


def no_object(path):
    save_file({}, str(path), {"i2am_debug_state": "[1, 2]"})


def nonsense(path):
    save_file({}, str(path), {"i2am_debug_state": json.dumps({"baseline": "null", "alerting": 7, "last_step": "x"})})


@pytest.mark.parametrize("spoil", [break_off, of_another_kind, of_another_shape, no_object, nonsense])
def test_a_broken_state_is_named_and_training_goes_on(run, tmp_path, caplog, spoil):
    callback = run.callback(**QUICK)
    run.accelerator.save_state(str(tmp_path / "checkpoint"))
    spoil(tmp_path / "checkpoint" / STATE_FILE)
    before = callback.monitor.state()
    run.accelerator.load_state(str(tmp_path / "checkpoint"))
    said = log_of(caplog)
    assert f"checkpoint/{STATE_FILE} can't be taken up, the callback begins anew and training goes on" in said
    assert callback.monitor.state() == before, "nothing of it was taken up"
    callback.on_train_begin(4)
    assert [evaluation.global_step for evaluation in callback.history()] == [4]


def test_a_state_that_can_not_be_written_costs_no_checkpoint(run, tmp_path, caplog):
    callback = run.callback(**QUICK)
    folder = tmp_path / "checkpoint"
    (folder / STATE_FILE / "in the way").mkdir(parents=True)
    run.accelerator.save_state(str(folder))
    assert "the callback's state is not in" in log_of(caplog) and (folder / "model.safetensors").is_file()
    assert sorted(path.name for path in folder.iterdir() if "i2am" in path.name) == [STATE_FILE], "nothing is left over"
    assert callback.monitor.state()["last_step"] is None


def test_scripts_that_save_and_load_their_models_themselves(run, tmp_path):
    """As diffusers' training scripts do: their hooks empty the lists, before ours and behind."""

    def save(models, weights, output_dir):
        while weights:
            weights.pop()

    def load(models, input_dir):
        while models:
            models.pop()

    run.accelerator.register_save_state_pre_hook(save)
    run.accelerator.register_load_state_pre_hook(load)
    callback, other = run.callback(**QUICK), run.callback(**QUICK, logdir=tmp_path / "other")
    run.accelerator.register_save_state_pre_hook(save)
    callback.monitor._last_step, other.monitor._last_step = 7, 8
    run.accelerator.save_state(str(tmp_path / "checkpoint"))
    assert not (tmp_path / "checkpoint" / "model.safetensors").exists()
    callback.monitor._last_step = other.monitor._last_step = None
    run.accelerator.load_state(str(tmp_path / "checkpoint"))
    assert (callback.monitor._last_step, other.monitor._last_step) == (7, 8), "two callbacks have a file each"


def test_the_state_file_does_not_look_like_weights(run, tmp_path):
    """diffusers' `load_lora_weights(folder)` refuses a folder with several *.safetensors."""
    run.callback(**QUICK)
    run.accelerator.save_state(str(tmp_path / "checkpoint"))
    ours = [path for path in (tmp_path / "checkpoint").iterdir() if "i2am" in path.name]
    assert ours and not any(path.suffix == ".safetensors" for path in ours)
    assert RunStore(tmp_path).evaluations() == []
