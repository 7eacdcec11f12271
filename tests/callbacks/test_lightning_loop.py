"""`I2AMLightningCallback` with the real Lightning: harmless, stops a run, resumes."""

from __future__ import annotations

import sys

import i2am_debug.callbacks
import lightning
import pytest
import torch
from i2am_debug.callbacks import I2AMLightningCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from other_loops import MOVED, QUICK, Numbers, TinyTraining, assert_same_weights, few_pairs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training import few_probes

from i2am_debug.errors import I2AMError
from i2am_debug.store.run_store import RunStore


class Tiny(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.tiny = TinyTraining()

    def training_step(self, batch, batch_idx):
        loss = self.tiny(batch["number"])["loss"]
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def fit(folder, steps, *, watched=True, checkpoint=None, loggers=False, **settings):
    """A whole training on one process, and its callback."""
    lightning.seed_everything(3, verbose=False)
    module = Tiny()
    given = {"pairs": few_pairs(), **QUICK, **settings}
    callback = I2AMLightningCallback(pipeline=module.tiny.pipeline, **given) if watched else None
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[callback] if watched else [],
        logger=loggers,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        accumulate_grad_batches=2,
        log_every_n_steps=1,
    )
    loader = torch.utils.data.DataLoader(Numbers(2 * steps), batch_size=1)
    torch.manual_seed(7)
    with few_probes():
        trainer.fit(module, loader, ckpt_path=checkpoint)
    return trainer, module, callback


def test_training_is_the_same_with_and_without_and_the_logger_has_the_figures(tmp_path):
    _, alone, _ = fit(tmp_path / "alone", 4, watched=False)
    after_it = torch.rand(3)
    tensorboard, csv = TensorBoardLogger(tmp_path, "tb", "run"), CSVLogger(tmp_path, "csv", "run")
    _, watched, callback = fit(tmp_path / "watched", 4, loggers=[tensorboard, csv])
    assert torch.equal(torch.rand(3), after_it), "random numbers go on as without it"
    assert_same_weights(watched, alone)
    assert [one.global_step for one in callback.monitor.history()] == [0, 2, 4]
    events = EventAccumulator(str(tmp_path / "tb/run")).Reload()
    assert [point.step for point in events.Scalars("i2am/attention_information")] == [0, 2, 4]
    assert [point.step for point in events.Scalars("loss")] == [0, 1, 2, 3], "the loop's own points are all there"
    assert RunStore(tmp_path / "tb/run").evaluations()
    assert "i2am/attention_information" in (tmp_path / "csv/run/metrics.csv").read_text()


def test_an_alert_stops_the_run(tmp_path):
    trainer, _, callback = fit(tmp_path, 4, rules=MOVED, stop_on="critical")
    assert callback.monitor.should_stop
    assert trainer.global_step == 2
    assert [alert.global_step for alert in RunStore(tmp_path / "i2am_debug").alerts()] == [2]


def test_a_resumed_run_goes_on(tmp_path, caplog):
    whole, _, _ = fit(tmp_path / "whole", 2)
    whole.save_checkpoint(tmp_path / "two.ckpt")
    _, _, again = fit(tmp_path / "whole", 4, checkpoint=tmp_path / "two.ckpt")
    assert again.monitor.reporter.baseline.global_step == 0, "of before the checkpoint"
    assert [one.global_step for one in again.monitor.history()] == [0, 2, 4]
    assert "drift" in " ".join(again.monitor.history()[-1].figures)
    broken = torch.load(tmp_path / "two.ckpt", weights_only=True)
    broken["callbacks"]["I2AMLightningCallback"]["baseline"] = "no evaluation"
    torch.save(broken, tmp_path / "broken.ckpt")
    _, _, anew = fit(tmp_path / "anew", 3, checkpoint=tmp_path / "broken.ckpt")
    assert "can't be taken up, it begins anew and training goes on" in caplog.text
    assert anew.monitor.reporter.baseline.global_step == 2


def test_before_a_training_it_says_so(tmp_path):
    callback = I2AMLightningCallback(pipeline=TinyTraining().pipeline, pairs=few_pairs(), **QUICK)
    with pytest.raises(I2AMError, match=r"in no training yet: it looks at pairs from trainer\.fit on"):
        callback.monitor.evaluate(0)


def test_without_lightning_the_error_says_how_to_get_it(monkeypatch):
    for name in ("lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "i2am_debug.callbacks.lightning_loop")
    with pytest.raises(ImportError, match="needs Lightning 2, which is not installed: pip install lightning"):
        i2am_debug.callbacks.I2AMLightningCallback  # noqa: B018
