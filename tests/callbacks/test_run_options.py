"""What `i2am-debug run` is told, by the command line and a config file: the callback's settings, with its checks and words."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from diffusers import FluxKontextPipeline
from i2am_debug.callbacks.launcher.options import read_options

from i2am_debug import CapturePlan, IMACSSettings, Rules, ValidationPairs, cli
from i2am_debug.demo.inpainting.pairs import validation_pairs
from i2am_debug.errors import InvalidPair, WrongSettings
from i2am_debug.families.flux_kontext import FluxKontext
from i2am_debug.gate.exit_codes import ExitCode
from i2am_debug.settings import MonitorSettings

BESIDE = """
from i2am_debug.demo.inpainting.pairs import validation_pairs
from i2am_debug.families.flux_kontext import FluxKontext
def pairs(): return validation_pairs(2, seed=1)
def loss_fn(pairs, timesteps, generator, reference=None): ...
def call(pipeline, pair, generator): ...
def encode(pipeline, pair): ...
def on_alert(alert): ...
number = 3
"""
EVERYTHING = """
[i2am]
pairs = "beside_the_file:pairs"
every_n_steps = 7
loss_fn = "beside_the_file:loss_fn"
call = "beside_the_file:call"
encode = "beside_the_file:encode"
on_alert = "beside_the_file:on_alert"
way = "sampling"
size = [64, 32]
baseline = "before.safetensors"
stop_on = "warning"
fail_on = "critical"
on_error = "raise"
family = "beside_the_file:FluxKontext"
kept_threshold = 0.1
num_inference_steps = 5
batch_size = 2
pictures = 1
panels = 2
keep_matrices = 3
seed = 9
disable_progress_bar = true
synchronous = true
pipeline = "FluxKontextPipeline"
model = "somebody/a-model"
logdir = "log"

[i2am.plan]
sampler_steps = 2
heads = "all"
exclude = ["single*"]

[i2am.imacs]
penalty = 2.0

