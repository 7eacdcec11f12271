"""`I2AMPlainCallback` in a loop of PyTorch alone, on one process and on two."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from i2am_debug.callbacks import I2AMPlainCallback
from other_loops import MOVED, QUICK, TinyTraining, assert_same_weights, few_pairs
from several_processes import forked
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter
from training import few_probes

from i2am_debug.figures.record import Evaluation
from i2am_debug.store.run_store import RunStore


class Loop:
    """A fine-tune, as it is written without any library around it."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.model = TinyTraining()
        self.trained: nn.Module = self.model
        if distributed.is_initialized():
            self.trained = DistributedDataParallel(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.step = 0

    def callback(self, folder: Path, **changes) -> I2AMPlainCallback:
        given = {"pairs": few_pairs(), "logdir": folder, **QUICK, **changes}
        return I2AMPlainCallback(self.trained, pipeline=self.model.pipeline, **given)

    def train(self, steps: int, callback: I2AMPlainCallback | None = None) -> Loop:
        for _ in range(steps):
            self.trained(torch.tensor(self.step))["loss"].backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            if callback is not None:
                callback.on_step_end(self.step)
                if callback.should_stop:
                    break
        return self


@pytest.fixture(autouse=True)
def _few_probes():
    with few_probes():
        yield


def test_training_is_the_same_with_and_without_and_the_writer_has_the_figures(tmp_path):
    alone = Loop().train(4)
    after_it = torch.rand(3)
    watched = Loop()
    with SummaryWriter(str(tmp_path / "run")) as writer:
        callback = watched.callback(tmp_path / "unused", writer=writer)
        callback.on_train_begin(0)
        watched.train(4, callback)
        callback.on_train_end(4)
        writer.add_scalar("loss", 1.0, 5)
    assert torch.equal(torch.rand(3), after_it), "random numbers go on as without it"
    assert_same_weights(watched.model, alone.model)
    assert [one.global_step for one in callback.history()] == [0, 2, 4]
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [point.step for point in events.Scalars("i2am/attention_information")] == [0, 2, 4]
    assert events.Scalars("loss"), "the loop's own writer goes on"
    assert RunStore(tmp_path / "run").evaluations() and not (tmp_path / "unused").exists()


def test_an_alert_stops_the_run_and_a_resumed_one_goes_on(tmp_path):
    loop = Loop()
    callback = loop.callback(tmp_path, rules=MOVED, stop_on="critical")
    callback.on_train_begin(0)
    loop.train(4, callback)
    assert loop.step == 2 and callback.should_stop
    torch.save(callback.state_dict(), tmp_path / "two.pt")
    again = loop.callback(tmp_path)
    again.load_state_dict(torch.load(tmp_path / "two.pt", weights_only=True))
    assert again.should_stop, "until somebody has looked"
    again.monitor.should_stop = False
    again.on_train_begin(2)
    loop.train(2, again)
    again.on_train_end(4)
    assert [one.global_step for one in again.history()] == [0, 2, 4]
    assert again.monitor.reporter.baseline.global_step == 0


def test_autocast_around_an_evaluation_is_the_models_alone(tmp_path):
    """As Lightning evaluates under mixed precision; our own arithmetic is in float32 all the same."""
    loop, losses = Loop(), {}
    for name, dtype in (("float32", None), ("bfloat16", torch.bfloat16)):
        callback = loop.callback(tmp_path / name, panels=0)
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            evaluation = callback.evaluate(0)
        losses[name] = [evaluation.mean(tag) for tag in ("loss", "loss_wrong_reference", "attention_information")]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02) and losses["bfloat16"] != losses["float32"]
    assert not any(float(torch.tensor(loss).bfloat16()) == pytest.approx(loss) for loss in losses["bfloat16"][:2])


def test_a_setting_that_is_none_is_named(tmp_path):
    with pytest.raises(TypeError, match="I2AMPlainCallback has no setting 'rule'; did you mean 'rules'"):
        Loop().callback(tmp_path, rule=MOVED)


def on_all_processes(folder: Path, report: Path) -> None:
    """An evaluation each process takes part in, and the weights that come out."""
    loop = Loop()
    callback = loop.callback(folder)
    with few_probes():
        callback.on_train_begin(0)
        loop.train(2, callback)
        evaluation = callback.evaluate(3)
        callback.on_train_end(3)
    alone = Loop().train(2)
    assert_same_weights(loop.model, alone.model)
    wrote = callback.monitor.reporter._store is not None
    (report.parent / f"{report.name}.{os.environ.get('RANK', 0)}").write_text(json.dumps([evaluation.to_json(), wrote]))


def test_two_processes_share_the_pairs_and_agree_with_one(tmp_path):
    on_all_processes(tmp_path / "one", tmp_path / "one")
    forked(2, Path(__file__), tmp_path / "two", tmp_path / "two")
    (one, _), (first, wrote), (second, wrote_too) = (
        json.loads((tmp_path / name).read_text()) for name in ("one.0", "two.0", "two.1")
    )
    assert (wrote, wrote_too) == (True, False), "only the main process opens the store"
    alone, ours, theirs = (Evaluation.from_json(one) for one in (one, first, second))
    assert ours.pairs == alone.pairs and ours.figures == theirs.figures
    assert ours.mean("attention_information") == pytest.approx(alone.mean("attention_information"), rel=1e-5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    on_all_processes(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(0)  # as in training.py
