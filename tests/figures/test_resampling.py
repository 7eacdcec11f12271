"""Sign-flip tests and bootstrap intervals against scipy, plain loops and exact counts; how often they err, by simulation."""

from __future__ import annotations

import importlib.util
import itertools
import math
import warnings
from collections import Counter
from fractions import Fraction
from statistics import NormalDist
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from i2am_debug.figures import resampling
from i2am_debug.figures.resampling import EXACT_UP_TO, bootstrap_interval, bootstrap_intervals, sign_flip_p

DRAWS = 10_000  # as documented
steady = settings(max_examples=60, deadline=None, derandomize=True)
few_integers = st.lists(st.integers(-5, 5), min_size=1, max_size=7)


def p_by_loop(differences: list[int]) -> Fraction:
    """Every pattern of signs, in whole numbers: nothing is rounded."""
    patterns = list(itertools.product((1, -1), repeat=len(differences)))
    means = [sum(s * d for s, d in zip(pattern, differences, strict=True)) for pattern in patterns]
    return Fraction(sum(mean >= sum(differences) for mean in means), len(patterns))


def p_by_counting(differences: list[int]) -> float:
    """As `p_by_loop` for any number of differences: how many patterns reach each sum, one difference after the other."""
    reached = Counter({0: 1})
    for d in differences:
        following: Counter[int] = Counter()
        for total, count in reached.items():
            following[total + d] += count
            following[total - d] += count
        reached = following
    at_least = sum(count for total, count in reached.items() if total >= sum(differences))
    return at_least / 2 ** len(differences)


def drawn_error(p: float) -> float:
    """Five standard errors of a share among 10 000 drawn patterns, and the one seen."""
    return 5 * math.sqrt(p * (1 - p) / DRAWS) + 2 / DRAWS


def p_by_scipy(differences: np.ndarray) -> float:
    """Exact up to 14 differences."""
    return stats.permutation_test(
        (differences,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        alternative="greater",
        n_resamples=2**14,
        vectorized=True,
    ).pvalue


def a_second_copy() -> ModuleType:
    """The module loaded anew, with nothing remembered."""
    spec = importlib.util.spec_from_file_location("a_second_copy", resampling.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The sign-flip test


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=9))
@steady
def test_p_is_the_share_of_all_sign_patterns_that_reach_the_mean(differences: list[int]) -> None:
    assert sign_flip_p(np.array(differences)) == p_by_loop(differences)


@pytest.mark.parametrize("count", range(2, EXACT_UP_TO + 1))  # scipy takes no single one
def test_p_is_scipys_up_to_twelve_differences(count: int) -> None:
    rng = np.random.default_rng(count)
    for shift in (-0.3, 0.0, 0.5):
        differences = rng.normal(shift, size=count)
        assert sign_flip_p(differences) == pytest.approx(p_by_scipy(differences), abs=1e-12)


def test_twelve_differences_are_exact_and_thirteen_are_drawn() -> None:
    rng = np.random.default_rng(0)
    twelve = rng.integers(-9, 12, EXACT_UP_TO).tolist()
    assert EXACT_UP_TO == 12
    assert sign_flip_p(np.array(twelve)) == p_by_loop(twelve)
    drawn = sign_flip_p(np.array([*twelve, 5])) * (DRAWS + 1)
    assert drawn == pytest.approx(round(drawn), abs=1e-6)


@pytest.mark.parametrize("count", [13, 14])
def test_p_is_scipys_exact_one_within_what_drawing_costs(count: int) -> None:
    rng = np.random.default_rng(count)
    for shift in (-0.2, 0.0, 0.3, 0.6):
        differences = rng.normal(shift, size=count)
        exact = p_by_scipy(differences)
        assert sign_flip_p(differences) == pytest.approx(exact, abs=drawn_error(exact))


@pytest.mark.parametrize("count", [13, 20, 40, 100])
def test_p_is_the_exact_count_within_what_drawing_costs(count: int) -> None:
    rng = np.random.default_rng(count)
    for shift in (-1, 0, 1, 2):
        differences = (rng.integers(-8, 9, count) + shift).tolist()
        exact = p_by_counting(differences)
        assert sign_flip_p(np.array(differences)) == pytest.approx(exact, abs=drawn_error(exact))


