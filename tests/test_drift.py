"""When a fall of the figures is an alert, and what the alert says."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from i2am_debug.drift import Alert, Drop, Margins, find_drops
from i2am_debug.record import Evaluation, Figure, Undefined

COPYING = "layer/up/imacs_r_hole"
NONE = Undefined("no reference mask")
HIGH = (0.75, 0.75, 0.75, 0.75)


def evaluation(figures: dict[str, Any], *, step: int = 0, copying: str | Undefined = "up") -> Evaluation:
    given: dict[str, tuple[Figure, ...]] = {
        tag: tuple(v if isinstance(v, Undefined) else float(v) for v in values) for tag, values in figures.items()
    }
    count = max(map(len, given.values()))
    return Evaluation(
        global_step=step,
        pairs=tuple(f"pair {i}" for i in range(count)),
        figures=given,
        errors={},
        layers=("down", "up"),
        copying_layer=copying,
        reference_lines={},
        fingerprint={},
    )


def drops(before: dict[str, Any], after: dict[str, Any], **margins: float) -> tuple[Drop, ...]:
    return find_drops(evaluation(after, step=500), evaluation(before), Margins(**margins))


def test_a_drop_is_found_with_its_figures() -> None:
    (drop,) = drops({COPYING: HIGH}, {COPYING: (0.5, 0.25, 0.25, 0.5)})
    assert drop.figure == COPYING
    assert (drop.baseline, drop.now, drop.drop, drop.margin) == (0.75, 0.375, 0.375, 0.15)
    assert drop.standard_error == pytest.approx(np.std([0.25, 0.5, 0.5, 0.25], ddof=1) / 2, rel=1e-12)


def test_differences_between_pairs_do_not_hide_a_drop_of_all_of_them() -> None:
    before = np.array([0.9, -1.2, 0.1, 0.7, -0.6, 0.3, -2.0, 0.8])
    after = before - 0.2 + np.array([0.01, -0.01] * 4)
    unpaired_error = math.sqrt((before.var(ddof=1) + after.var(ddof=1)) / len(before))
    assert 2 * unpaired_error > 0.5  # compared unpaired, the drop would be invisible
    (drop,) = drops({COPYING: before}, {COPYING: after})
    assert drop.drop == pytest.approx(0.2)
    assert drop.standard_error < 0.01


def test_pairs_are_compared_one_by_one_not_sorted() -> None:
    before = np.array([0.9, -1.2, 0.1, 0.7])
    shuffled = (before - 0.3)[[1, 0, 3, 2]]
    assert drops({COPYING: before}, {COPYING: before - 0.3})
    assert drops({COPYING: before}, {COPYING: shuffled}) == ()


def test_a_mean_fall_within_two_standard_errors_is_not_a_drop() -> None:
    one_pair_only, all_pairs = (-0.25, 0.75, 0.75, 0.75), (0.45, 0.55, 0.5, 0.5)
    assert np.mean(one_pair_only) == np.mean(all_pairs) == 0.5  # both fall by 0.25, beyond the margin of 0.15
    assert drops({COPYING: HIGH}, {COPYING: one_pair_only}) == ()
    assert drops({COPYING: HIGH}, {COPYING: all_pairs})


def test_the_factor_of_the_standard_error_is_two() -> None:
    fall = np.array([1.0, 3.0])  # mean 2, standard error 1: exactly two of them
    assert drops({COPYING: (5, 5)}, {COPYING: 5 - fall}) == ()
    assert drops({COPYING: (5, 5)}, {COPYING: 5 - fall - 0.01})


def test_the_margin_of_imacs_is_absolute() -> None:
    after = (0.5, 0.5, 0.5, 0.5)  # a fall of exactly 0.25, a third of the level
    assert drops({COPYING: HIGH}, {COPYING: after}, imacs_r_hole=0.25) == ()
    assert drops({COPYING: HIGH}, {COPYING: after}, imacs_r_hole=0.2499)[0].margin == 0.2499
    assert drops({COPYING: (-1, -1)}, {COPYING: (-1.3, -1.3)})  # also below 0


@pytest.mark.parametrize("tag", ["attention_information", "reference_gap"])
@pytest.mark.parametrize("size", [1.0, 1024.0, 2.0**-20])
def test_the_other_margins_are_shares_of_the_baseline(tag: str, size: float) -> None:
    before, after = np.full(4, 2 * size), np.full(4, 1.5 * size)  # falls by a quarter
    assert drops({tag: before}, {tag: after}, **{tag: 0.25}) == ()
    (drop,) = drops({tag: before}, {tag: after}, **{tag: 0.125})
    assert (drop.figure, drop.margin) == (tag, 0.25 * size)


def test_the_default_margins() -> None:
    assert Margins().to_dict() == {"imacs_r_hole": 0.15, "attention_information": 0.25, "reference_gap": 0.5}
    before = {COPYING: HIGH, "attention_information": (2, 2, 2, 2), "reference_gap": (0.4,) * 4}
    assert (
        drops(before, {COPYING: (0.61,) * 4, "attention_information": (1.51,) * 4, "reference_gap": (0.21,) * 4}) == ()
    )
    fallen = drops(before, {COPYING: (0.59,) * 4, "attention_information": (1.49,) * 4, "reference_gap": (0.19,) * 4})
    assert [d.figure for d in fallen] == [COPYING, "attention_information", "reference_gap"]


@pytest.mark.parametrize("level", [0.0, -0.2])
def test_a_share_of_nothing_is_not_judged(level: float) -> None:
    assert drops({"reference_gap": (level,) * 4}, {"reference_gap": (-5.0, -5.1, -5.0, -5.1)}) == ()


def test_undefined_on_either_side_leaves_the_pair_out() -> None:
    before = {COPYING: (NONE, 100.0, 0.75, 0.5, 0.5)}
    after = {COPYING: (-100.0, NONE, 0.25, 0.0, 0.0)}
    (drop,) = drops(before, after)
    assert drop.drop == 0.5
    assert drop.baseline == pytest.approx(1.75 / 3) and drop.now == pytest.approx(0.25 / 3)
    assert drop.pairs == ("pair 2", "pair 3", "pair 4")


@pytest.mark.parametrize(
    ("before", "after"),
    [((0.9,), (0.1,)), ((0.9, NONE, 0.9), (0.1, 0.1, NONE)), ((NONE, NONE), (0.1, 0.1))],
)
def test_fewer_than_two_pairs_are_not_judged(before: tuple, after: tuple) -> None:
    assert drops({COPYING: before}, {COPYING: after}) == ()


def test_two_pairs_are_judged() -> None:
    assert len(drops({COPYING: (0.9, 0.8)}, {COPYING: (0.1, 0.0)})) == 1


def test_the_copying_layer_is_the_baselines() -> None:
    other = "layer/down/imacs_r_hole"
    before = evaluation({COPYING: HIGH, other: HIGH}, copying="up")
    low = (0.1, 0.2, 0.1, 0.2)
    fallen_up = evaluation({COPYING: low, other: HIGH}, copying="down")
    fallen_down = evaluation({COPYING: HIGH, other: low}, copying="down")
    assert [d.figure for d in find_drops(fallen_up, before, Margins())] == [COPYING]
    assert find_drops(fallen_down, before, Margins()) == ()


def test_without_a_copying_layer_the_other_figures_are_judged() -> None:
    before = evaluation({"reference_gap": HIGH, "imacs_r": HIGH}, copying=Undefined("one reference token"))
    after = evaluation({"reference_gap": (0.1, 0.2, 0.1, 0.2), "imacs_r": (-2.0,) * 4}, copying="up")
    assert [d.figure for d in find_drops(after, before, Margins())] == ["reference_gap"]


def test_a_figure_that_one_side_has_not_recorded_is_not_judged() -> None:
    assert drops({COPYING: HIGH}, {"reference_gap": (0.1,) * 4}) == ()


def test_the_worst_three_pairs_are_named_worst_first() -> None:
    before = np.array([0.1, 2.0, 0.9, 1.5, 0.3])
    (drop,) = drops({COPYING: before}, {COPYING: before - [0.3, 0.5, 0.4, 0.45, 0.35]})
    assert drop.pairs == ("pair 1", "pair 3", "pair 2")


def test_nothing_when_figures_rise_or_stay() -> None:
    before = {COPYING: HIGH, "attention_information": HIGH, "reference_gap": HIGH}
    assert drops(before, before) == ()
    assert drops(before, {tag: np.add(v, [1.0, 1.1, 0.9, 1.0]) for tag, v in before.items()}) == ()


@pytest.mark.parametrize("name", ["imacs_r_hole", "attention_information", "reference_gap"])
@pytest.mark.parametrize("value", [0, 0.0, -0.1, math.nan])
def test_margins_below_or_at_zero_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError) as caught:
        Margins(**{name: value})
    assert str(caught.value) == f"Margins({name}={value!r}): expected a number above 0"


def alert() -> Alert:
    before = {COPYING: HIGH, "reference_gap": (0.4,) * 4}
    after = {COPYING: (0.5, 0.1, 0.2, 0.3), "reference_gap": (0.1, 0.1, 0.1, 0.06)}
    return Alert(global_step=500, baseline_step=20, drops=drops(before, after))


def test_an_alert_says_what_fell_since_when_for_whom_and_why() -> None:
    text = alert().text
    assert "at step 500 than at step 20" in text
    assert f"{COPYING} fell from 0.750 to 0.275 (by 0.475 ± 0.085, allowed 0.150)" in text
    assert "reference_gap fell from 0.400 to 0.090 (by 0.310 ± 0.010, allowed 0.200)" in text
    assert "Worst pairs: pair 1, pair 2, pair 3, pair 0. " in text  # each once
    for cause in ("shuffled", "zeroed", "normalisation", "reference dropout", "learning rate", "encoder", "frozen"):
        assert cause in text.partition("Usual causes: ")[2]


def test_an_alert_survives_json() -> None:
    row = json.loads(json.dumps(alert().to_json()))
    assert Alert.from_json(row) == alert()
    assert row["text"] == alert().text
