"""The diagnosis: changes by hand, distances against a plain search, and what it says of what it has never seen."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from stored_runs import column, evaluation

from i2am_debug.alerts.causes import CAUSES, HEADLINES, STALE, UNKNOWN
from i2am_debug.alerts.changes import changes_of, in_words
from i2am_debug.alerts.diagnosis import (
    Diagnosis,
    Signatures,
    diagnose,
    likelihoods_of,
    measured_signatures,
    share_of,
)
from i2am_debug.figures.values import Undefined

DOCS = Path(__file__).parents[2] / "docs" / "what-broke.md"
MISSING = (Undefined("not tried"),) * 10


def test_changes_are_those_of_the_means_by_hand():
    """Four pairs are probed: their own loss 0.02 → 0.03, with another pair's reference 0.08 → 0.06: half of the gap is left."""
    probed = {
        "probe/unchanged": (*column(0.02)[:4], *MISSING[:6]),
        "probe/mirrored": (*column(0.05)[:4], *MISSING[:6]),
        "probe/hole_moved": (*column(0.1)[:4], *MISSING[:6]),
        "probe/faded": (*column(0.0225)[:4], *MISSING[:6]),  # harms too little to tell
    }
    before = evaluation(0, {**probed, "loss_inside": column(0.1), "blank_gap": column(0.04)})
    now = evaluation(
        8,
        {
            "loss": column(0.03),
            "reference_gap": column(0.03),
            "blank_gap": column(0.03),
            "probe/unchanged": (*column(0.03)[:4], *MISSING[:6]),
            "probe/mirrored": (*column(0.036)[:4], *MISSING[:6]),
            "probe/hole_moved": (*column(0.11)[:4], *MISSING[:6]),
            "probe/faded": (*column(0.1)[:4], *MISSING[:6]),
            "loss_inside": column(0.2),
            "attention_information": column(1.0),
            "drift/js_g2r": column(0.1),
            "imacs_g_centred": column(0.3),
        },
    )
    assert changes_of(before, now) == pytest.approx(
        {
            "loss": math.log(1.5),
            "loss, wrong reference": math.log(0.06 / 0.08),
            "gap that is left": 0.5,
            "harm of a blank reference, beside the gap": 0.75 - 0.5,
            "harm of the reference mirrored, beside the gap": 0.2 - 0.5,
            "harm of the hole moved by a quarter of the width, beside the gap": 1.0 - 0.5,
            "loss inside": math.log(2),
            "information": math.log(0.5),
            "G2R moved": 0.1,
            "IMACS_g": -0.1,
        },
        abs=1e-6,
    )


def test_a_change_is_of_the_pairs_that_have_both_values_and_is_cut_off():
    before = evaluation(0, {"loss": (Undefined("x"), *column(0.02)[1:])})
    now = evaluation(8, {"loss": (9e9, *(1e6 * v for v in column(0.02)[1:]))})
    assert changes_of(before, now)["loss"] == 3.0
    nothing_left = evaluation(8, {"loss": MISSING, "reference_gap": column(-1.0)})
    assert not {"loss", "loss, wrong reference"} & set(changes_of(before, nothing_left))


RNG = np.random.default_rng(4)
NAMES = tuple("abcdefgh")
_A = RNG.standard_normal((8, 8))
TOY = Signatures(
    kinds=("mask", "target", "target", "colours"),
    changes=NAMES,
    means_SF=RNG.standard_normal((4, 8)),
    covariance_FF=0.01 * (_A @ _A.T + np.eye(8)),
    furthest=2.0,
    sharpness=3.0,
)


def toy(values) -> dict[str, float]:
    return dict(zip(NAMES, map(float, values), strict=True))


@pytest.mark.parametrize("share", [0.25, 0.6, 1.0, 1.5])
@pytest.mark.parametrize("number", range(4))
def test_a_fraction_of_a_signature_is_told_by_its_kind(number, share):
    found = likelihoods_of(toy(share * TOY.means_SF[number]), TOY)
    assert found[0][0] == TOY.kinds[number] and found[0][1] > 0.6
    assert sum(value for _, value in found) == pytest.approx(1)
    assert [value for _, value in found] == sorted((value for _, value in found), reverse=True)
    assert {name for name, _ in found} == {"mask", "target", "colours", UNKNOWN}


