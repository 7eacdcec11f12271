"""wandb's real package, offline: what a run has when it is read back. wandb is not among the tests' own requirements."""

from __future__ import annotations

import json

import pytest
from accelerate import Accelerator
from other_loops import MOVED, QUICK, TinyTraining, few_pairs
from training import few_probes

wandb = pytest.importorskip("wandb")


BLOCK, HEADER = 2**15, 7  # of LevelDB's log format, in which the file is
WHOLE, LAST = 1, 4


def records(folder):
    """Those of the run's own file."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.rglob("run-*.wandb")
    data, at, together = file.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        together += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (WHOLE, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(together)
            together = b""
            yield record


def test_a_run_has_figures_panels_alerts_and_the_folder(tmp_path, monkeypatch):
    from i2am_debug.callbacks import I2AMCallback

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    accelerator = Accelerator(cpu=True, log_with="wandb", project_dir=str(tmp_path))
    accelerator.init_trackers("i2am", init_kwargs={"wandb": {"dir": str(tmp_path)}})
    training = TinyTraining()
    callback = I2AMCallback(
        accelerator, pipeline=training.pipeline, pairs=few_pairs(), **{**QUICK, "synchronous": False, "rules": MOVED}
    )
    with few_probes():
        callback.on_train_begin(0)
        for parameter in training.unet.parameters():
            parameter.data.mul_(1.3)
        accelerator.log({"loss": 1.0}, step=1)
        callback.on_step_end(2)
        callback.on_train_end(2)
    accelerator.end_training()
    wandb.teardown()  # ends the process that writes the file

    found = list(records(tmp_path))
    history = [
        {"/".join(i.nested_key) or i.key: i.value_json for i in r.history.item} for r in found if r.HasField("history")
    ]
    steps = [json.loads(row["_step"]) for row in history if "i2am/attention_information" in row]
    assert steps == [0, 2] and any("loss" in row for row in history), "the script's own points too"
    panels = [row["_step"] for row in history if row.get("i2am/pair_00/_type") == '"images/separated"']
    assert panels == ["0", "2"] and len(list(tmp_path.rglob("media/images/i2am/pair_00*.png"))) == 2
    (alert,) = [record.alert for record in found if record.HasField("alert")]
    folder = str(tmp_path / "i2am_debug")
    assert alert.level == "ERROR" and "at step 2" in alert.title and folder in alert.text
    configuration = {"/".join(u.nested_key) or u.key: u.value_json for r in found for u in r.config.update}
    assert json.loads(configuration["i2am/folder"]) == folder
