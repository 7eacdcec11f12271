"""What is said of heads and noise times that were not looked at, against what drawing them anew really does."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest

from i2am_debug.figures.sampling_error import (
    NO_PILOT,
    ONE_TIME,
    Sampled,
    SamplingError,
    Spread,
    Variance,
    variance_of_steps,
)
from i2am_debug.figures.scores import left_out
from i2am_debug.figures.values import Undefined

DRAWS = 3000


def drawn_steps(values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """One of each of as many equal stretches."""
    edges = [i * len(values) // count for i in range(count + 1)]
    return values[[rng.integers(a, b) for a, b in pairwise(edges)]]


def told(sample: np.ndarray, total: int) -> Variance:
    found = variance_of_steps(left_out(float, list(sample)), total)
    assert isinstance(found, Variance)
    return found


@pytest.mark.parametrize("trend", [0.0, 1.0], ids=["flat", "trend"])
@pytest.mark.parametrize(("total", "count"), [(20, 4), (50, 4), (50, 8)])
def test_the_error_of_steps_is_their_spread_over_draws_whatever_the_trend(total: int, count: int, trend: float) -> None:
    rng = np.random.default_rng(total + count)
    apart, variances, covered = [], [], []
    for _ in range(DRAWS):
        values = trend * np.arange(total) / total + 0.1 * rng.standard_normal(total)
        sample = drawn_steps(values, count, rng)
        found = told(sample, total)
        apart.append(sample.mean() - values.mean())
        variances.append(found.variance)
        covered.append(abs(apart[-1]) <= SamplingError.of(found).reach)
    assert np.sqrt(np.mean(variances)) == pytest.approx(np.std(apart), rel=0.12)
    assert 0.93 <= np.mean(covered) <= 0.97


@pytest.mark.parametrize("bend", [1, 2], ids=["trend", "bent"])
@pytest.mark.parametrize(("total", "count"), [(20, 12), (20, 16), (50, 40)])
def test_intervals_hold_where_some_steps_stand_for_one_more(total: int, count: int, bend: int) -> None:
    """A mean of equal shares is then off to one side, whatever is drawn."""
    rng, covered = np.random.default_rng(count), []
    values = (np.arange(total) / total) ** bend
    for _ in range(300):
        sample = drawn_steps(values, count, rng)
        covered.append(abs(sample.mean() - values.mean()) <= SamplingError.of(told(sample, total)).reach)
    assert np.mean(covered) >= 0.93


def test_nothing_is_left_to_chance_where_all_was_looked_at() -> None:
    assert variance_of_steps([1.0, 2.0, 5.0], 3) == Variance(variance=0.0, degrees=math.inf)


def test_of_one_step_nothing_can_be_said() -> None:
    assert variance_of_steps([math.nan], 10**6) == Undefined(ONE_TIME)


def test_of_two_steps_it_is_the_textbook_standard_error() -> None:
    assert told(np.array([1.0, 3.0]), 10).variance == pytest.approx(np.var([1, 3], ddof=1) / 2 * 0.8)


def test_variances_add_up_and_the_less_known_one_tells_the_degrees() -> None:
    both = Variance(variance=3.0, degrees=math.inf) + Variance(variance=1.0, degrees=2.0)
    assert both.variance == 4.0 and both.degrees == pytest.approx(2 * 16)
    nothing = Variance(variance=0.0, degrees=math.inf)
    assert (nothing + nothing).variance == 0.0
    assert (nothing + Variance(variance=1.0, degrees=2.0)).degrees == pytest.approx(2.0)


def test_the_reach_is_students() -> None:
    assert SamplingError(error=2.0, degrees=1e6).reach == pytest.approx(2 * 1.959964, rel=1e-4)
    assert SamplingError(error=2.0, degrees=2.0).reach == pytest.approx(2 * 4.302653, rel=1e-4)


@pytest.mark.parametrize("pairs", [2, 4, 10])
def test_what_is_common_to_pairs_is_told_from_what_is_a_pairs_own(pairs: int) -> None:
    rng = np.random.default_rng(pairs)
    apart = rng.normal(0, 0.3, (200_000, 1)) + rng.normal(0, 0.5, (200_000, pairs))
    found = Spread.of(float((apart**2).mean()), float((apart.mean(1) ** 2).mean()), pairs, 32.0)
    assert found.common == pytest.approx(0.09, rel=0.03) and found.own == pytest.approx(0.25, rel=0.03)
    assert found.variance(16).variance == pytest.approx(0.09 + 0.25 / 16, rel=0.03)


def test_of_one_pair_all_is_taken_for_common() -> None:
    assert Spread.of(0.04, 0.04, 1, 32.0) == Spread(common=0.04, own=0.0, degrees=32.0)


def test_drawn_heads_without_a_pilot_have_no_error() -> None:
    steps = left_out(float, [1.0, 2.0, 4.0])
    known = Sampled(steps=9, heads=True, spread={"x": Spread(common=1.0, own=0.0, degrees=32.0)})
    assert known.variance("y", steps, 3) == Undefined(NO_PILOT)
    of_steps = Sampled(steps=9).variance("x", steps, 3)
    both = known.variance("x", steps, 3)
    assert isinstance(both, Variance) and isinstance(of_steps, Variance)
    assert both.variance == pytest.approx(1.0 + of_steps.variance)


def test_noise_times_that_the_pilot_left_out_are_in_its_spread() -> None:
    one_time = left_out(float, [1.0])
    spread = {"x": Spread(common=1.0, own=2.0, degrees=32.0)}
    found = Sampled(steps=9, heads=True, times=True, spread=spread).variance("x", one_time, 4)
    assert found == Variance(variance=1.5, degrees=32.0)


@pytest.mark.parametrize(
    "value", [SamplingError(error=0.1, degrees=2.7), Spread(common=0.1, own=0.0, degrees=32.0)], ids=["error", "spread"]
)
def test_json_brings_it_back(value) -> None:
    assert type(value).from_json(json.loads(json.dumps(value.to_json())), "there") == value


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (SamplingError, [0.1]),
        (SamplingError, [-0.1, 2]),
        (SamplingError, [0.1, 0]),
        (SamplingError, {"error": 1}),
        (Spread, {"common": 1.0, "own": 1.0}),
        (Spread, {"common": -1.0, "own": 1.0, "degrees": 2}),
        (Spread, [1, 2, 3]),
    ],
)
def test_what_is_neither_is_refused_with_its_place(kind, row) -> None:
    with pytest.raises(ValueError, match="there"):
        kind.from_json(row, "there")
