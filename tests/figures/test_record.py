"""What an evaluation keeps: undefined stays undefined, floats survive JSON, differences are named one by one, and how
sure a mean is."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2am_debug.figures.estimates import Estimate, estimates
from i2am_debug.figures.record import FORMAT, Evaluation, differences
from i2am_debug.figures.values import Figure, Undefined, as_figure

NO_MASK, CONSTANT = Undefined("no reference mask"), Undefined("a constant map")
FINGERPRINT = {
    "pairs": {"a": "1f", "b": "2e"},
    "seed": 0,
    "scheduler": None,
    "plan": {"seed": 0, "layers": ["*"], "inner": {"heads": 64}},
    "layers": ["down", "up"],
}
AWKWARD = (0.1, 1 / 3, -0.0, 5e-324, 1.7976931348623157e308, math.pi * 1e-9, -2.9999999999999996, 1e22)


def evaluation(figures: dict[str, tuple[Figure, ...]] | None = None, **changes: Any) -> Evaluation:
    figures = figures or {}
    count = max(map(len, figures.values()), default=2)
    given = {
        "global_step": 100,
        "pairs": tuple(f"pair {i}" for i in range(count)),
        "figures": figures,
        "errors": {},
        "layers": ("down", "up"),
        "copying_layer": "up",
        "reference_lines": {"imacs_r": {"constant": 0.0, "perfect": 0.9}},
        "fingerprint": FINGERPRINT,
    }
    return Evaluation(**{**given, **changes})


def through_json(value: Evaluation) -> Evaluation:
    return Evaluation.from_json(json.loads(json.dumps(value.to_json(), allow_nan=False)))


def test_mean_and_values_of_what_is_defined() -> None:
    seen = evaluation({"imacs_r": (0.5, NO_MASK, -0.25)})
    assert seen.mean("imacs_r") == 0.125  # over two pairs, not three
    np.testing.assert_array_equal(seen.values("imacs_r"), [0.5, math.nan, -0.25])
    assert seen.values("imacs_r").dtype == np.float64


def test_a_mean_over_nothing_joins_the_reasons() -> None:
    assert evaluation({"x": (NO_MASK, CONSTANT, NO_MASK)}).mean("x") == Undefined("a constant map; no reference mask")
    assert evaluation({"x": (NO_MASK, NO_MASK)}).mean("x") == NO_MASK
    assert evaluation({"x": ()}, pairs=()).mean("x") == Undefined("no pairs")


def test_reasons_are_named_once_and_in_order() -> None:
    seen = evaluation({"x": (NO_MASK, 0.5, CONSTANT, NO_MASK), "y": (0.1, 0.2, 0.3, 0.4)})
    assert seen.reasons("x") == ("a constant map", "no reference mask")
    assert seen.reasons("y") == ()


def test_an_unknown_tag_was_not_recorded() -> None:
    seen = evaluation({"imacs_r": (0.5, 0.5, 0.5)})
    assert seen.mean("imacs_q") == seen.estimate("imacs_q") == Undefined("not recorded")
    assert seen.reasons("imacs_q") == ("not recorded",)
    assert seen.values("imacs_q").shape == (3,)
    assert np.isnan(seen.values("imacs_q")).all()


def test_undefined_never_becomes_a_number() -> None:
    seen = through_json(
        evaluation({"x": (NO_MASK, CONSTANT)}, errors={"x": (NO_MASK, CONSTANT)}, copying_layer=NO_MASK)
    )
    assert seen.figures["x"] == seen.errors["x"] == (NO_MASK, CONSTANT)
    assert seen.copying_layer == NO_MASK
    assert isinstance(seen.mean("x"), Undefined)
    assert np.isnan(seen.values("x")).all()
    assert str(seen.figures["x"][0]) == "undefined: no reference mask"
    assert Undefined("") and Undefined("x") != 0


def test_zero_is_a_number() -> None:
    seen = through_json(evaluation({"x": (0.0, 0.0)}))
    assert seen.mean("x") == 0.0 and isinstance(seen.mean("x"), float)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_what_is_not_finite_is_undefined(value: float) -> None:
    assert as_figure(value) == Undefined("not a finite number")
    assert as_figure(value, "diverged") == Undefined("diverged")
    assert type(as_figure(np.float32(0.5))) is float


def test_json_brings_back_the_same_evaluation() -> None:
    seen = evaluation(
        {"imacs_r": (0.5, NO_MASK), "layer/up/imacs_r": (0.25, 1.0)},
        errors={"imacs_r": (0.01, CONSTANT)},
        heads={"up": {0: 1.0, 11: 3.5}, "down": {}},
        margins={"imacs_r": 1 / 3, "loss": "12.5%"},
        seconds=12.25,
    )
    back = through_json(seen)
    assert back == seen
    assert back.seconds == 12.25  # left out of ==
    assert back.heads == {"up": {0: 1.0, 11: 3.5}, "down": {}}
    assert back.margins == {"imacs_r": 1 / 3, "loss": "12.5%"} and back != replace(seen, margins={})
    assert through_json(replace(seen, heads=None)).heads is None
    assert seen.to_json()["format"] == FORMAT


def test_what_was_written_before_there_were_margins_is_read() -> None:
    row = evaluation({"x": (0.5,)}).to_json()
    del row["margins"]
    assert Evaluation.from_json(row) == evaluation({"x": (0.5,)})
    assert Evaluation.from_json(row).margins == {}


def test_json_keeps_every_bit_of_a_float() -> None:
    rng = np.random.default_rng(0)
    numbers = (*AWKWARD, *(rng.standard_normal(200) * 10.0 ** rng.integers(-30, 30, 200)).tolist())
    seen = through_json(
        evaluation({"x": numbers}, errors={"x": numbers}, reference_lines={"x": {str(v): v for v in numbers}})
    )
    expected = [v.hex() for v in numbers]
    assert [v.hex() for v in seen.figures["x"]] == expected
    assert [v.hex() for v in seen.errors["x"]] == expected
    assert [v.hex() for v in seen.reference_lines["x"].values()] == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seed": 1}, {"seed": (0, 1)}),
        ({"scheduler": "DDIMScheduler"}, {"scheduler": (None, "DDIMScheduler")}),
        ({"pairs": {"a": "1f", "b": "3d"}}, {"pairs.b": ("2e", "3d")}),
        ({"pairs": {"a": "1f"}}, {"pairs.b": ("2e", None)}),
        ({"plan": {"seed": 0, "layers": ["up*"], "inner": {"heads": 64}}}, {"plan.layers": (["*"], ["up*"])}),
        (
            {"plan": {"seed": 7, "layers": ["*"], "inner": {"heads": 8}}, "new": 1.5},
            {"new": (None, 1.5), "plan.inner.heads": (64, 8), "plan.seed": (0, 7)},
        ),
        ({"layers": ["up", "down"]}, {"layers": (["down", "up"], ["up", "down"])}),
    ],
)
def test_differences_names_what_differs_and_nothing_else(change: dict, expected: dict) -> None:
    ours, theirs = evaluation(), evaluation(fingerprint={**FINGERPRINT, **change})
    assert differences(ours, theirs) == expected
    assert differences(theirs, ours) == {name: (b, a) for name, (a, b) in expected.items()}


def test_nothing_differs_in_what_figures_do_not_depend_on() -> None:
    ours = evaluation({"x": (0.1, 0.2)}, fingerprint={**FINGERPRINT, "layers": ("down", "up")})
    theirs = through_json(evaluation({"x": (0.9, NO_MASK)}, global_step=700, copying_layer="down", seconds=9.0))
    assert differences(ours, theirs) == {}  # a tuple is a list once it was stored


# -- what is comparable ------------------------------------------------------------------------------------------------

ATOMS = st.sampled_from([None, True, False, 0, 1, 1.0, 1.5, -0.0, "", "1", "a", "ä"])
VALUES = ATOMS | st.lists(ATOMS, max_size=2) | st.tuples(ATOMS) | st.just([{"b": 1, "a": 2}])
FINGERPRINTS = st.recursive(
    st.dictionaries(st.sampled_from("ab"), VALUES, max_size=2),
    lambda inner: st.dictionaries(st.sampled_from(["a", "b", "a.b"]), VALUES | inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_evaluations_share_an_id_exactly_when_nothing_differs(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([FINGERPRINTS, st.fixed_dictionaries({"a": ATOMS})]))  # the latter are often alike
    a, b = data.draw(kind), data.draw(kind)
    ours, theirs = evaluation(fingerprint=a), evaluation(fingerprint=b)
    assert (ours.comparable_id == theirs.comparable_id) == (differences(ours, theirs) == {})


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ({"seed": 0, "way": "loss_fn"}, {"way": "loss_fn", "seed": 0}, True),
        ({"plan": {"x": 1, "y": 2}}, {"plan": {"y": 2, "x": 1}}, True),
        ({"layers": ("down", "up")}, {"layers": ["down", "up"]}, True),
        ({"layers": ["up", "down"]}, {"layers": ["down", "up"]}, False),
        ({"pairs": ["1f", "2e"]}, {"pairs": ["2e", "1f"]}, False),  # figures of pairs are compared one by one
        ({"scheduler": None}, {}, False),
        ({"steps": "5"}, {"steps": 5}, False),
        ({"penalty": 1}, {"penalty": 1.0}, True),
        ({"plan": {"heads": 8.0}}, {"plan": {"heads": 8}}, True),
    ],
)
def test_what_shares_an_id(a: dict[str, Any], b: dict[str, Any], same: bool) -> None:
    ours, theirs = evaluation(fingerprint=a), evaluation(fingerprint=b)
    assert (differences(ours, theirs) == {}) == same
    assert (ours.comparable_id == theirs.comparable_id) == same


def test_an_id_is_of_the_fingerprint_alone_and_survives_json() -> None:
    ours = evaluation({"x": (0.1, 0.2)}, fingerprint={**FINGERPRINT, "layers": ("down", "up")})
    theirs = evaluation({"x": (0.9, NO_MASK)}, global_step=7, margins={"x": 0.5}, copying_layer="down", seconds=9.0)
    assert ours.comparable_id == theirs.comparable_id == through_json(ours).comparable_id
    assert len(ours.comparable_id) == 12 and set(ours.comparable_id) <= set("0123456789abcdef")


# -- how sure a mean is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(mean=0.5, low=0.25, high=0.75, pairs=8), "0.500 [0.250, 0.750]"),
        (Estimate(mean=-0.5, low=-1.2344, high=0.0, pairs=8), "-0.500 [-1.234, 0.000]"),
        (
            Estimate(mean=0.012345, low=-0.000567, high=0.1, pairs=2),
            "0.0123 [-0.0006, 0.1000]",
        ),  # as many decimals as the mean
        (Estimate(mean=0.0, low=-0.01, high=0.02, pairs=8), "0.000 [-0.010, 0.020]"),
        (Estimate(mean=2.5e-7, low=1e-7, high=4e-7, pairs=8), "2.5e-07 [1e-07, 4e-07]"),
        (Estimate(mean=0.5, low=None, high=None, pairs=1), "0.500 (one pair)"),
        (Estimate(mean=0.5, low=0.25, high=0.75, pairs=8, sampling=0.0312), "0.500 [0.250, 0.750] ± 0.031"),
        (Estimate(mean=0.5, low=0.25, high=0.75, pairs=8, sampling=0.0), "0.500 [0.250, 0.750]"),
    ],
)
def test_an_estimate_in_words(estimate: Estimate, text: str) -> None:
    assert str(estimate) == text


def test_an_estimate_is_the_mean_of_what_is_there() -> None:
    found = estimates({"x": np.array([0.5, np.nan, -0.25, 1.0])})["x"]
    assert found.mean == pytest.approx(1.25 / 3, rel=1e-12)
    assert found.pairs == 3
    assert found.low is not None and found.high is not None and found.low < found.mean < found.high


@pytest.mark.parametrize("missing", [0, 4])
def test_the_interval_is_students_whatever_is_missing(missing: int) -> None:
    half = np.random.default_rng(5).gamma(2, size=10)
    values = np.concatenate([half, 4 - half])  # without skewness, which the interval minds
    found = estimates({"x": np.concatenate([values, np.full(missing, np.nan)])})["x"]
    reach = 2.093 * values.std(ddof=1) / math.sqrt(20)  # 19 degrees of freedom
    assert (found.low, found.high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=1e-3 * reach)


def test_the_interval_is_always_the_same() -> None:
    columns = {"x": np.random.default_rng(6).random(8)}
    assert estimates(columns) == estimates(columns)


def test_one_pair_has_no_interval_and_equal_pairs_a_narrow_one() -> None:
    found = estimates({"one": np.array([np.nan, 0.5, np.nan]), "equal": np.array([0.5, 0.5, np.nan])})
    assert found["one"] == Estimate(mean=0.5, low=None, high=None, pairs=1)
    assert found["equal"] == Estimate(mean=0.5, low=0.5, high=0.5, pairs=2)


def test_columns_without_a_value_are_left_out() -> None:
    nothing = np.full(3, np.nan)
    assert estimates({"x": nothing, "y": np.array([np.nan, 1.0, 2.0])}).keys() == {"y"}
    assert estimates({"x": nothing}) == estimates({"x": np.array([])}) == estimates({}) == {}


def test_a_column_does_not_depend_on_the_others() -> None:
    rng = np.random.default_rng(7)
    columns = {"a": rng.random(9), "b": np.where(rng.random(9) < 0.4, np.nan, rng.random(9)), "c": np.full(9, 0.5)}
    together = estimates(columns)
    assert list(together) == ["a", "b", "c"]
    for name, values in columns.items():
        alone = estimates({name: values})[name]
        assert (alone.mean, alone.pairs) == (together[name].mean, together[name].pairs)
        assert (alone.low, alone.high) == pytest.approx((together[name].low, together[name].high), rel=1e-9)


def test_an_estimate_is_of_plain_numbers() -> None:
    found = estimates({"x": np.random.default_rng(8).random(8).astype(np.float32)})["x"]
    assert [type(v) for v in (found.mean, found.low, found.high, found.pairs)] == [float, float, float, int]


@pytest.mark.parametrize("scale", [2.0**-530, 2.0**-100, 2.0**100, 2.0**530])
def test_an_estimate_of_the_very_small_and_the_very_large(scale: float) -> None:
    plain, scaled = (estimates({"x": np.array([1.0, 2.0, 4.0, 7.0]) * by})["x"] for by in (1.0, scale))
    assert plain.low is not None and plain.high is not None
    assert (scaled.low, scaled.high) == pytest.approx((plain.low * scale, plain.high * scale), rel=1e-9, abs=0)


@pytest.mark.parametrize("unit", [0.001, 0.1, 0.3, 7.0])
def test_the_unit_of_a_figure_does_not_move_its_interval(unit: float) -> None:
    for values in (np.array([1.0, 2.0, 4.0, 7.0]), np.array([1.0, 2.0, 4.0, 7.0, 11.0, 3.0])):
        plain, other = estimates({"x": values})["x"], estimates({"x": values * unit})["x"]
        assert plain.low is not None and other.low is not None and plain.high is not None and other.high is not None
        assert (other.low / unit, other.high / unit) == pytest.approx((plain.low, plain.high), rel=1e-9)


def test_estimates_of_an_evaluation_are_of_every_figure() -> None:
    seen = evaluation({"x": (0.5, NO_MASK, 0.25), "y": (NO_MASK, CONSTANT, NO_MASK), "z": (NO_MASK, NO_MASK, 0.0)})
    found = seen.estimates()
    assert list(found) == ["x", "y", "z"]
    assert found["y"] == seen.estimate("y") == Undefined("a constant map; no reference mask")
    assert found["z"] == seen.estimate("z") == Estimate(mean=0.0, low=None, high=None, pairs=1)
    assert found["x"] == seen.estimate("x")
    assert isinstance(found["x"], Estimate) and (found["x"].mean, found["x"].pairs) == (0.375, 2)


def test_estimates_of_nothing() -> None:
    assert evaluation({}).estimates() == {}
    seen = evaluation({"x": ()}, pairs=())
    assert seen.estimates() == {"x": Undefined("no pairs")} and seen.estimate("x") == Undefined("no pairs")


def test_the_mean_of_an_estimate_is_the_mean_to_the_last_bit() -> None:
    rng = np.random.default_rng(9)
    for _ in range(50):
        values = [v if v < 0.7 else NO_MASK for v in rng.random(24).tolist()]
        seen = evaluation({"x": tuple(values)})
        estimate = seen.estimate("x")
        assert isinstance(estimate, Estimate) and estimate.mean == seen.mean("x")