def test_counting_agrees_with_the_loop() -> None:  # the oracle of many differences is right where both can be had
    for differences in ([3], [1, 1, -1], [0, 0, 2], [5, -2, 3, 3, -1, 4]):
        assert p_by_counting(differences) == p_by_loop(differences)


@pytest.mark.parametrize("count", range(1, EXACT_UP_TO + 1))
def test_only_the_pattern_seen_reaches_a_mean_of_equal_rises(count: int) -> None:
    assert sign_flip_p(np.full(count, 0.1)) == 2.0**-count
    assert sign_flip_p(np.full(count, -0.1)) == 1.0


def test_the_smallest_p_of_drawn_patterns_counts_the_one_seen() -> None:
    assert sign_flip_p(np.full(60, 0.1)) == 1 / (DRAWS + 1)
    assert sign_flip_p(np.full(60, -0.1)) == 1.0


@pytest.mark.parametrize("count", [1, 4, 12, 13, 50])
def test_p_of_no_differences_at_all_is_one(count: int) -> None:
    assert sign_flip_p(np.zeros(count)) == 1.0


@given(few_integers, st.integers(0, 4))
@steady
def test_pairs_that_did_not_change_do_not_change_p(differences: list[int], zeros: int) -> None:
    assert sign_flip_p(np.array(differences + [0] * zeros)) == sign_flip_p(np.array(differences))


@pytest.mark.parametrize("scale", [0.1, 1 / 3, 0.7, 1e-9, 1e-200, 1e200, 1024])
@pytest.mark.parametrize("differences", [[1, 2, -3], [3, 3, -3, 1, 1, -1], [7, -1, -2, -4], [1, 6, -7, 2, -2, 5, -5]])
def test_patterns_that_tie_but_for_rounding_still_count(differences: list[int], scale: float) -> None:
    assert sign_flip_p(np.array(differences) * scale) == p_by_loop(differences)


def test_a_difference_far_below_the_others_still_breaks_a_tie() -> None:
    assert sign_flip_p(np.array([1.0, 1e-9])) == 1 / 4
    assert sign_flip_p(np.array([1.0, -1e-9])) == 2 / 4


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=16), st.integers(-40, 40))
@steady
def test_p_does_not_depend_on_the_unit(differences: list[float], power: int) -> None:
    values = np.where(np.abs(differences) < 1e-6, 0, differences)
    assert sign_flip_p(values * 2.0**power) == sign_flip_p(values)


@given(few_integers, st.randoms(use_true_random=False))
@steady
def test_p_does_not_depend_on_the_order_of_the_pairs(differences: list[int], random) -> None:
    shuffled = random.sample(differences, len(differences))
    assert sign_flip_p(np.array(shuffled)) == sign_flip_p(np.array(differences))


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=15), st.data())
@steady
def test_p_never_grows_when_a_pair_gets_worse(differences: list[int], data: st.DataObject) -> None:
    worse = list(differences)
    worse[data.draw(st.integers(0, len(worse) - 1))] += data.draw(st.integers(1, 9))
    assert sign_flip_p(np.array(worse)) <= sign_flip_p(np.array(differences))


@given(few_integers)
@steady
def test_the_two_sides_share_only_the_ties(differences: list[int]) -> None:
    sums = [
        sum(s * d for s, d in zip(pattern, differences, strict=True))
        for pattern in itertools.product((1, -1), repeat=len(differences))
    ]
    ties = sums.count(sum(differences)) / len(sums)
    values = np.array(differences)
    assert sign_flip_p(values) + sign_flip_p(-values) == pytest.approx(1 + ties, abs=1e-12)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
@steady
def test_whatever_the_sizes_p_is_below_a_level_in_no_more_than_that_share_of_the_patterns(sizes: list[int]) -> None:
    patterns = itertools.product((1, -1), repeat=len(sizes))
    ps = np.array([sign_flip_p(np.array(sizes) * pattern) for pattern in patterns])
    for level in ps:
        assert (ps <= level).mean() <= level  # exactly valid, with ties and zeros


