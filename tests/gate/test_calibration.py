"""Margins from what healthy models do by themselves: three times the largest fall, against plain loops."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_runs import COPYING, evaluation

from i2am_debug.errors import InvalidPair, NotComparable
from i2am_debug.figures.margin import Margin
from i2am_debug.figures.record import Evaluation
from i2am_debug.figures.registry import all_figures
from i2am_debug.figures.values import Undefined
from i2am_debug.gate.calibration import margins_from_repeats, margins_from_runs

DEFAULT_MARGINS = {f.tag: Margin.parse(f.margin) for f in all_figures() if f.margin is not None}
NAN = Undefined("not a finite number")
LEVELS = st.floats(0.02, 1.0).map(lambda x: round(x, 3))
RELATIVE = {figure for figure, margin in DEFAULT_MARGINS.items() if margin.relative}


def run_of(levels: Sequence[Any], figure: str = "imacs_g") -> list[Evaluation]:
    """Evaluations of two pairs whose mean goes so; `None`: undefined."""
    pair = [(NAN, NAN) if level is None else (level - 0.01, level + 0.01) for level in levels]
    return [evaluation(10 * i, {figure: values}, count=2) for i, values in enumerate(pair)]


def from_runs(*runs: list[Evaluation]) -> dict:
    return margins_from_runs(runs, [run[0] for run in runs])


def largest_fall(means: Sequence[float], *, rising: bool = False, relative: bool = False) -> float:
    """Of each one below the first, and below the best three in a row before it. Slow and obvious."""
    sign = -1 if rising else 1
    worst = 0.0
    for i in range(1, len(means)):
        levels = [means[0]]
        windows = [sum(means[start : start + 3]) / 3 for start in range(i - 2)]
        if windows:
            levels.append(min(windows) if rising else max(windows))
        for level in levels:
            fall = sign * (level - means[i])
            worst = max(worst, fall / abs(level) if relative else fall)
    return worst


def two_digits(value: float) -> float:
    return float(f"{value:.2g}")


# -- runs -------------------------------------------------------------------------------------------------------------


@given(st.lists(LEVELS, min_size=6, max_size=14))
@settings(max_examples=80, deadline=None)
def test_a_margin_is_three_times_the_largest_fall_of_the_run(levels: list[float]) -> None:
    found = from_runs(run_of(levels))["imacs_g"]
    expected = largest_fall(levels)
    assert found.largest == pytest.approx(expected, abs=1e-9)
    assert not found.margin.relative
    assert found.margin.value == pytest.approx(max(0.01, 3 * expected), rel=0.1)  # rounded up to two digits
    assert found.count == len(levels) - 1


@pytest.mark.parametrize("figure", sorted(RELATIVE))
@given(levels=st.lists(LEVELS, min_size=6, max_size=10))
@settings(max_examples=25, deadline=None)
def test_a_relative_margin_is_a_share_of_what_it_fell_from(figure: str, levels: list[float]) -> None:
    expected = largest_fall(levels, rising=figure == "loss", relative=True)
    if figure != "loss" and 3 * expected >= 1:
        with pytest.raises(ValueError, match=f"{figure} fell by .* that is no healthy run"):
            from_runs(run_of(levels, figure))
        return
    found = from_runs(run_of(levels, figure))[figure]
    assert found.margin.relative
    assert found.largest == pytest.approx(expected, abs=1e-9)
    assert found.margin.value == pytest.approx(max(0.01, 3 * expected), rel=0.1)  # rounded up to two digits


def test_a_margin_has_two_digits() -> None:
    levels = [0.5, 0.5, 0.5, 0.4444, 0.5, 0.5]
    assert from_runs(run_of(levels))["imacs_g"].margin == Margin(value=two_digits(3 * 0.0556))


def test_the_best_single_evaluation_is_luck_and_not_fallen_from() -> None:
    levels = [0.3, 0.3, 0.9, 0.3, 0.3, 0.3]
    assert from_runs(run_of(levels))["imacs_g"].largest == pytest.approx(0.2)  # from (0.3 + 0.3 + 0.9) / 3


def test_a_later_best_is_not_fallen_from_before_it_came() -> None:
    levels = [0.1, 0.1, 0.1, 0.9, 0.9, 0.9]
    assert from_runs(run_of(levels))["imacs_g"].largest == 0


def test_falls_of_several_runs_are_taken_together_but_not_from_each_other() -> None:
    calm, shaky = [0.9] * 4, [0.3, 0.2, 0.3, 0.3]
    found = from_runs(run_of(calm), run_of(shaky))["imacs_g"]
    assert found.largest == pytest.approx(0.1) and found.count == 6


def test_a_rising_figure_has_the_smallest_margin_and_never_none() -> None:
    found = from_runs(run_of([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))
    assert found["imacs_g"].margin == Margin(value=0.01)
    same = from_runs(run_of([0.1] * 6, "reference_gap"))
    assert same["reference_gap"].margin == Margin(value=0.01, relative=True)


def test_the_copying_layers_figure_is_of_the_first_evaluations_copying_layer() -> None:
    run = run_of([0.4, 0.4, 0.4, 0.4, 0.4, 0.2], COPYING)
    found = from_runs(run)["copying_layer/imacs_r_hole"]
    assert found.largest == pytest.approx(0.2)


def test_a_figure_that_no_run_has_is_left_out() -> None:
    found = from_runs(run_of([0.1] * 6))
    assert "reference_mass" not in found and "branch_share" not in found
    assert "copying_layer/imacs_r_hole" in found


def test_without_a_copying_layer_its_figure_is_left_out() -> None:
    run = [evaluation(i, copying_layer=NAN, count=2) for i in range(6)]
    assert "copying_layer/imacs_r_hole" not in from_runs(run)


def test_evaluations_without_a_value_are_passed_over() -> None:
    found = from_runs(run_of([0.5, 0.5, None, 0.5, None, 0.4, 0.5, 0.5]))["imacs_g"]
    assert found.largest == pytest.approx(0.1) and found.count == 5
    assert math.isfinite(found.margin.value)


def test_a_margin_from_next_to_nothing_is_not_given() -> None:
    # Three digits of a single fall: "with fewer the largest one says little" holds for each figure.
    assert "imacs_g" not in from_runs(run_of([0.5, 0.4, None, None, None, None, None]))


@pytest.mark.parametrize("counts", [(1,), (5,), (2, 2), (1, 1, 1)])
def test_too_few_evaluations_are_refused(counts: tuple[int, ...]) -> None:
    after = sum(counts) - len(counts)
    with pytest.raises(
        ValueError, match=f"^{after} evaluations after the first are too few to calibrate with; at least 5"
    ):
        from_runs(*(run_of([0.5] * count) for count in counts))


def test_five_evaluations_after_the_first_ones_are_enough() -> None:
    assert from_runs(run_of([0.5] * 4), run_of([0.5] * 3))["imacs_g"].count == 5


# -- repeats ----------------------------------------------------------------------------------------------------------


@given(st.lists(LEVELS, min_size=5, max_size=9))
@settings(max_examples=40, deadline=None)
def test_repeats_fall_between_any_two_of_them(levels: list[float]) -> None:
    found = margins_from_repeats(run_of(levels))["imacs_g"]
    falls = [a - b for i, a in enumerate(levels) for j, b in enumerate(levels) if i != j]
    assert found.largest == pytest.approx(max(0.0, *falls), abs=1e-9)
    assert found.count == len(levels) * (len(levels) - 1)
    assert found.margin.value == pytest.approx(max(0.01, 3 * max(falls)), rel=0.1)  # rounded up to two digits


def test_repeats_of_a_loss_fall_upwards() -> None:
    found = margins_from_repeats(run_of([0.1, 0.1, 0.1, 0.1, 0.15], "loss"))["loss"]
    assert found.largest == pytest.approx(0.5)


def test_too_few_repeats_are_refused() -> None:
    with pytest.raises(ValueError, match="^4 repeated evaluations are too few to calibrate with; at least 5"):
        margins_from_repeats(run_of([0.5] * 4))


def test_repeats_without_a_value_leave_their_figure_out() -> None:
    found = margins_from_repeats(run_of([None] * 5))
    assert "imacs_g" not in found and "imacs_r" in found


# -- what is stored ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("figure", sorted(DEFAULT_MARGINS))
def test_a_calibrated_margin_survives_its_stored_form(figure: str) -> None:
    tag = COPYING if figure.startswith("copying_layer/") else figure
    margin = from_runs(run_of([0.5, 0.5, 0.4321, 0.5, 0.5, 0.5], tag))[figure].margin
    again = Margin.parse(json.loads(json.dumps(margin.to_json())))
    assert again.relative == margin.relative and again.value == pytest.approx(margin.value)


# -- a pipeline -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline_folder(tiny_pipeline: Any, tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pairs_folder(tmp_path_factory: Any) -> Path:
    from PIL import Image

    from i2am_debug.demo.inpainting.pairs import validation_pairs

    folder = tmp_path_factory.mktemp("pairs")
    rows = []
    for i, pair in enumerate(validation_pairs(2, seed=3)):
        pair.target.save(folder / f"target_{i}.png")
        pair.reference.save(folder / f"reference_{i}.png")
        pair.mask_image.save(folder / f"mask_{i}.png")
        Image.fromarray(np.uint8(pair.reference_mask) * 255).save(folder / f"object_{i}.png")
        rows.append(
            {
                "file_name": f"target_{i}.png",
                "reference_file_name": f"reference_{i}.png",
                "mask_file_name": f"mask_{i}.png",
                "reference_mask_file_name": f"object_{i}.png",
            }
        )
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_a_pipeline_is_evaluated_with_other_noise_each_time(pipeline_folder: Path, pairs_folder: Path) -> None:
    from i2am_debug.gate.repeated_evaluation import evaluate_repeatedly

    found = evaluate_repeatedly(pipeline_folder, pairs_folder, repeats=5, steps=2)
    assert [one.fingerprint["seed"] for one in found] == [0, 1, 2, 3, 4]
    means = [one.mean("imacs_g") for one in found]
    assert len(set(means)) == 5
    margins = margins_from_repeats(found)
    falls = [a - b for a in means for b in means]
    assert margins["imacs_g"].largest == pytest.approx(max(falls))
    again = evaluate_repeatedly(
        pipeline_folder, pairs_folder, repeats=1, steps=2, baseline=found[3]
    )  # only the seed differs
    assert again[0].figures == found[0].figures
    with pytest.raises(NotComparable, match="num_inference_steps: 3 here, 2 there"):
        evaluate_repeatedly(pipeline_folder, pairs_folder, repeats=1, steps=3, baseline=found[0])


def test_a_folder_that_is_no_pipeline_or_no_pairs_is_refused(
    pipeline_folder: Path, pairs_folder: Path, tmp_path: Path
) -> None:
    from i2am_debug.gate.repeated_evaluation import evaluate_repeatedly

    with pytest.raises(ValueError, match="is no pipeline folder: it has no model_index.json"):
        evaluate_repeatedly(tmp_path, pairs_folder, repeats=5)
    with pytest.raises(InvalidPair, match="metadata.jsonl"):
        evaluate_repeatedly(pipeline_folder, tmp_path, repeats=5)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_model_index_is_named(tmp_path: Path, pairs_folder: Path, text: str) -> None:
    from i2am_debug.evaluation.load_pipeline import load_pipeline

    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(ValueError, match="model_index.json"):
        load_pipeline(tmp_path)
