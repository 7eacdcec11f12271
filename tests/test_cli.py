"""The command line and the examples, as a user types them."""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image
from training import few_probes

from i2am_debug import cli
from i2am_debug.demo.demo_model import MODELS, demo_model
from i2am_debug.demo.inpainting.pairs import validation_pairs
from i2am_debug.gate.exit_codes import ExitCode

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def files(tmp_path):
    pair = validation_pairs(1, seed=1)[0]
    pictures = {"reference": pair.reference, "image": pair.target, "mask": pair.mask_image}
    for name, picture in pictures.items():
        picture.save(tmp_path / f"{name}.png")
    return {name: str(tmp_path / f"{name}.png") for name in pictures}


@pytest.fixture(scope="module")
def saved(tiny_pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_pipeline.save_pretrained(folder)
    return folder


def explain(saved, files, output, **changes):
    options = {**files, "steps": "3", **changes}
    return cli.main(["explain", str(saved), "-o", str(output), *(f"--{k}={v}" for k, v in options.items())])


def test_explain_draws_the_panel(saved, files, tmp_path, capsys):
    output = tmp_path / "new" / "panel.png"
    assert explain(saved, files, output) == ExitCode.OK
    with Image.open(output) as panel:
        assert 400 < max(panel.size) <= 1024
    assert str(output) in capsys.readouterr().out


def test_explain_says_what_is_wrong(saved, files, tmp_path, capsys):
    assert explain(tmp_path, files, tmp_path / "x.png") == ExitCode.USAGE
    assert "no model_index.json" in capsys.readouterr().err
    assert explain(saved, files, tmp_path / "x.png", mask=tmp_path / "none.png") == ExitCode.FAILED
    assert "none.png, which does not exist" in capsys.readouterr().err
    Image.new("L", (8, 8), 255).save(tmp_path / "small.png")
    assert explain(saved, files, tmp_path / "x.png", mask=tmp_path / "small.png") == ExitCode.FAILED
    assert "mask is 8x8 pixels, its picture is 32x32" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["demo", "--steps", "3"], "at least 16, got 3"),
        (["demo", "--sabotage", "fire"], "invalid choice: 'fire'"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_wrong_words_are_usage_errors(arguments, text, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == ExitCode.USAGE
    assert text in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="elsewhere it is a process of its own")
def test_view_becomes_tensorboard_so_that_a_signal_reaches_it(tmp_path, monkeypatch):
    became = []
    monkeypatch.setattr(os, "execv", lambda program, words: became.append([program, *words[1:]]))
    monkeypatch.setattr(cli.subprocess, "call", lambda words: ExitCode.OK)
    cli.main(["view", str(tmp_path), "--port", "7007"])
    assert became == [[sys.executable, "-m", "tensorboard.main", "--logdir", str(tmp_path), "--port", "7007"]]


def test_folders_that_do_not_exist_are_usage_errors(tmp_path, capsys):
    assert cli.main(["view", str(tmp_path / "none")]) == ExitCode.USAGE
    assert cli.main(["demo", "--json", str(tmp_path / "none" / "x.json")]) == ExitCode.USAGE
    assert "there is no folder" in capsys.readouterr().err


def test_outputs_that_can_not_be_written_are_usage_errors_before_anything_runs(saved, files, tmp_path, capsys):
    assert explain(saved, files, tmp_path / "panel.xyz") == ExitCode.USAGE
    assert "expected a file ending in .png" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert cli.main(["demo", "--logdir", str(tmp_path / "file")]) == ExitCode.USAGE
    assert "is a file; a folder is needed" in capsys.readouterr().err


@pytest.mark.parametrize("model", list(cli._SABOTAGES))
def test_the_faults_of_each_model_are_those_that_it_has(model):
    assert set(cli._SABOTAGES[model]) == {*demo_model(model).sabotages, "none"}


def test_the_models_are_those_that_there_are():
    assert list(cli._SABOTAGES) == list(MODELS)


def test_a_fault_that_a_model_does_not_have_is_a_usage_error(capsys):
    assert cli.main(["demo", "--model", "edit", "--sabotage", "shift-mask"]) == ExitCode.USAGE
    assert "shift-mask: not of the model edit; expected one of shuffle, zero," in capsys.readouterr().err


@pytest.mark.usefixtures("few_probes")
def test_a_short_demo_writes_its_figures(tmp_path, capsys):
    target = tmp_path / "demo.json"
    code = cli.main(["demo", "--logdir", str(tmp_path / "runs"), "--steps", "16", "--json", str(target)])
    assert code == ExitCode.OK
    written = json.loads(target.read_text())
    assert written["sabotage_step"] == 8
    assert [e["global_step"] for e in written["evaluations"]] == [0, 8, 16]
    assert all(a["global_step"] > 8 for a in written["alerts"])
    printed = capsys.readouterr().out
    assert "references shuffled from here" in printed and f"tensorboard --logdir {tmp_path / 'runs'}" in printed


@pytest.mark.parametrize("name", sorted(p.name for p in EXAMPLES.glob("*.py")))
def test_examples_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [name, str(tmp_path), "2"])
    monkeypatch.syspath_prepend(EXAMPLES)  # as python does for a script
    monkeypatch.setattr("i2am_debug.families.registry._REGISTERED", [])  # where an example's own family stays
    with few_probes():
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert list(tmp_path.rglob("*.png")) or list(tmp_path.rglob("*.safetensors"))