@pytest.mark.parametrize("count", [8, 12, 20, 40])
def test_one_null_in_twenty_is_a_false_alarm_at_alpha_five_percent(count: int) -> None:
    """Measured with these seeds: 0.042, 0.051, 0.055, 0.050 of 3000. Heavy tails, pairs of unlike size: it needs neither
    normality nor equal spread, only symmetry."""
    rng = np.random.default_rng(count)
    nulls = rng.standard_t(2, size=(3000, count)) * rng.lognormal(sigma=1, size=(3000, count))
    rate = np.mean([sign_flip_p(null) < 0.05 for null in nulls])
    expected = (math.ceil(0.05 * 2**count) - 1) / 2**count
    assert rate == pytest.approx(expected, abs=4 * math.sqrt(0.05 * 0.95 / 3000))
    shifted = np.mean([sign_flip_p(null + 2) < 0.05 for null in nulls[:200]])
    assert shifted > 3 * rate  # and it does see what is there


@pytest.mark.parametrize("count", [10, 16])
def test_p_of_symmetric_data_is_uniform(count: int) -> None:
    rng = np.random.default_rng(count)
    ps = [sign_flip_p(null) for null in rng.laplace(size=(1500, count))]
    steps = 2 ** min(count, 13)  # of a p: below what 1500 values can resolve
    assert stats.kstest(np.array(ps) - 0.5 / steps, "uniform").pvalue > 0.001


@pytest.mark.parametrize("count", [9, 30])
def test_p_is_the_same_every_time(count: int) -> None:
    differences = np.random.default_rng(1).normal(0.2, size=count)
    kept = differences.copy()
    first = sign_flip_p(differences)
    np.random.seed(7)
    before = np.random.get_state()[1].tolist()  # type: ignore[index]
    assert first == sign_flip_p(differences) == a_second_copy().sign_flip_p(differences)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]
    np.testing.assert_array_equal(differences, kept)


# The bootstrap


