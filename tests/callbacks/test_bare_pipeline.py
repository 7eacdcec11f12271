"""A pipeline and pairs are enough: the editing demo's model, without loss, masks or any other setting."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from editing_run import first_evaluation, watched  # loads torch, so that this process has one thread, as the others
from several_processes import forked
from test_callback import assert_same

from i2am_debug.figures.record import Evaluation
from i2am_debug.figures.values import Undefined

SCRIPT = Path(__file__).parents[1] / "editing_run.py"


def test_training_is_bit_identical_and_everything_is_measured(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="i2am_debug"):
        state, callback = watched(tmp_path / "watched")
    assert_same(state, watched(tmp_path / "alone", with_callback=False)[0])
    evaluations = callback.history()
    assert [one.global_step for one in evaluations] == [0, 2, 4]
    first = evaluations[0]
    assert first.fingerprint["way"] == "teacher_forcing" and first.fingerprint["family"] == "flux_kontext"
    assert all(words.startswith("kept: Otsu") for words in first.fingerprint["regions"])
    assert first.mean("reference_gap") >= 5 * first.mean("loss") > 0
    assert first.mean("blank_gap") > first.mean("loss")
    assert str(first.copying_layer).startswith("single_transformer_blocks")
    assert first.mean("kept_place") > 0.95 and 0 < first.mean("edited_mass") < 1
    for tag in ("imacs_g", "imacs_r", "attention_information", "reference_mass"):
        assert not isinstance(first.mean(tag), Undefined), tag
    (found,) = [r.getMessage() for r in caplog.records if "first look at 3 pairs" in r.getMessage()]
    assert "the pipeline's own call on the noised truth (teacher forcing), 4 noise times" in found
    assert "flux_kontext, 4 layers, 16 heads (all)" in found and "generated 8×8, reference 8×8" in found
    assert "kept: Otsu of 3 pairs" in found and "every 2 steps that is" in found
    assert "undefined, no decoupled cross-attention: branch share" in found and "JS distance" not in found


def test_two_processes_agree_with_one_and_take_equal_forwards(tmp_path):
    first_evaluation(tmp_path / "one", tmp_path / "one.json")
    forked(2, SCRIPT, tmp_path / "two", tmp_path / "two.json")
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert two["ways"] == ["teacher_forcing"] * 2
    assert (
        two["forwards"][0] == two["forwards"][1] > 0
    )  # 3 pairs on 2 processes; a blank reference of every second pair
    ours, theirs = (Evaluation.from_json(report["evaluations"][0]) for report in (one, two))
    assert ours.figures.keys() == theirs.figures.keys()
    for tag, values in ours.figures.items():
        for a, b in zip(values, theirs.figures[tag], strict=True):
            assert a == b if isinstance(a, Undefined) else a == pytest.approx(b, abs=1e-6), tag
