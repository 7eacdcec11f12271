"""A pipeline and pairs are enough: the editing demo's model, without loss, masks or any other setting."""

from __future__ import annotations

import logging

from editing_run import watched
from test_callback import assert_same

from i2am_debug.figures.values import Undefined


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
