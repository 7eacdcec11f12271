"""Smaller looks made of a kept one are what the model would have shown; the parts on sampling and pairs in short form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.evidence import pairs, sampling
from benchmarks.evidence.looked_at import held_out, look
from benchmarks.evidence.looked_at_anew import kept_look
from benchmarks.evidence.sizes import SHORT
from benchmarks.evidence.smaller_looks import blind
from i2am_debug.capture.plan import CapturePlan
from i2am_debug.evaluation.pilot import Choice
from i2am_debug.figures import pilot_spread


@pytest.mark.parametrize("model", sampling.MODELS)
def test_a_smaller_look_made_anew_is_that_of_the_model(model: str) -> None:
    some, plan = held_out(model, 2, seed=3), CapturePlan(sampler_steps=4, heads=5)
    kept = kept_look(model, some, plan=CapturePlan(sampler_steps=4, heads=None))
    heads = {la: {1: 2.0, 0: 1.0} for la in kept.heads}
    _, looked = look(model, some, plan=plan, choice=Choice(heads=heads, times=(1, 3)))
    for told, seen in zip(kept.anew((1, 3), heads, plan).observations, looked, strict=True):
        assert told.maps.steps == seen.maps.steps
        for direction in ("r2g", "g2r", "g2r_region", "r2g_centred"):
            a, b = getattr(told.maps, direction), getattr(seen.maps, direction)
            np.testing.assert_allclose(a.unified, b.unified, rtol=1e-5)
            np.testing.assert_allclose(a.by_step, b.by_step, rtol=1e-5)
        for layer, bits in seen.maps.layer_information.items():
            assert told.maps.layer_information[layer] == pytest.approx(bits)


@pytest.mark.parametrize(("count", "drawn"), [(1, 2), (2, 2), (5, 5), (8, 8)])
def test_a_blind_draw_has_as_many_heads_and_some_of_each_layer(count: int, drawn: int) -> None:
    heads = blind({"a": 4, "b": 4}, count, seed=1)
    assert sum(map(len, heads.values())) == drawn and all(heads.values())
    assert {la: sum(each.values()) for la, each in heads.items()} == {"a": 4, "b": 4}


@pytest.mark.parametrize("way", pairs.WAYS)
def test_every_interval_over_pairs_holds_the_mean_of_normal_values_about_as_often_as_it_says(way: str) -> None:
    values = np.random.default_rng(5).standard_normal((300, 32))
    low, high = pairs.WAYS[way](values, 400)
    assert 0.9 <= ((low <= 0) & (high >= 0)).mean() <= 0.98


def test_the_short_form_of_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MODELS", ("edit",))
    monkeypatch.setattr(sampling, "_STEPS", (1, 4))
    monkeypatch.setattr(sampling, "_TIMES", (4,))
    monkeypatch.setattr(sampling, "_HEADS", (8,))
    monkeypatch.setattr(sampling, "_OF", 8)
    monkeypatch.setattr(sampling, "_OF_TIMES", 8)
    monkeypatch.setattr(pilot_spread, "DRAWS", 6)
    found = sampling.measure(SHORT, Path())
    of_plans = found.values["edit"]
    assert of_plans.keys() == {"1 of 8 steps", "4 of 8 steps", "4 forced times", "8 heads, pilot", "8 heads, blind"}
    assert of_plans["4 of 8 steps"]["js_r2g"] < of_plans["1 of 8 steps"]["js_r2g"]
    assert "held" not in of_plans["1 of 8 steps"] and 0 <= of_plans["4 of 8 steps"]["held"][0] <= 1
    assert "4 of 8 steps" in found.markdown()


def test_the_short_form_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "MODELS", ("inpainting",))
    found = pairs.measure(SHORT, Path())
    held = found.values["inpainting"]["16"]
    assert held.keys() == pairs.WAYS.keys() and all("imacs_g" in of_figures for of_figures in held.values())
    assert "Student's t" in found.markdown()