[i2am.rules]
alpha = 0.01
"""


@pytest.fixture
def write(tmp_path):
    (tmp_path / "beside_the_file.py").write_text(BESIDE)

    def written(text):
        file = tmp_path / "i2am.toml"
        file.write_text(text)
        return file

    return written


def test_a_file_says_everything_that_the_callbacks_arguments_say(write, tmp_path):
    options = read_options({}, write(EVERYTHING))
    told = MonitorSettings(**options.settings)

    assert "beside_the_file" in sys.modules and str(tmp_path) not in sys.path
    beside = sys.modules["beside_the_file"]
    assert len(told.pairs) == 2
    given = {
        "every_n_steps": 7,
        **{name: getattr(beside, name) for name in ("loss_fn", "call", "encode", "on_alert")},
        "way": "sampling",
        "size": (64, 32),
        "baseline": str(tmp_path / "before.safetensors"),
        "stop_on": "warning",
        "fail_on": "critical",
        "on_error": "raise",
        "family": FluxKontext(),
        "kept_threshold": 0.1,
        "num_inference_steps": 5,
        "batch_size": 2,
        "pictures": 1,
        "panels": 2,
        "keep_matrices": 3,
        "seed": 9,
        "disable_progress_bar": True,
        "synchronous": True,
        "plan": CapturePlan(sampler_steps=2, heads=None, exclude=("single*",)),
        "imacs": IMACSSettings(penalty=2.0),
        "rules": Rules(alpha=0.01),
    }
    assert {name: getattr(told, name) for name in given} == given
    assert {one.name for one in fields(MonitorSettings)} == {*given, "pairs", "budget"}, (
        "and budget in place of a number"
    )
    assert (options.pipeline, options.model) == (FluxKontextPipeline, "somebody/a-model")
    assert options.logdir == tmp_path / "log" and options.stops


def test_the_command_line_goes_before_the_file(write, tmp_path, monkeypatch):
    file = write('[tool.i2am]\npairs = "beside_the_file:pairs"\nevery_n_steps = 7\nlogdir = "log"')
    options = read_options({"budget": 0.02, "logdir": tmp_path / "other", "model": None}, file)
    assert options.settings["budget"] == 0.02 and "every_n_steps" not in options.settings
    assert options.logdir == tmp_path / "other" and not options.stops
    handed = []
    monkeypatch.setattr("i2am_debug.callbacks.launcher.script.run_script", lambda *given: handed.append(given))
    assert cli.main(["run", "--config", str(file), "--baseline", "b.safetensors", __file__, "--", "-x"]) == ExitCode.OK
    ((_, arguments, given, config),) = handed
    assert arguments == ["-x"] and str(read_options(given, config).settings["baseline"]) == "b.safetensors"


def test_pairs_and_rules_are_looked_for_from_the_file_on(write, tmp_path):
    file = write('[i2am]\npairs = "val"\nrules = "own.toml"')
    (tmp_path / "own.toml").write_text("[i2am.rules]\nmin_pairs = 4")
    with pytest.raises(InvalidPair, match=re.escape(str(tmp_path / "val"))):
        read_options({}, file)
    pair = validation_pairs(1, seed=1)[0]
    (tmp_path / "val").mkdir()
    pair.target.save(tmp_path / "val/t.png"), pair.reference.save(tmp_path / "val/r.png")
    (tmp_path / "val/metadata.jsonl").write_text('{"file_name": "t.png", "reference_file_name": "r.png"}')
    settings = read_options({}, file).settings
    assert len(settings["pairs"]) == 1 and settings["rules"].min_pairs == 4
    assert settings["every_n_steps"] == "asked", "when the script validates"
    assert isinstance(settings["pairs"], ValidationPairs)


def test_the_file_in_the_docs_is_read_as_it_stands(write, tmp_path):
    page = Path(__file__).parents[2] / "docs" / "official-scripts.md"
    (text,) = re.findall(r"^```toml\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    options = read_options({}, write(text.replace('"val"', '"beside_the_file:pairs"')))
    assert options.settings["size"] == (512, 512) and options.settings["rules"].alpha == 0.01 and options.stops


def test_asked_is_no_schedule(write):
    settings = read_options({}, write('[i2am]\npairs = "beside_the_file:pairs"\nevery_n_steps = "asked"')).settings
    spacing = MonitorSettings(**settings).spacing()
    assert not any(spacing.due(step, lambda work: work()) or spacing.falls_on(step) for step in range(100))


WITH_PAIRS = '[i2am]\npairs = "beside_the_file:pairs"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[i2am", "is not TOML"),
        ("[other]", r"has no table \[i2am\]"),
        (WITH_PAIRS + "every_n_step = 3", r"\[i2am\] has no setting 'every_n_step'; did you mean 'every_n_steps'\?"),
        (WITH_PAIRS + "every_n_steps = 0", "every_n_steps=0: expected a whole number of at least 1"),
        (WITH_PAIRS + "every_n_steps = 3\nbudget = 0.1", "say the same in two ways"),
        (WITH_PAIRS + 'way = "looking"', "way='looking': expected"),
        (WITH_PAIRS + "size = [64]", r"size=\(64,\): expected \(width, height\)"),
        (
            WITH_PAIRS + "plan = { sampler_step = 3 }",
            "plan: CapturePlan has no setting 'sampler_step'; did you mean 'sampler_steps'",
        ),
        (WITH_PAIRS + "plan = { sampler_steps = 0 }", r"plan: CapturePlan\(sampler_steps=0\): expected"),
        (WITH_PAIRS + "plan = 3", "plan: 3: expected a table"),
        (WITH_PAIRS + "imacs = { penalty = -1 }", "imacs: penalty=-1: expected"),
        (WITH_PAIRS + "rules = { alpha = 2 }", "rules: alpha=2: expected"),
        (WITH_PAIRS + 'rules = "none.toml"', "rules: the rules .*none.toml can't be read"),
        (WITH_PAIRS + 'call = "call"', "call: 'call': expected \"module:name\""),
        (
            WITH_PAIRS + 'call = "beside_the_file:cal"',
            "call: .*no attribute 'cal'.*beside the script or the config file",
        ),
        (WITH_PAIRS + 'call = "no_such_module:call"', "call: .*No module named 'no_such_module'"),
        (WITH_PAIRS + 'call = "beside_the_file:number"', "call: .*is a int; expected a function"),
        (WITH_PAIRS + 'pipeline = "FluxKontextPipelin"', "pipeline: 'FluxKontextPipelin' is no pipeline class"),
        (WITH_PAIRS + 'allow_outside = "yes"', "allow_outside='yes': expected true or false"),
        ("[i2am]\nevery_n_steps = 3", "every_n_steps: says how pairs are evaluated, and no pairs are given"),
    ],
)
def test_what_is_wrong_is_named(write, tmp_path, capsys, text, said):
    file = write(text)
    with pytest.raises(WrongSettings, match=said) as error:
        read_options({}, file)
    assert str(file) in str(error.value)
    script = tmp_path / "script.py"
    script.write_text("raise AssertionError('the script began')")
    assert cli.main(["run", "--config", str(file), str(script)]) == ExitCode.USAGE
    assert re.search(said, capsys.readouterr().err)


def test_files_that_are_not_there(tmp_path, capsys):
    assert cli.main(["run", str(tmp_path / "none.py")]) == ExitCode.USAGE
    assert "there is no script" in capsys.readouterr().err
    script = tmp_path / "script.py"
    script.write_text("")
    assert cli.main(["run", "--config", str(tmp_path / "none.toml"), str(script)]) == ExitCode.USAGE
    assert "none.toml can't be read: No such file" in capsys.readouterr().err
    assert cli.main(["run", str(script), "--pairs", "val", "--", "--steps", "3"]) == ExitCode.USAGE
    assert f"--pairs stands behind {script}, so it would be the script's; put it before" in capsys.readouterr().err
    assert cli.main(["run", "--pairs", str(tmp_path / "val"), str(script)]) == ExitCode.USAGE
    assert str(tmp_path / "val") in capsys.readouterr().err
