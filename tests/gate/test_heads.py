"""A model of more heads than a plan looks at: only evaluations of the same heads are compared, in a run and in the gate."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from i2am_debug.callbacks import I2AMCallback
from training import new_accelerator

from i2am_debug import CapturePlan, cli
from i2am_debug.demo.inpainting.model import ReferenceEncoder, new_scheduler, new_unet
from i2am_debug.demo.inpainting.pairs import validation_pairs
from i2am_debug.demo.inpainting.pipeline import TinyExamplePipeline
from i2am_debug.errors import I2AMError, NotComparable, UnsupportedModel
from i2am_debug.figures.record import Evaluation, cure, differences, heads_in_short, in_words
from i2am_debug.gate.check import check
from i2am_debug.gate.exit_codes import ExitCode
from i2am_debug.gate.repeated_evaluation import evaluate_repeatedly
from i2am_debug.store.evaluation_file import read_evaluation, write_evaluation

pytestmark = pytest.mark.usefixtures("few_probes")

PAIRS = 8  # as many as a verdict needs
CURE = "start the run with baseline=FILE, or both with a plan that has heads=None"


def many_heads(seed: int = 0) -> TinyExamplePipeline:
    """The tiny model with random weights and 16 heads in each of its layers: 96, more than a plan's 64."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel.from_config({**new_unet().config, "attention_head_dim": (16, 16)})
    pipeline = TinyExamplePipeline(unet.eval(), ReferenceEncoder().eval(), new_scheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run(folder: Path, pipeline: Any, **settings: Any) -> I2AMCallback:
    accelerator: Accelerator = new_accelerator(folder)
    accelerator.prepare(pipeline.unet)
    given = {"pairs": validation_pairs(PAIRS, seed=11), "every_n_steps": 10, "plan": CapturePlan(sampler_steps=1)}
    quiet = {"pictures": 0, "panels": 0, "on_error": "raise", "disable_progress_bar": True, "synchronous": True}
    return I2AMCallback(accelerator, pipeline=pipeline, **{**given, **quiet, **settings})


def file_of(folder: Path, step: int = 0) -> Path:
    return folder / "run/plugins/i2am_debug" / f"step_{step:08d}.safetensors"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: Any) -> dict[str, Path]:
    """Two models of one kind, each looked at by itself, and the second with the heads of the first: name → folder."""
    folder = tmp_path_factory.mktemp("heads")
    for name, seed, settings in (
        ("first", 0, {}),
        ("second", 1, {}),
        ("with its heads", 1, {"baseline": file_of(folder / "first")}),
    ):
        callback = run(folder / name, many_heads(seed), **settings)
        callback.on_train_begin(0)
        callback.accelerator.end_training()
    return {name: folder / name for name in ("first", "second", "with its heads")}


def chosen(heads: Any) -> set[tuple[str, int]]:
    return {(layer, head) for layer, each in heads.items() for head in each}


def test_the_models_choose_other_heads_by_themselves_and_the_same_with_a_baseline(runs: dict[str, Path]) -> None:
    first, second, same = (read_evaluation(file_of(folder))[0] for folder in runs.values())
    assert len(chosen(first.heads)) >= 60 and len(chosen(first.heads) ^ chosen(second.heads)) >= 10
    assert same.heads == first.heads
    assert same.mean("attention_information") != second.mean("attention_information")
    assert differences(same, first) == {} and same.comparable_id == first.comparable_id
    assert set(differences(second, first)) == {"heads"} and second.comparable_id != first.comparable_id


def test_in_a_run_other_heads_are_refused_before_training(runs: dict[str, Path], tmp_path: Path) -> None:
    baseline = file_of(runs["first"])
    callback = run(tmp_path, many_heads(1), baseline=baseline)
    callback.monitor.evaluator.choice = None  # as it was before a run took its baseline's
    with pytest.raises(
        I2AMError, match=r"baseline= is not comparable with this run, they differ in heads \(.*heads=None"
    ):
        callback.on_train_begin(0)
    callback.accelerator.end_training()


