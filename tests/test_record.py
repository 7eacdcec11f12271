"""What an evaluation keeps: undefined stays undefined, floats survive JSON, differences are named one by one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from i2am_debug.record import FORMAT, Evaluation, Figure, Undefined, as_figure, differences

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


def test_an_unknown_tag_was_not_recorded() -> None:
    seen = evaluation({"imacs_r": (0.5, 0.5, 0.5)})
    assert seen.mean("imacs_q") == Undefined("not recorded")
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
        seconds=12.25,
    )
    back = through_json(seen)
    assert back == seen
    assert back.seconds == 12.25  # left out of ==
    assert back.heads == {"up": {0: 1.0, 11: 3.5}, "down": {}}
    assert through_json(replace(seen, heads=None)).heads is None
    assert seen.to_json()["format"] == FORMAT


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
