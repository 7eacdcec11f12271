"""An evaluation, an alert and a declared figure are read in the form that their writers give them, or the place is named."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from stored_runs import evaluation

from i2am_debug.figures import stored_form
from i2am_debug.figures.declaration import DeclaredFigure
from i2am_debug.figures.record import Evaluation
from i2am_debug.figures.values import Undefined

ROW = json.loads(json.dumps(evaluation(3, margins={"imacs_g": "10%"}).to_json()))
COUNT = len(ROW["pairs"])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"global_step": True}, "global_step is True; expected a whole number of at least 0"),
        ({"global_step": -1}, "global_step is -1"),
        ({"global_step": 10**400}, "global_step is a very long whole number"),
        ({"pairs": "abc"}, "pairs is 'abc'; expected a list"),
        ({"pairs": [*range(COUNT)]}, "pairs/0 is 0; expected a text"),
        ({"pairs": ["a"] * COUNT}, "two pairs are named 'a'"),
        ({"pairs": ["a"]}, f"has {COUNT} values for 1 pairs"),
        ({"figures": []}, "figures is []; expected an object"),
        ({"figures": {"loss": [None] * COUNT}}, 'figures/loss/0 is None; expected a number or {"undefined": reason}'),
        ({"figures": {"loss": [True] * COUNT}}, "figures/loss/0 is True"),
        ({"figures": {"loss": [{"undefined": 1}] * COUNT}}, "figures/loss/0/undefined is 1; expected a text"),
        ({"figures": {"loss": [{}] * COUNT}}, "figures/loss/0 has no 'undefined'"),
        ({"errors": {"loss": [0.1]}}, f"errors/loss has 1 values for {COUNT} pairs"),
        ({"layers": {"a": 1}}, "layers is {'a': 1}; expected a list"),
        ({"copying_layer": 5}, "copying_layer is 5"),
        ({"watched_layer": 5}, "watched_layer is 5"),
        ({"reference_lines": {"imacs_g": 1}}, "reference_lines/imacs_g is 1"),
        ({"fingerprint": None}, "fingerprint is None"),
        ({"fingerprint": {"seed": 10**400}}, "fingerprint/seed is a very long whole number"),
        ({"fingerprint": {"x": json.loads("[" * 30 + "]" * 30)}}, "nested deeper than 16 levels"),
        ({"heads": {"up": {"x": 1.0}}}, "heads/up is 'x'; expected the number of a head"),
        ({"heads": {"up": {"3": None}}}, "heads/up/3 is None; expected a finite number"),
        ({"margins": {"loss": "-3%"}}, "margins/loss: margin '-3%': expected a number above 0"),
        ({"margins": {"loss": math.nan}}, "margins/loss"),
        ({"declared": [5]}, "declared/0 is 5; expected an object"),
        ({"seconds": "1"}, "seconds is '1'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_another_form_is_refused_and_the_place_named(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as caught:
        Evaluation.from_json({**ROW, **changed})
    assert told in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "key",
    [
        key
        for key in ROW
        if key not in ("format", "watched_layer", "margins", "declared", "times", "chosen", "spread", "sampling")
    ],
)
def test_every_key_is_needed(key: str) -> None:
    with pytest.raises(ValueError, match=f"it has no '{key}'"):
        Evaluation.from_json({k: v for k, v in ROW.items() if k != key})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400])
def test_a_figure_that_is_not_finite_is_undefined(value: float) -> None:
    found = Evaluation.from_json({**ROW, "figures": {"loss": [value, 0.5] * (COUNT // 2)}})
    assert found.figures["loss"][:2] == (Undefined("not a finite number"), 0.5)
    assert found.mean("loss") == 0.5


def test_a_mean_that_no_float_holds_is_undefined() -> None:
    found = Evaluation.from_json({**ROW, "figures": {"loss": [1.7e308] * COUNT}})
    assert found.mean("loss") == Undefined("its mean is beyond what a float holds")


def test_a_line_without_a_number_is_left_out() -> None:
    found = Evaluation.from_json({**ROW, "reference_lines": {"imacs_g": {"blob": 0.5, "random": math.nan}}})
    assert found.reference_lines == {"imacs_g": {"blob": 0.5}}


DECLARED = DeclaredFigure(
    tag="sharpness", title="Sharpness", meaning="How sharp.", unit="bit", range=(0, None)
).to_json()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"range": [1]}, "declared/range is [1]; expected two numbers"),
        ({"worse": "left"}, "declared/worse is 'left'; expected one of down, up"),
        ({"tag": "a b"}, "tag 'a b'"),
        ({"title": None}, "declared/title is None; expected a text"),
        ({"prominence": math.inf}, "declared/prominence is inf"),
        ({"of_layer": 1}, "declared/of_layer is 1; expected true or false"),
        ({"margin": [1]}, "margin"),
    ],
)
def test_a_declared_figure_of_another_form_is_refused(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as caught:
        DeclaredFigure.from_json({**DECLARED, **changed})
    assert told in str(caught.value)
    assert DeclaredFigure.from_json(DECLARED).to_json() == DECLARED


def test_a_place_and_a_value_are_shown_in_short() -> None:
    for value in ("x" * 10**6, [0] * 10**6, 10**4000):
        assert len(str(stored_form.wrong(value, "y" * 10**6, "a number"))) < 300
