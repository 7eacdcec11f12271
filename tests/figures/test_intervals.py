"""Intervals of means against tables, plain loops and simulation."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import warnings

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from i2am_debug.figures.intervals import mean_intervals

steady = settings(max_examples=60, deadline=None, derandomize=True)
values_of = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=24)

# Student's t, two-sided 95 % and 80 %, by degrees of freedom: as printed in any table.
QUANTILES = {(1, 0.95): 12.706, (7, 0.95): 2.365, (15, 0.95): 2.131, (63, 0.95): 1.998, (7, 0.8): 1.415}


def interval(values: object, level: float = 0.95) -> tuple[float, float]:
    low, high = mean_intervals(np.asarray(values, dtype=float)[:, None], level)[:, 0]
    return float(low), float(high)


@pytest.mark.parametrize(("degrees", "level"), QUANTILES)
def test_of_values_without_skewness_the_interval_is_students(degrees: int, level: float) -> None:
    half = np.random.default_rng(degrees).lognormal(size=(degrees + 1) // 2)
    values = [*(5 + half), *(5 - half)]
    reach = QUANTILES[degrees, level] * statistics.stdev(values) / math.sqrt(len(values))
    middle = statistics.fmean(values)
    assert interval(values, level) == pytest.approx((middle - reach, middle + reach), abs=3e-4 * reach)


@pytest.mark.parametrize("count", [3, 8, 24])
def test_the_interval_is_halfway_from_students_to_halls(count: int) -> None:
    """Hall's is found by search, of the mean whose transformed t statistic is Student's quantile."""
    values = np.random.default_rng(count).lognormal(size=count)
    middle, spread = values.mean(), values.std()
    skewness = scipy.stats.skew(values)

    def transformed(true_mean: float) -> float:
        x = (middle - true_mean) / spread
        return x + skewness * x**2 / 3 + skewness**2 * x**3 / 27 + skewness / (6 * count)

    quantile = scipy.stats.t.ppf(0.975, count - 1) / math.sqrt(count - 1)
    ends = [
        (
            brentq(lambda m, end=end: transformed(m) - end, middle - 1e3 * spread, middle + 1e3 * spread, xtol=1e-12)
            + middle
            - end * spread
        )
        / 2
        for end in (quantile, -quantile)
    ]
    assert interval(values) == pytest.approx(ends, rel=1e-6)


@given(values_of, st.floats(-100, 100), st.sampled_from([1e-200, 1e-9, 0.1, 1 / 3, 7.0, 1e200]))
@steady
def test_an_interval_moves_and_stretches_with_the_values(values: list[float], shift: float, scale: float) -> None:
    low, high = interval(values)
    size = max(1e-9 * max(map(abs, values)), high - low)  # rounding
    moved = interval(np.array(values) + shift)
    assert moved == pytest.approx((low + shift, high + shift), abs=1e-6 * max(size, abs(shift)))
    assert interval(np.array(values) * scale) == pytest.approx(
        (low * scale, high * scale), rel=1e-9, abs=1e-9 * size * scale
    )
    assert interval(-np.array(values)) == pytest.approx((-high, -low), rel=1e-9, abs=1e-9 * size)


def test_each_column_is_on_its_own_and_missing_values_are_as_if_they_were_not_there() -> None:
    columns = np.random.default_rng(2).lognormal(size=(16, 5))
    columns[3:7, 1] = np.nan
    columns[:, 2] = np.nan
    kept, together = columns.copy(), mean_intervals(columns)
    assert together.shape == (2, 5) and np.isnan(together[:, 2]).all()
    for i in (0, 1, 3, 4):
        assert tuple(together[:, i]) == pytest.approx(interval(columns[np.isfinite(columns[:, i]), i]), rel=1e-12)
    np.testing.assert_array_equal(columns, kept)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_fewer_than_two_values_have_no_interval(rows: int) -> None:
    columns = np.full((rows, 3), np.nan)
    columns[:1, 1] = 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = mean_intervals(columns)
    assert found.shape == (2, 3) and np.isnan(found).all()


@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, 1e-300, 1e12, 1e300])
@pytest.mark.parametrize("count", [2, 3, 7, 64])
def test_the_interval_of_equal_values_is_that_value(count: int, value: float) -> None:
    low, high = interval([np.nan, *[value] * count])
    assert low == high == pytest.approx(value, rel=1e-14)


def test_a_surer_interval_is_wider() -> None:
    values = np.random.default_rng(4).lognormal(size=12)
    lows, highs = zip(*(interval(values, level) for level in (0.5, 0.8, 0.95, 0.99)), strict=True)
    assert list(lows) == sorted(lows, reverse=True) and len(set(lows)) == 4
    assert list(highs) == sorted(highs) and len(set(highs)) == 4


TRUE_MEANS = {"normal": 0.0, "lognormal": math.exp(0.125), "exponential": 1.0}


@pytest.mark.parametrize(
    ("kind", "count", "documented"),
    [
        *(("normal", count, 0.95) for count in (8, 16, 64)),
        *(("lognormal", count, share) for count, share in ((8, 0.93), (16, 0.94), (64, 0.95))),
        *(("exponential", count, share) for count, share in ((8, 0.93), (16, 0.94), (64, 0.95))),
    ],
)
def test_how_often_a_95_percent_interval_holds_the_true_mean(kind: str, count: int, documented: float) -> None:
    rng, trials = np.random.default_rng(11), 20_000
    sigma = {"sigma": 0.5} if kind == "lognormal" else {}
    values = getattr(rng, kind if kind != "normal" else "standard_normal")(size=(count, trials), **sigma)
    low, high = mean_intervals(values)
    held = ((low <= TRUE_MEANS[kind]) & (TRUE_MEANS[kind] <= high)).mean()
    assert held == pytest.approx(
        documented, abs=0.0075
    )  # documented in whole percent, and four errors of the simulation


def test_scipy_is_loaded_only_where_it_is_needed() -> None:
    code = (
        "import sys, i2am_debug.figures.record, i2am_debug.figures.distances, i2am_debug.gate.check, i2am_debug.tab.backend, "
        "i2am_debug.cli; sys.exit('scipy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