def test_likelihoods_are_those_of_a_plain_search():
    seen = 0.7 * TOY.means_SF[1] + 0.1 * RNG.standard_normal(8)

    def distance(mean: np.ndarray) -> float:
        share = 1.0
        for _ in range(3):
            spread = TOY.covariance_FF + np.diag((0.3 * share * mean) ** 2)

            def at(share: float, spread: np.ndarray = spread) -> float:
                apart = seen - share * mean
                return float(apart @ np.linalg.solve(spread, apart))

            share = minimize_scalar(at, bounds=(0.15, 1.6), method="bounded", options={"xatol": 1e-9}).x
        return at(share) / 8

    logs = {"mask": distance(TOY.means_SF[0]), "colours": distance(TOY.means_SF[3]), UNKNOWN: TOY.furthest}
    logs["target"] = min(distance(TOY.means_SF[1]), distance(TOY.means_SF[2]))
    weights = {name: math.exp(-0.5 * 3.0 * (value - min(logs.values()))) for name, value in logs.items()}
    expected = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    assert dict(likelihoods_of(toy(seen), TOY)) == pytest.approx(expected, abs=1e-5)


def test_what_is_like_nothing_is_none_of_these():
    assert likelihoods_of(toy(10 * RNG.standard_normal(8)), TOY)[0][0] == UNKNOWN


def test_figures_that_a_model_lacks_are_left_out():
    without = replace(TOY, means_SF=np.where(np.arange(8) < 3, np.nan, TOY.means_SF))
    seen = toy(TOY.means_SF[3])
    expected = likelihoods_of({name: seen[name] for name in NAMES[3:]}, TOY)
    assert dict(likelihoods_of(seen, without)) == pytest.approx(dict(expected))
    assert likelihoods_of({name: seen[name] for name in NAMES[:3]}, TOY) is None, "three changes say nothing"
    assert diagnose(evaluation(0), evaluation(0, {t: MISSING for t in evaluation(0).figures}), TOY) is None


def test_a_share_of_nothing_is_within_its_limits():
    assert share_of(np.zeros(3), np.zeros(3), np.eye(3)) == 1.0
    assert share_of(np.zeros(3), np.ones(3), np.eye(3)) == 0.15
    assert share_of(9 * np.ones(3), np.ones(3), np.eye(3)) == 1.6


def test_those_of_the_package_are_of_every_kind_and_each_tells_its_own():
    shipped = measured_signatures()
    assert set(shipped.kinds) == set(CAUSES)
    np.linalg.cholesky(shipped.covariance_FF)
    for kind, mean in zip(shipped.kinds, shipped.means_SF, strict=True):
        seen = {name: float(v) for name, v in zip(shipped.changes, mean, strict=True) if np.isfinite(v)}
        assert likelihoods_of(seen, shipped)[0][0] == kind


def test_it_is_kept_and_told():
    made = Diagnosis(
        global_step=8, likelihoods=(("mask", 0.9), (UNKNOWN, 0.06), ("target", 0.04)), changes={"loss": 1.0}
    )
    assert Diagnosis.from_json(json.loads(json.dumps(made.to_json()))) == made
    assert made.kind == "mask" and made.cause == CAUSES["mask"]
    assert made.likely == (("mask", 0.9), (UNKNOWN, 0.06))
    told = {"loss": math.log(1.5), "IMACS_g": -0.1, "gap that is left": 0.39, "harm of the hole moved": -0.2}
    words = ["loss +50%", "IMACS_g -0.10", "gap that is left 39%", "harm of the hole moved -20%"]
    assert [in_words(name, value) for name, value in told.items()] == words
    for wrong in ({}, {"likelihoods": [], "changes": {}}, {"likelihoods": [["mask"]], "changes": {}}, None):
        with pytest.raises(ValueError, match="diagnosis"):
            Diagnosis.from_json(wrong)


def test_what_two_evaluations_say_is_what_both_speak_for():
    first = Diagnosis(global_step=8, likelihoods=(("mask", 0.5), ("target", 0.4), (UNKNOWN, 0.1)), changes={})
    then = Diagnosis(
        global_step=16, likelihoods=(("target", 0.6), ("mask", 0.3), (UNKNOWN, 0.1)), changes={"loss": 1.0}
    )
    both = then.after(first)
    assert both.kind == "target" and both.global_step == 16 and both.changes == {"loss": 1.0}
    assert dict(both.likelihoods) == pytest.approx({"target": 0.6, "mask": 0.375, UNKNOWN: 0.025})
    other = Diagnosis(global_step=8, likelihoods=(("prompt", 1.0),), changes={})
    assert then.after(other) == then


def test_a_group_is_spoken_of_where_it_is_likelier_than_all_else():
    kinds = (("mask", 0.45), ("target", 0.3), (UNKNOWN, 0.25))
    unclear = Diagnosis(global_step=8, likelihoods=kinds, changes={})
    assert unclear.cause is None and unclear.group == "not the reference"
    assert unclear.headline == HEADLINES["not the reference"]
    nothing = replace(unclear, likelihoods=(("mask", 0.4), ("colours", 0.35), (UNKNOWN, 0.25)))
    assert nothing.group is None and nothing.headline is None


def test_every_kind_has_its_page():
    headings = {line[3:] for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("## ")}
    assert {*CAUSES, STALE.name} <= headings