def test_a_choice_that_changes_within_a_run_alerts_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callback = run(tmp_path, many_heads(0))
    callback.evaluate(0)
    choice = callback.monitor.evaluator.choice
    layer, heads = next(iter(choice.heads.items()))
    changed = {**choice.heads, layer: dict.fromkeys(list(heads)[:1], 5.0)}
    callback.monitor.evaluator.choice = replace(choice, heads=changed)
    with caplog.at_level(logging.WARNING, "i2am_debug"):
        callback.evaluate(10)
    callback.accelerator.end_training()
    assert "no fall is looked for, the baseline is not comparable: heads (" in caplog.text


def test_the_gate_compares_only_the_same_heads(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline = str(tmp_path / "b.safetensors")
    assert cli.main(["baseline", "save", str(runs["first"]), "-o", baseline]) == 0
    assert cli.main(["check", str(runs["second"]), "--baseline", baseline]) == ExitCode.NOT_COMPARABLE
    said = capsys.readouterr().out
    assert "the evaluation and the baseline differ in heads (" in said and CURE in said
    assert len(said.split("not comparable: ")[1]) < 400, "a choice of 64 heads is not listed"
    ended = cli.main(["check", str(runs["with its heads"]), "--baseline", baseline, "--json", str(tmp_path / "v.json")])
    assert ended in (ExitCode.OK, ExitCode.FAILED)
    assert json.loads((tmp_path / "v.json").read_text())["status"] in ("pass", "regression")


def test_calibration_looks_at_the_baselines_heads(runs: dict[str, Path], tmp_path: Path) -> None:
    pipeline, folder = many_heads(1), tmp_path / "pairs"
    pipeline.save_pretrained(tmp_path / "pipeline")
    folder.mkdir()
    rows = []
    for i, pair in enumerate(validation_pairs(2, seed=11)):
        names = {"file_name": pair.target, "reference_file_name": pair.reference, "mask_file_name": pair.mask_image}
        for key, picture in names.items():
            picture.save(folder / f"{key}_{i}.png")
        rows.append({key: f"{key}_{i}.png" for key in names})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (alone,) = evaluate_repeatedly(tmp_path / "pipeline", folder, repeats=1)
    base, _ = read_evaluation(file_of(runs["first"]))
    of_others = replace(alone, heads=base.heads, fingerprint={**alone.fingerprint, "heads": heads_in_short(base.heads)})
    assert alone.heads != base.heads
    again = evaluate_repeatedly(tmp_path / "pipeline", folder, repeats=2, baseline=of_others)
    assert [one.heads for one in again] == [base.heads] * 2


def test_a_healthy_run_of_other_heads_calibrates_nothing(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ended = cli.main(["calibrate", str(runs["second"]), "--baseline", str(file_of(runs["first"]))])
    assert ended == ExitCode.NOT_COMPARABLE and CURE in capsys.readouterr().err


# -- heads of another model -----------------------------------------------------------------------------------------------


def _without_a_layer(heads: dict) -> dict:
    return {f"another.{layer}" if i == 0 else layer: each for i, (layer, each) in enumerate(heads.items())}


def _with_a_head_too_many(heads: dict) -> dict:
    return {layer: {**each, 16: 1.0} if i == 0 else each for i, (layer, each) in enumerate(heads.items())}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without_a_layer, r"they name a layer 'another\..*'; this model and plan have down_blocks"),
        (_with_a_head_too_many, r"they name head 16 of layer '.*', which has 16 in this model"),
    ],
)
def test_a_baseline_of_another_model_is_refused_early(
    runs: dict[str, Path], tmp_path: Path, change: Callable[[dict], dict], words: str
) -> None:
    base, maps = read_evaluation(file_of(runs["first"]))
    path = tmp_path / "other.safetensors"
    write_evaluation(path, replace(base, heads=change(dict(base.heads))), maps, {})
    callback = run(tmp_path, many_heads(1), baseline=path, on_error="warn")
    forwards: list[int] = []
    callback._given_pipeline.unet.register_forward_hook(lambda *_: forwards.append(1))
    with pytest.raises(
        UnsupportedModel, match=f"heads are those of another model or plan: {words}.*leave baseline= away"
    ):
        callback.on_train_begin(0)
    assert not forwards
    callback.accelerator.end_training()


