"""What an alert does to a training run: on every process, in the trackers, on disk, and never more than was asked for."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from training import Run

from i2am_debug import IMACSRegression, Rule, Rules
from i2am_debug.demo.inpainting.pairs import validation_pairs
from i2am_debug.demo.inpainting.pipeline import load_tiny_pipeline
from i2am_debug.demo.inpainting.training import DEMO
from i2am_debug.figures.values import Undefined
from i2am_debug.store.run_store import RunStore

LOUD = Rule(name="loud", kind="ceiling", figure="loss", limit=0.0, severity="critical")  # a loss is above 0


def quiet(rule: Rule, **settings) -> Rules:
    return Rules(rules=(rule,), **settings)


def start(folder, rule=LOUD, **changes):
    run = Run(folder)
    callback = run.callback(rules=quiet(rule), **{"pictures": 0, "panels": 0, **changes})
    callback.on_train_begin(0)
    return run, callback


def test_a_critical_alert_asks_for_a_stop_and_training_decides(tmp_path):
    run, callback = start(tmp_path)
    assert callback.should_stop is True
    run.train(1, callback)  # nothing was raised, and the next step runs
    assert not run.accelerator.check_trigger(), "accelerate's own trigger is the user's"


@pytest.mark.parametrize(("severity", "stop_on", "expected"), [("warning", "critical", False), ("info", "info", True)])
def test_a_stop_is_asked_for_from_the_given_severity_on(tmp_path, severity, stop_on, expected):
    rule = Rule(name="loud", kind="ceiling", figure="loss", limit=0.0, severity=severity)
    assert start(tmp_path, rule, stop_on=stop_on)[1].should_stop is expected


def test_no_stop_is_asked_for_when_none_is_wanted(tmp_path):
    assert start(tmp_path, stop_on=None)[1].should_stop is False


@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_fail_on_ends_the_training_with_the_alert(tmp_path, on_error):
    run = Run(tmp_path)
    callback = run.callback(rules=quiet(LOUD), fail_on="critical", on_error=on_error)
    with pytest.raises(IMACSRegression, match="critical: .*step 0") as caught:
        callback.on_train_begin(0)
    assert caught.value.alert.findings[0].rule == "loud"
    assert RunStore(tmp_path / "run").alerts() == [caught.value.alert], "written before it was raised"


def test_a_less_severe_alert_does_not_fail(tmp_path):
    rule = Rule(name="loud", kind="ceiling", figure="loss", limit=0.0, severity="warning")
    start(tmp_path, rule, fail_on="critical")


def test_an_alert_on_disk_has_figures_pairs_and_panels(tmp_path):
    start(tmp_path)
    folder = tmp_path / "run/plugins/i2am_debug"
    at_once, row = map(json.loads, (folder / "alerts.jsonl").read_text().splitlines())
    assert at_once == {**row, "panels": {}}, "the line that nothing waits for, then that with the panels, which counts"
    assert row["severity"] == "critical" and row["findings"][0]["now"]["pairs"] == 3
    assert set(row["panels"]) == set(row["findings"][0]["pairs"]) and len(row["panels"]) == 3
    for path in row["panels"].values():
        with Image.open(folder / path) as panel:
            assert 400 < max(panel.size) <= 1024


def test_an_alert_that_stays_is_told_once(tmp_path):
    _, callback = start(tmp_path)
    for step in (1, 2, 3):
        callback.evaluate(step)
    assert [a.global_step for a in RunStore(tmp_path / "run").alerts()] == [0]


def test_what_was_told_is_not_told_again_after_a_resume(tmp_path):
    run, callback = start(tmp_path)
    state = callback.state_dict()
    again = run.callback(rules=quiet(LOUD))
    again.load_state_dict(state)
    assert again.should_stop is True
    again.evaluate(1)
    assert [a.global_step for a in RunStore(tmp_path / "run").alerts()] == [0]


def test_a_state_can_be_loaded_without_pickle(tmp_path):
    torch.save(start(tmp_path)[1].state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True)["alerting"]


def test_too_few_pairs_are_said_once(tmp_path, caplog):
    run = Run(tmp_path)
    callback = run.callback()
    with caplog.at_level(logging.WARNING, "i2am_debug"):
        callback.on_train_begin(0)
        callback.evaluate(1)
    assert caplog.text.count("too few to tell a fall from noise, only limits and margins act: 3 pairs, at least 8") == 1


def test_a_rule_on_a_figure_that_does_not_exist_is_refused_before_training(tmp_path):
    run = Run(tmp_path)
    callback = run.callback(rules=quiet(Rule(name="typo", kind="floor", figure="imacs_q", limit=0.1)), on_error="warn")
    with pytest.raises(ValueError, match="rule 'typo': there is no figure 'imacs_q'; did you mean imacs_"):
        callback.on_train_begin(0)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"stop_on": "loud"}, "stop_on='loud'.*'info', 'warning', 'critical' or None"),
        ({"fail_on": 1}, "fail_on=1"),
        ({"rules": [LOUD]}, "expected Rules, or Rules.from_toml"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, changes, text):
    with pytest.raises(ValueError, match=text):
        Run(tmp_path, tracker=False).callback(**changes)


class Recorder:
    """Stands where accelerate's WandBTracker stands."""

    name = "wandb"

    def __init__(self):
        self.alerts, self.logged = [], []
        self.tracker = self

    def alert(self, **what):
        self.alerts.append(what)

    def log(self, values, step):
        self.logged.append((step, values))

    def store_init_configuration(self, values):
        self.configuration = values


