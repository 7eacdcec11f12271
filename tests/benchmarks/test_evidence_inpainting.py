"""The debugging story in short; that a figure which goes with quality is told from one that goes with the step alone; and that
intervals take trainings whole."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from benchmarks.evidence import inpainting, over_trainings
from benchmarks.evidence.from_scratch import DESIGNS, READ_OFF, Checkpoint, Training, seen
from benchmarks.evidence.inpainting import NO_POSITIONS, ONE_TOKEN, REFINED
from benchmarks.evidence.picture_quality import QUALITIES, sampled_quality
from benchmarks.evidence.sizes import SHORT
from i2am_debug.demo.inpainting.pairs import validation_pairs
from i2am_debug.demo.inpainting.pretraining import RECIPE
from i2am_debug.demo.inpainting.training import hole_psnr
from i2am_debug.demo.pretrain import train
from i2am_debug.demo.recipe import Modules
from i2am_debug.figures.values import Undefined

PLANTED = replace(SHORT, resamples=120, trained_seeds=(0, 1, 2, 3, 4), trained_steps=8, checkpoints=4)
ONE = Undefined("one reference token")


def test_in_short(tmp_path: Path) -> None:
    section = inpainting.measure(SHORT, tmp_path)
    assert len(list((tmp_path / "from_scratch").rglob("*.jsonl"))) == len(DESIGNS) == 3
    ends = section.values["ends"]
    assert all(ends[design]["psnr_hole"][0] > 5 for design in DESIGNS)
    assert ends[ONE_TOKEN]["imacs_r"] == ends[ONE_TOKEN]["copying_layer"] == {"undefined": "one reference token"}
    assert len(ends[ONE_TOKEN]["imacs_g"]) == len(ends[REFINED]["imacs_r_authors"]) == 3
    for name in (*inpainting.DESIGNS.values(), *inpainting.FIGURES.values(), *QUALITIES.values()):
        assert name in section.markdown()
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.jsonl")}
    assert inpainting.measure(SHORT, tmp_path).markdown() == section.markdown()
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.jsonl")}


def planted(folder: Path) -> None:
    """The copying layer's IMACS is quality itself, attention information its opposite, the gap goes with the step alone."""
    for design in DESIGNS:
        for seed in PLANTED.trained_seeds:
            training = Training(design=design, seed=seed, sizes=PLANTED)
            draws = np.random.default_rng(10 * seed + len(design))
            lines = []
            for at, step in enumerate(training.looked_at):
                quality = 10.0 + at + 0.3 * draws.normal() + 2 * (design == REFINED)
                figures = dict.fromkeys(READ_OFF, 0.0)
                figures |= {"imacs_g_authors": 0.0, "imacs_r_authors": 0.0, "copying_layer": quality, "loss": -quality}
                figures |= {"attention_information": -quality, "reference_gap": float(step)}
                if design == ONE_TOKEN:
                    figures |= dict.fromkeys(("copying_layer", "imacs_r", "attention_information"), ONE)
                one = Checkpoint(
                    global_step=step, figures=figures, quality=dict.fromkeys(QUALITIES, quality), layer=ONE
                )
                lines.append(json.dumps(one.to_json()) + "\n")
            training.file(folder).parent.mkdir(parents=True, exist_ok=True)
            training.file(folder).write_text("".join(lines))