# -- what was written before the fingerprint named the heads ---------------------------------------------------------------

HEADS = {"up": {0: 1.0, 3: 2.5}, "down": {1: 1.0}}


def made(heads: Any, *, told: bool = False) -> Evaluation:
    figures = {"imacs_g": (0.5,) * PAIRS}
    rest: dict[str, Any] = {"errors": {}, "layers": ("up",), "copying_layer": "up", "reference_lines": {}}
    fingerprint = {"seed": 0, **({"heads": heads_in_short(heads)} if told else {})}
    names = tuple(f"p{i}" for i in range(PAIRS))
    return Evaluation(global_step=0, pairs=names, figures=figures, heads=heads, fingerprint=fingerprint, **rest)


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        (None, None, True),
        (HEADS, HEADS, True),
        (HEADS, {layer: dict(reversed(each.items())) for layer, each in reversed(HEADS.items())}, True),
        (HEADS, None, False),
        (HEADS, {**HEADS, "down": {2: 1.0}}, False),
        (HEADS, {**HEADS, "down": {1: 2.0}}, False),
        (HEADS, {"up": HEADS["up"]}, False),
    ],
)
def test_old_evaluations_say_their_heads_themselves(ours: Any, theirs: Any, same: bool) -> None:
    new, old = made(ours, told=True), made(theirs)
    for one, other in ((new, old), (made(ours), old), (new, made(theirs, told=True))):
        one = Evaluation.from_json(json.loads(json.dumps(one.to_json())))
        assert set(differences(one, other)) == (set() if same else {"heads"})
        assert (one.comparable_id == other.comparable_id) == same


def test_how_many_heads_differ_is_told() -> None:
    unlike = differences(made(HEADS), made({**HEADS, "down": {2: 1.0}}))
    words = "3 in 2 layers, 1 of them, in 1 layers, not in both"
    assert unlike == {"heads": (words, words)}
    assert in_words(unlike) == f"heads ({words}, was {words}){cure(unlike)}"
    assert in_words(differences(made(HEADS), made(None))).startswith("heads (3 in 2 layers, ")
    assert CURE in str(NotComparable(unlike, cure(unlike))) and cure({"seed": (0, 1)}) == ""


def test_what_one_evaluation_does_not_name_is_not_shared(tmp_path: Path) -> None:
    old = Path(__file__).parents[1] / "fixtures/written_by_0.1.0/baseline.safetensors"
    base, _ = read_evaluation(old)
    now = replace(base, fingerprint={**base.fingerprint, "regions": ["hole"] * 8, "call": None})
    assert set(differences(now, base)) == {"regions", "call"}
    assert check(now, old).exit_code == ExitCode.NOT_COMPARABLE
    assert np.isfinite(base.values("reference_gap")).all(), "it is read all the same"


def test_many_differences_are_counted_and_settings_of_what_differs_go_without_saying() -> None:
    unlike = {"scheduler": ("A", "B"), "scheduler.shift": (1.0, 3.0), "scheduler_x": (1, 2)}
    assert in_words(unlike) == "scheduler ('A', was 'B'); scheduler_x (1, was 2)"
    assert in_words({"scheduler.shift": (3.0, 1.0)}) == "scheduler.shift (3.0, was 1.0)"
    assert in_words({f"n{i:02}": (i, 0) for i in range(20)}).endswith("n07 (7, was 0); and 12 more")
