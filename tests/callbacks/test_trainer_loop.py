"""`I2AMTrainerCallback` with the real Trainer of transformers: harmless, stops a run, resumes."""

from __future__ import annotations

import sys

import i2am_debug.callbacks
import pytest
import torch
from i2am_debug.callbacks import I2AMTrainerCallback
from i2am_debug.callbacks.checkpoints import STATE_FILE
from other_loops import MOVED, QUICK, Numbers, TinyTraining, assert_same_weights, few_pairs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from training import few_probes
from transformers import Trainer, TrainingArguments, set_seed
from transformers.integrations import TensorBoardCallback

from i2am_debug.store.run_store import RunStore


def trained(folder, steps, *, watched=True, checkpoint=None, report_to="none", reports=(), told=None, **settings):
    """A whole training on one process, and its callback."""
    set_seed(3)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to=report_to,
        logging_steps=1,
        save_steps=2,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    model = TinyTraining()
    trainer = Trainer(model, arguments, train_dataset=Numbers(2 * steps), callbacks=list(reports))
    callback = None
    if watched:
        given = {"pipeline": model.pipeline, "pairs": few_pairs(), **QUICK, **settings}
        callback = I2AMTrainerCallback(trainer, resume_from_checkpoint=told, **given)
        trainer.add_callback(callback)
    with few_probes():
        trainer.train(resume_from_checkpoint=checkpoint)
    return trainer, callback


def test_training_is_the_same_with_and_without_and_its_tensorboard_has_the_figures(tmp_path):
    alone, _ = trained(tmp_path / "alone", 4, watched=False)
    after_it = torch.rand(3)
    tensorboard = TensorBoardCallback(SummaryWriter(str(tmp_path / "run")))
    watched, callback = trained(tmp_path / "watched", 4, reports=[tensorboard])
    assert torch.equal(torch.rand(3), after_it), "random numbers go on as without it"
    assert_same_weights(watched.model, alone.model)
    assert [one.global_step for one in callback.monitor.history()] == [0, 2, 4]
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [point.step for point in events.Scalars("i2am/attention_information")] == [0, 2, 4]
    assert [point.step for point in events.Scalars("train/loss")] == [1, 2, 3, 4], "the loop's own points are all there"
    assert RunStore(tmp_path / "run").evaluations()


def test_an_alert_stops_the_run(tmp_path):
    trainer, callback = trained(tmp_path, 4, rules=MOVED, stop_on="critical")
    assert callback.monitor.should_stop
    assert trainer.state.global_step == 2
    assert [alert.global_step for alert in RunStore(tmp_path / "i2am_debug").alerts()] == [2]


def test_a_resumed_run_goes_on(tmp_path, caplog):
    trained(tmp_path / "whole", 2)
    assert (tmp_path / "whole/checkpoint-2" / STATE_FILE).is_file()
    _, again = trained(tmp_path / "whole", 4, checkpoint=str(tmp_path / "whole/checkpoint-2"))
    assert again.monitor.reporter.baseline.global_step == 0, "of before the checkpoint"
    assert [one.global_step for one in again.monitor.history()] == [0, 2, 4]
    elsewhere = str(tmp_path / "whole/checkpoint-2")
    _, unaware = trained(tmp_path / "unaware", 3, checkpoint=elsewhere)
    assert "checkpoint-2 holds no state of the callback" in caplog.text and "resume_from_checkpoint=" in caplog.text
    assert unaware.monitor.reporter.baseline.global_step == 2
    _, aware = trained(tmp_path / "aware", 3, checkpoint=elsewhere, told=elsewhere)
    assert aware.monitor.reporter.baseline.global_step == 0


def test_an_integration_without_pictures_gets_the_figures(tmp_path, monkeypatch):
    """Whatever `report_to` names is told in its own way, here by a callback that stands where MLflow's stands."""
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    told = []

    class Integration(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            told.append((state.global_step, logs))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "mlflow", Integration)
    trained(tmp_path, 2, report_to="mlflow")
    figures = [(step, logs) for step, logs in told if "i2am/attention_information" in logs]
    assert [step for step, _ in figures] == [0, 2]


def test_without_transformers_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "i2am_debug.callbacks.trainer_loop")
    with pytest.raises(ImportError, match="needs transformers, which is not installed: pip install transformers"):
        i2am_debug.callbacks.I2AMTrainerCallback  # noqa: B018
