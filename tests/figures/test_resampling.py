"""Sign-flip tests against scipy, plain loops and exact counts; how often they err, by simulation."""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections import Counter
from fractions import Fraction
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from i2am_debug.figures import resampling
from i2am_debug.figures.resampling import EXACT_UP_TO, sign_flip_p

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
    before = np.random.get_state()[1].tolist()
    assert first == sign_flip_p(differences) == a_second_copy().sign_flip_p(differences)
    assert np.random.get_state()[1].tolist() == before
    np.testing.assert_array_equal(differences, kept)