def draw(kind: str, size: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return {
        "normal": lambda: rng.normal(size=size),
        "lognormal": lambda: rng.lognormal(size=size),
        "left-skewed": lambda: -rng.lognormal(size=size),
        "exponential": lambda: rng.exponential(size=size),
    }[kind]()


def bca_by_loop(values: list[float], level: float) -> tuple[float, float]:
    """Efron 1987 over every resample of the rows; rows with NaN are drawn too and count for nothing. The jackknife is
    written out."""
    means = []
    for rows in itertools.product(range(len(values)), repeat=len(values)):
        drawn = [values[row] for row in rows if not math.isnan(values[row])]
        if drawn:
            means.append(sum(drawn) / len(drawn))
    has = [v for v in values if not math.isnan(v)]
    mean = sum(has) / len(has)
    below = (sum(m < mean for m in means) + sum(m <= mean for m in means)) / (2 * len(means))
    left_out = [(sum(has) - v) / (len(has) - 1) for v in has]
    centre = sum(left_out) / len(left_out)
    acceleration = sum((centre - x) ** 3 for x in left_out) / (6 * sum((centre - x) ** 2 for x in left_out) ** 1.5)
    normal = NormalDist()
    bias = normal.inv_cdf(below)
    ends = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        z = bias + normal.inv_cdf(tail)
        ends.append(float(np.quantile(means, normal.cdf(bias + z / (1 - acceleration * z)))))
    return ends[0], ends[1]


def every_resample(count: int) -> np.ndarray:
    rows = itertools.product(range(count), repeat=count)
    return np.array([np.bincount(drawn, minlength=count) for drawn in rows], dtype=float)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
@pytest.mark.parametrize(
    "values",
    [
        [0, 1],
        [1, 2, 8],
        [0, 1, 3, 16],
        [-16, 0, 1, 3],
        [0, 2, 5, 9, 31],
        [1, 1, 1, 1, 6],
        [0, math.nan, 1, 7],
        [2, math.nan, 4, math.nan, 32],
    ],
)
def test_over_every_resample_the_interval_is_efrons(
    values: list[float], level: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resampling, "_resamples", every_resample)
    assert bootstrap_interval(np.array(values), level) == pytest.approx(bca_by_loop(values, level), abs=1e-9)


@pytest.mark.parametrize("kind", ["normal", "lognormal", "left-skewed", "exponential"])
@pytest.mark.parametrize("count", [8, 16, 64])
def test_intervals_are_scipys_within_what_resampling_costs(count: int, kind: str) -> None:
    """In standard errors of the mean. A percentile interval's long end would be 0.2 to 0.8 off where the data are skewed."""
    values = draw(kind, (count, 24), seed=5)
    known = stats.bootstrap((values,), np.mean, axis=0, n_resamples=6000, method="BCa", batch=200, rng=1)
    expected = np.array([known.confidence_interval.low, known.confidence_interval.high])
    off = (bootstrap_intervals(values) - expected) / (values.std(0, ddof=1) / math.sqrt(count))
    assert np.abs(off).max() < 1.0  # over a dozen other seeds of our resamples: up to 0.77,
    assert np.abs(off.mean(1)).max() < 0.2  # and up to 0.15


def test_the_level_is_scipys_too() -> None:
    values = draw("exponential", (32, 16), seed=3)
    known = stats.bootstrap((values,), np.mean, axis=0, n_resamples=6000, confidence_level=0.8, batch=200, rng=1)
    expected = np.array([known.confidence_interval.low, known.confidence_interval.high])
    off = (bootstrap_intervals(values, 0.8) - expected) / (values.std(0, ddof=1) / math.sqrt(32))
    assert np.abs(off.mean(1)).max() < 0.15


def test_pairs_without_a_value_are_as_if_they_were_not_there() -> None:
    values = draw("lognormal", (48, 24), seed=9)
    holes = np.full((16, 24), np.nan)
    mixed = np.random.default_rng(0).permutation(np.concatenate([values, holes]), axis=0)
    off = (bootstrap_intervals(mixed) - bootstrap_intervals(values)) / (values.std(0, ddof=1) / math.sqrt(48))
    assert np.abs(off.mean(1)).max() < 0.12  # resampling's own error
    assert np.median(np.abs(off)) < 0.2


def test_each_column_is_on_its_own() -> None:
    columns = draw("lognormal", (16, 5), seed=2)
    columns[3:7, 1] = np.nan
    columns[:, 2] = np.nan
    together = bootstrap_intervals(columns)
    assert together.shape == (2, 5)
    for i in range(5):
        np.testing.assert_allclose(together[:, i], bootstrap_interval(columns[:, i]), rtol=1e-12)


TIED = [
    [2, 1, 2, 2, 2],
    [0, 1, 1, 0, 1, 1, 0, 0, 0, 1],
    [3, 3, 3, 1, 1],
    [1, 2, 0, 1, 3],
]


@pytest.mark.parametrize("values", TIED)
def test_intervals_of_tied_values_do_not_depend_on_rounding(values: list[int]) -> None:
    """A resample whose mean is that of the data is half below it, in whatever unit the two are computed."""
    low, high = bootstrap_interval(np.array(values))
    for scale, shift in [(0.7, 0), (0.1, 0), (1 / 3, 0), (1, 0.7), (0.1, 0.3)]:
        expected = (low * scale + shift, high * scale + shift)
        got = bootstrap_interval(np.array(values) * scale + shift)
        assert got == pytest.approx(expected, abs=1e-9), f"{scale} × values + {shift}"


def test_an_interval_does_not_depend_on_the_columns_beside_it() -> None:
    rng = np.random.default_rng(0)
    for count in (5, 8, 16):
        for _ in range(10):
            tied = rng.choice([0.1, 0.2, 0.3, 0.7], count)
            beside = bootstrap_intervals(np.column_stack([tied, rng.normal(size=(count, 7))]))[:, 0]
            assert bootstrap_interval(tied) == pytest.approx(tuple(beside), abs=1e-9), tied


@given(st.integers(2, 24), st.integers(0, 10**6), st.sampled_from(["normal", "lognormal", "left-skewed"]))
@steady
def test_an_interval_holds_the_mean_and_lies_within_the_values(count: int, seed: int, kind: str) -> None:
    values = draw(kind, (count,), seed)
    low, high = bootstrap_interval(values)
    assert values.min() - 1e-12 <= low <= values.mean() <= high <= values.max() + 1e-12


@given(st.integers(2, 24), st.integers(0, 10**6), st.floats(-50, 50), st.floats(0.01, 100))
@steady
def test_an_interval_moves_and_stretches_with_the_values(count: int, seed: int, shift: float, scale: float) -> None:
    values = draw("lognormal", (count,), seed)
    low, high = bootstrap_interval(values)
    size = scale * (high - low)
    assert bootstrap_interval(values * scale + shift) == pytest.approx(
        (low * scale + shift, high * scale + shift), abs=1e-7 * size
    )
    assert bootstrap_interval(-values) == pytest.approx((-high, -low), rel=1e-9)


def test_a_resample_is_as_large_as_the_sample() -> None:
    """Of four draws from two 0s and two 1s, none is a 1 with 1/16 and at most one is with 5/16: the quarter lies there."""
    assert bootstrap_interval(np.array([0, 0, 1, 1]), 0.5) == (0.25, 0.75)


def test_a_surer_interval_is_wider() -> None:
    values = draw("lognormal", (12,), seed=4)
    lows, highs = zip(*(bootstrap_interval(values, level) for level in (0.5, 0.8, 0.95, 0.99)), strict=True)
    assert list(lows) == sorted(lows, reverse=True) and len(set(lows)) == 4
    assert list(highs) == sorted(highs) and len(set(highs)) == 4


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_fewer_than_two_values_have_no_interval(rows: int) -> None:
    columns = np.full((rows, 3), np.nan)
    columns[:1, 1] = 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        intervals = bootstrap_intervals(columns)
    assert intervals.shape == (2, 3)
    assert np.isnan(intervals).all()


def test_two_values_among_many_without_have_an_interval() -> None:
    column = np.full(64, np.nan)
    column[[5, 40]] = 1.0, 2.0  # about one resample in seven draws neither
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bootstrap_interval(column) == (1.0, 2.0)


@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, 1e-300, 1e12])
@pytest.mark.parametrize("count", [2, 3, 7, 64])
def test_the_interval_of_equal_values_is_that_value(count: int, value: float) -> None:
    low, high = bootstrap_interval(np.array([np.nan, *[value] * count]))
    assert low == high == pytest.approx(value, rel=1e-14)