def test_a_figure_that_goes_with_quality_is_told_from_one_that_goes_with_the_step(tmp_path: Path) -> None:
    planted(tmp_path / "from_scratch")
    section = inpainting.measure(PLANTED, tmp_path)
    rho = section.values["rank_correlation"]
    for way in inpainting.WAYS:
        assert rho[REFINED]["copying_layer"][way] == pytest.approx([1, 1, 1])
        assert rho[NO_POSITIONS]["loss"][way] == pytest.approx([1, 1, 1])
        assert rho[NO_POSITIONS]["attention_information"][way] == pytest.approx([-1, -1, -1])
        assert rho[ONE_TOKEN]["copying_layer"][way] == {"undefined": "one reference token"}
    assert rho[REFINED]["reference_gap"]["within"][0] > 0.9 and rho[REFINED]["reference_gap"]["all"][0] > 0.9
    assert rho[REFINED]["reference_gap"]["equal"] == {"undefined": "the same everywhere"}
    assert section.values["both_ends"]["copying_layer"] == pytest.approx([1, 1, 1])
    assert section.values["chance"]["copying_layer"] == pytest.approx(1 / 120)
    assert section.values["chance"]["attention_information"] == 1
    low = section.values["refined_minus"][NO_POSITIONS]["psnr_hole"][1]
    assert 1 < low < 2.2
    assert "undefined: one reference token" in section.markdown()
    said = section.said.split("**The paper's claim.** ")[1]
    assert said.startswith(
        "At equal steps a correlation is left of the copying layer's IMACS_r. Up with training, as is "
    )
    assert "gets better: attention information. What knows" in said
    assert "in both designs of many tokens the copying layer's IMACS_r and −loss; in one of them none;" in said


def test_correlations_are_scipys_and_their_intervals_take_trainings_whole() -> None:
    figure, quality = np.random.default_rng(0).normal(size=(2, 5, 7))
    assert over_trainings.of_all(figure, quality) == pytest.approx(spearmanr(figure.ravel(), quality.ravel()).statistic)
    each = [spearmanr(f, q).statistic for f, q in zip(figure, quality, strict=True)]
    assert over_trainings.within_trainings(figure, quality) == pytest.approx(np.mean(each))
    last = spearmanr(figure[:, -1], quality[:, -1]).statistic
    assert over_trainings.at_the_end(figure, quality) == pytest.approx(last)
    assert over_trainings.at_equal_steps(figure[:, -1:], quality[:, -1:]) == pytest.approx(last)
    grows = np.arange(7) * 100.0
    assert over_trainings.at_equal_steps(figure + grows, quality + grows) == pytest.approx(
        over_trainings.at_equal_steps(figure, quality)
    )
    alike = np.tile(figure[0], (5, 1)), np.tile(quality[0], (5, 1))  # five times the same training is one
    value, low, high = over_trainings.correlation(over_trainings.of_all, *alike, resamples=50)
    assert low == pytest.approx(value) == pytest.approx(high)
    apart = over_trainings.correlation(over_trainings.of_all, figure, quality, resamples=200)
    assert apart[1] < apart[0] - 0.05 and apart[2] > apart[0] + 0.05


def test_what_chance_gives_is_of_all_orders_of_the_trainings() -> None:
    figure, quality = np.random.default_rng(1).normal(size=(2, 4, 3))
    way = over_trainings.of_all
    orders = [way(figure[list(order)], quality) for order in permutations(range(4))]
    own = way(figure, quality)
    expected = sum(rho >= own - 1e-12 for rho in orders) / 24
    assert 0 < expected < 1
    assert over_trainings.share_by_chance(way, figure, quality, resamples=100) == pytest.approx(expected)
    assert isinstance(over_trainings.share_by_chance(way, figure[:2], quality[:2], resamples=100), Undefined)
    assert isinstance(over_trainings.share_by_chance(way, 0 * figure, quality, resamples=100), Undefined)


def test_looking_on_the_way_changes_no_training(tiny_pipeline) -> None:
    plain = train(RECIPE, 2, seed=0, progress=False)
    modes = []

    def look(step: int, modules: Modules) -> None:
        seen(step, modules, 2)
        modes.extend(module.training for module in modules.values())

    watched = train(RECIPE, 2, seed=0, progress=False, after_step=look)
    assert modes == 4 * [True]
    for name, module in plain.items():
        for key, weight in module.state_dict().items():
            assert torch.equal(weight, watched[name].state_dict()[key]), (name, key)
    pairs = validation_pairs(4, seed=3)
    found = sampled_quality(tiny_pipeline, pairs)
    assert found["psnr_hole"] == pytest.approx(hole_psnr(tiny_pipeline, pairs), abs=1e-3)
    assert 0.3 < found["ssim_hole"] < found["ssim"] < 1 and found["psnr"] > found["psnr_hole"]