def test_wandb_gets_an_alert_of_its_own(tmp_path):
    run = Run(tmp_path)
    recorder = Recorder()
    run.accelerator.trackers.append(recorder)
    run.callback(rules=quiet(LOUD), pairs=validation_pairs(2, seed=1)).on_train_begin(0)
    (told,) = recorder.alerts
    assert told["level"] == "ERROR" and "step 0" in told["title"] and "Look first at" in told["text"]
    assert recorder.logged[-1] == (0, {"i2am/alert": 1.0})
    folder = str((tmp_path / "run").resolve())
    assert recorder.configuration == {"i2am/folder": folder} and folder in told["text"]


def test_another_tracker_gets_the_figures_and_the_log_a_note(tmp_path, caplog):
    run = Run(tmp_path)
    other = Recorder()
    other.name = "mlflow"
    run.accelerator.trackers.append(other)
    with caplog.at_level(logging.INFO, "i2am_debug"):
        callback = run.callback(pairs=validation_pairs(2, seed=1))
        callback.evaluate(0)
        callback.evaluate(1)
    assert [step for step, values in other.logged if "i2am/attention_information" in values] == [0, 1]
    assert caplog.text.count(f"mlflow gets figures; everything, with the tab, is in {tmp_path / 'run'}") == 1
    assert not other.alerts


def test_a_fall_is_judged_against_the_best_of_the_run_read_from_disk(tmp_path):
    run = Run(tmp_path)
    rule = Rule(name="best", kind="drop_from_best", figure="loss", margin=1e-9)
    callback = run.callback(rules=quiet(rule), pairs=validation_pairs(2, seed=1))
    for step in range(3):
        callback.evaluate(step)
    with torch.no_grad():
        for parameter in run.pipeline.unet.parameters():
            parameter.mul_(1.5)
    callback.evaluate(3)
    (alert,) = RunStore(tmp_path / "run").alerts()
    assert alert.global_step == 3 and "steps 0 to 2" in alert.findings[0].against


def test_weights_that_are_not_finite_are_a_critical_alert(tmp_path):
    run = Run(tmp_path)
    callback = run.callback(rules=Rules(), pairs=validation_pairs(2, seed=1), pictures=0)
    callback.on_train_begin(0)
    with torch.no_grad():
        run.pipeline.unet.conv_in.weight.fill_(np.nan)
    callback.evaluate(1)
    (alert,) = RunStore(tmp_path / "run").alerts()
    assert alert.severity == "critical" and "no value any more" in alert.text and callback.should_stop


def test_what_broke_is_told_and_looked_for_again_while_it_stays_so(tmp_path, caplog):
    """A reference encoder that is overwritten between two evaluations; then the weights move on a little."""
    run = Run(tmp_path)
    pipeline, told = load_tiny_pipeline(), []
    settings = {"pairs": validation_pairs(8, seed=11), "batch_size": 8, "every_n_steps": 1, "pictures": 0, "panels": 0}
    callback = run.callback(pipeline=pipeline, loss_fn=None, on_alert=told.append, **settings)
    callback.on_step_end(0)
    DEMO.sabotages["encoder"].break_weights(pipeline)
    store = RunStore(tmp_path / "run")
    seen = []
    for step in (1, 2, 3, 4):
        with torch.no_grad():
            next(pipeline.unet.parameters()).mul_(1 + 1e-4)
        caplog.clear()
        with caplog.at_level(logging.INFO, "i2am_debug"):
            callback.on_step_end(step)
        (alert,) = store.alerts()
        seen.append((alert.global_step, alert.diagnosis.global_step, alert.diagnosis.kind, "once more" in caplog.text))
    assert seen == [(1, 1, "reference-weights", False), (1, 2, "reference-weights", True), *seen[2:]]
    assert seen[2:] == [(1, 2, "reference-weights", False)] * 2, "it is looked for once more, not for ever"
    assert [alert.global_step for alert in told] == [1]
    assert told[0].headline == "the way from the reference into the model broke"
    probed = [not isinstance(e.mean("probe/mirrored"), Undefined) for e in store_evaluations(store)]
    assert probed == [True, True, True, False, False]


def store_evaluations(store: RunStore) -> list:
    return [stored.evaluation for stored in store.evaluations()]