def test_intervals_are_the_same_every_time() -> None:
    columns = draw("lognormal", (11, 3), seed=6)
    columns[2, 1] = np.nan
    kept = columns.copy()
    first = bootstrap_intervals(columns)
    np.random.seed(3)
    np.testing.assert_array_equal(first, bootstrap_intervals(columns))
    np.testing.assert_array_equal(first, a_second_copy().bootstrap_intervals(columns))
    np.testing.assert_array_equal(columns, kept)


@pytest.mark.parametrize(
    "count, kind, measured",
    [
        (8, "normal", 0.885),
        (16, "normal", 0.915),
        (64, "normal", 0.94),
        (8, "lognormal", 0.80),
        (16, "lognormal", 0.86),
        (64, "lognormal", 0.915),
    ],
)
def test_how_often_a_95_percent_interval_holds_the_true_mean(count: int, kind: str, measured: float) -> None:
    """Too seldom with few pairs, as every bootstrap of a small sample: `measured` is of 20 000 simulated sets of pairs.

    scipy's BCa is as short: that is the method's, not ours.
    """
    values = draw(kind, (count, 600), seed=11)
    true = 0.0 if kind == "normal" else math.exp(0.5)

    def holds(low: np.ndarray, high: np.ndarray) -> float:
        return float(((low <= true) & (true <= high)).mean())

    ours = holds(*bootstrap_intervals(values))
    known = stats.bootstrap((values[:, :300],), np.mean, axis=0, n_resamples=2000, batch=200, rng=1).confidence_interval
    scipys = holds(known.low, known.high)
    assert ours == pytest.approx(measured, abs=4 * math.sqrt(measured * (1 - measured) / 600))
    assert holds(*bootstrap_intervals(values[:, :300])) == pytest.approx(scipys, abs=0.03)
