"""Figures of maps against definitions written again here from SPEC, in numpy and scipy."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch.overrides import TorchFunctionMode

from i2am_debug.capture.maps import Direction
from i2am_debug.errors import UndefinedFigure
from i2am_debug.figures.distances import js_distance
from i2am_debug.figures.pair_view import PairView
from i2am_debug.figures.scores import (
    ChanceLevel,
    IMACSSettings,
    Inside,
    energy,
    imacs,
    imacs_chance,
    left_out,
    pointing,
    reference_lines,
    score_imacs,
)
from i2am_debug.grids import region_weight


def cubic(x: float) -> float:
    """Keys' convolution kernel with a = -0.75."""
    a, x = -0.75, abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def bicubic_matrix(n: int, wanted: int) -> np.ndarray:
    """(wanted, n): half-pixel centres, borders repeated, no antialiasing."""
    out = np.zeros((wanted, n))
    for i in range(wanted):
        x = (i + 0.5) * n / wanted - 0.5
        for j in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
            out[i, min(max(j, 0), n - 1)] += cubic(x - j)
    return out


def bicubic(x: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    return bicubic_matrix(x.shape[0], size[0]) @ x @ bicubic_matrix(x.shape[1], size[1]).T


def min_max(x: np.ndarray) -> np.ndarray:
    return (x - x.min()) / (x.max() - x.min() + 1e-8)


def prepared_oracle(map: np.ndarray, mask: np.ndarray, *, threshold: float, polarity: str, premask: bool) -> np.ndarray:
    map, mask = np.asarray(map, dtype=np.float64), np.asarray(mask, dtype=np.float64)
    if premask:
        map = map * bicubic(mask, map.shape)
    a = min_max(bicubic(min_max(map), mask.shape))
    a = 1 - a if polarity == "inverted" else a
    return np.where(a <= threshold, 0, a)


def imacs_oracle(
    map: Any, mask: Any, *, penalty: float = 3, threshold: float = 0.4, polarity: str = "direct", premask: bool = False
) -> float:
    mask = np.asarray(mask, dtype=np.float64)
    a = prepared_oracle(map, mask, threshold=threshold, polarity=polarity, premask=premask)
    return np.average(a, weights=mask) - penalty * np.average(a, weights=1 - mask)


def box(size: tuple[int, int], rows: tuple[int, int], cols: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size)
    mask[slice(*rows), slice(*cols)] = 1
    return mask


def attribution_map(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Positive, sum 1, with some very large values, as attention maps have them."""
    values = np.random.default_rng(seed).random(size) ** 6
    return (values / values.sum()).astype(np.float32)


MASKS = {
    "of the map's size": box((12, 10), (2, 7), (3, 9)),
    "finer": box((48, 40), (5, 30), (11, 37)),
    "coarser": box((6, 5), (2, 5), (0, 2)),
    "neither": box((17, 23), (3, 15), (0, 9)),
    "soft": np.random.default_rng(9).random((24, 20)),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("premask", [False, True])
@pytest.mark.parametrize("polarity", ["direct", "inverted"])
def test_imacs_equals_the_definition(mask: np.ndarray, polarity: Any, premask: bool) -> None:
    map = attribution_map((12, 10))
    for penalty, threshold in itertools.product((0.0, 3.0, 1.7), (0.0, 0.4, 0.65)):
        settings = dict(penalty=penalty, threshold=threshold, polarity=polarity, premask=premask)
        expected = imacs_oracle(map, mask, **settings)
        assert imacs(map, mask, **settings) == pytest.approx(expected, abs=1e-6), settings
        assert score_imacs(map, mask, IMACSSettings(**settings)) == pytest.approx(expected, abs=1e-6), settings
        assert -penalty <= expected <= 1


def test_imacs_worked_out_by_hand() -> None:
    map, mask = [[0, 1], [2, 3]], [[0, 0], [0, 1]]  # min-max 0, 1/3, 2/3, 1; the threshold takes 1/3
    assert imacs(map, mask) == pytest.approx(1 - 3 * (2 / 3) / 3, abs=1e-7)
    assert imacs(map, mask, threshold=0.3) == pytest.approx(1 - 3 * (1 / 3 + 2 / 3) / 3, abs=1e-7)
    assert imacs(map, mask, threshold=0.3, penalty=1) == pytest.approx(1 - (1 / 3 + 2 / 3) / 3, abs=1e-7)
    assert imacs(map, mask, polarity="inverted") == pytest.approx(-3 * (1 + 2 / 3) / 3, abs=1e-7)
    assert imacs(map, mask, premask=True) == pytest.approx(1, abs=1e-7)


def test_a_value_at_the_threshold_becomes_zero() -> None:
    # 1/4 of the range exactly, up to the 1e-8 in the divisor
    assert imacs([[0, 1], [4, 4]], [[0, 1], [0, 0]], threshold=0.25, penalty=0) == 0
    assert imacs([[0, 1], [4, 4]], [[0, 1], [0, 0]], threshold=0.2499, penalty=0) == pytest.approx(0.25, abs=1e-6)


def test_the_authors_figure_by_hand() -> None:
    """Threshold 0.4 and penalty 3; R2G inverts the map, G2R multiplies it by the mask first."""
    map, mask = [[0, 1], [2, 3]], [[0, 1], [0, 1]]
    assert imacs(map, mask, preset="authors", direction="r2g") == pytest.approx((2 / 3) / 2 - 3 / 2, abs=1e-7)
    assert imacs(map, mask, preset="authors", direction="g2r") == pytest.approx(1 / 2, abs=1e-7)  # 1/3 falls to 0


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_the_authors_figure_equals_the_definition(mask: np.ndarray) -> None:
    map = attribution_map((12, 10), seed=1)
    inverted, premasked = imacs_oracle(map, mask, polarity="inverted"), imacs_oracle(map, mask, premask=True)
    ignored = dict(penalty=1.0, threshold=0.1, polarity="direct", premask=False)
    for direction in ("r2g", Direction.R2G):
        found = imacs(map, mask, preset="authors", direction=direction, **ignored)
        assert found == pytest.approx(inverted, abs=1e-6)
    for direction in ("g2r", Direction.G2R):
        found = imacs(map, mask, preset="authors", direction=direction, **ignored)
        assert found == pytest.approx(premasked, abs=1e-6)
    assert imacs(map, mask) == pytest.approx(imacs_oracle(map, mask), abs=1e-6)
    assert len({round(x, 3) for x in (inverted, premasked, imacs_oracle(map, mask))}) == 3


def test_random_noise_scores_what_the_specification_says() -> None:
    """By hand: a uniform value counts 0.42 on average once the threshold has taken 0.4 and less, so 0.42 - 3 x 0.42."""
    noise = np.random.default_rng(0).random((100, 16, 16))
    tokens = box((16, 16), (4, 12), (4, 12))
    for mask in (tokens, np.kron(tokens, np.ones((4, 4)))):  # the standard error of both means is about 0.01
        assert np.mean([imacs(n, mask) for n in noise]) == pytest.approx(-0.84, abs=0.04)
        assert np.mean([imacs(n, mask, premask=True) for n in noise]) == pytest.approx(0.42, abs=0.02)


def test_the_perfect_map_scores_near_one() -> None:
    tokens = box((16, 16), (4, 12), (6, 10))
    assert imacs(tokens, tokens) == pytest.approx(1, abs=1e-7)
    assert 0.75 < imacs(tokens, np.kron(tokens, np.ones((4, 4)))) <= 1
    assert imacs(1 - tokens, tokens) == pytest.approx(-3, abs=1e-6)


@pytest.mark.parametrize("kind", [np.float64, np.float32, torch.float32, torch.bfloat16, list])
def test_arrays_tensors_and_lists_score_alike(kind: Any) -> None:
    map, mask = np.arange(16.0).reshape(4, 4) % 5, box((4, 4), (1, 3), (1, 4))
    expected = imacs_oracle(map, mask)
    if kind is list:
        given = map.tolist(), mask.astype(int).tolist()
    elif isinstance(kind, torch.dtype):
        given = torch.tensor(map, dtype=kind), torch.tensor(mask) > 0.5
    else:
        given = map.astype(kind), mask.astype(bool)
    assert imacs(*given) == pytest.approx(expected, abs=1e-6)


def test_flipped_and_transposed_views_are_taken() -> None:
    map, mask = attribution_map((5, 5)), box((5, 5), (1, 3), (1, 4))
    expected = imacs(map[::-1].copy(), mask[:, ::-1].copy())
    assert imacs(map[::-1], mask[:, ::-1]) == expected
    assert imacs(map[::-1].T, mask[:, ::-1].T) == pytest.approx(expected, abs=1e-9)


def test_the_scale_of_a_map_does_not_matter() -> None:
    map, mask = attribution_map((6, 6)), box((6, 6), (1, 4), (1, 4))
    for factor in (1e-3, 1, 1e4):  # eps 1e-8 is far below the range of each
        assert imacs(factor * map, mask) == pytest.approx(imacs(map, mask), abs=1e-3)


GOOD_MAP, GOOD_MASK = attribution_map((4, 4)), box((8, 8), (0, 4), (0, 4))
HALF_NAN, INFINITE = GOOD_MAP.copy(), GOOD_MAP.copy()
HALF_NAN[2, 1], INFINITE[0, 0] = np.nan, np.inf


@pytest.mark.parametrize(
    ("map", "mask", "reason"),
    [
        (GOOD_MAP, np.zeros((8, 8)), "the mask is empty"),
        (GOOD_MAP, np.ones((8, 8)), "the mask is full"),
        (np.full((4, 4), 1 / 16), GOOD_MASK, "the map is constant"),
        (np.zeros((4, 4)), GOOD_MASK, "the map is constant"),
        (np.ones((1, 1)), GOOD_MASK, "the map is constant"),
        (HALF_NAN, GOOD_MASK, "the map is not finite"),
        (INFINITE, GOOD_MASK, "the map is not finite"),
    ],
)
def test_a_score_without_a_value_is_undefined_for_a_reason(map: np.ndarray, mask: np.ndarray, reason: str) -> None:
    for settings in (IMACSSettings(), IMACSSettings.authors("r2g"), IMACSSettings(polarity="inverted")):
        for figure in (score_imacs, imacs_chance):
            with pytest.raises(UndefinedFigure) as caught:
                figure(map, mask, settings)
            assert caught.value.reason == reason


def test_a_premasked_map_that_vanishes_is_undefined() -> None:
    with pytest.raises(UndefinedFigure, match="constant"):
        imacs(1 - GOOD_MASK, GOOD_MASK, premask=True)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (dict(preset="paper"), ["preset='paper'", '"plain"', '"authors"']),
        (dict(preset="authors"), ["direction", '"r2g"', '"g2r"']),
        (dict(preset="authors", direction="sideways"), ["direction", "sideways", "r2g", "g2r"]),
        (dict(polarity="inverse"), ["polarity='inverse'", '"direct"', '"inverted"']),
        (dict(threshold=1.0), ["threshold=1.0", "0 ≤ threshold < 1"]),
        (dict(threshold=-0.1), ["threshold=-0.1"]),
        (dict(threshold=float("nan")), ["threshold=nan"]),
        (dict(penalty=-1.0), ["penalty=-1.0"]),
        (dict(penalty=float("nan")), ["penalty=nan"]),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        imacs(GOOD_MAP, GOOD_MASK, **arguments)
    assert not isinstance(caught.value, UndefinedFigure)
    for name in names:
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("map", "mask", "text"),
    [
        (np.ones(4), GOOD_MASK, r"map must have shape \(h, w\), got \(4,\)"),
        (np.ones((2, 4, 4)), GOOD_MASK, r"map must have shape"),
        (GOOD_MAP, np.ones((1, 8, 8)), r"mask must have shape \(H, W\), got \(1, 8, 8\)"),
        (GOOD_MAP, 255 * GOOD_MASK, r"divide an 8-bit mask by 255"),
        (GOOD_MAP, -GOOD_MASK, r"from 0 \(outside\) to 1 \(inside\)"),
        (GOOD_MAP, GOOD_MASK * np.nan, r"from 0 \(outside\) to 1 \(inside\)"),
    ],
)
def test_wrong_shapes_and_values_are_refused(map: np.ndarray, mask: np.ndarray, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        imacs(map, mask)


def chance_oracle(
    map: np.ndarray, mask: np.ndarray, variants: list[np.ndarray], *, penalty: float = 3, **settings: Any
) -> tuple[float, float]:
    a = prepared_oracle(map, mask, **{"threshold": 0.4, "polarity": "direct", "premask": False, **settings})
    scores = []
    for variant, dy, dx in itertools.product(variants, range(mask.shape[0]), range(mask.shape[1])):
        m = np.roll(variant, (dy, dx), (0, 1))
        scores.append(np.average(a, weights=m) - penalty * np.average(a, weights=1 - m))
    return float(np.mean(scores)), float(np.std(scores))


@pytest.mark.parametrize("settings", [{}, {"polarity": "inverted"}, {"penalty": 1.0, "threshold": 0.1}])
def test_chance_of_a_square_mask_is_over_eight_symmetries_and_all_shifts(settings: dict[str, Any]) -> None:
    mask = box((8, 8), (1, 4), (2, 7))
    mask[1, 2] = 0.25  # soft, and without any symmetry of its own
    mask[0, 0] = 1
    map = attribution_map((5, 5), seed=2)
    variants = [np.rot90(m, turns) for m in (mask, mask[::-1]) for turns in range(4)]
    found = imacs_chance(map, mask, IMACSSettings(**settings))
    assert (found.mean, found.sd) == pytest.approx(chance_oracle(map, mask, variants, **settings), abs=1e-6)


def test_chance_of_an_oblong_mask_is_over_four_symmetries_and_all_shifts() -> None:
    mask = box((6, 9), (1, 3), (2, 7))
    mask[0, 0] = 1
    map = attribution_map((3, 4), seed=3)
    variants = [mask, mask[::-1], mask[:, ::-1], mask[::-1, ::-1]]
    found = imacs_chance(map, mask, IMACSSettings())
    assert (found.mean, found.sd) == pytest.approx(chance_oracle(map, mask, variants), abs=1e-6)


def test_chance_of_a_large_oblong_mask_does_not_turn_it() -> None:
    """Reduced to 128x128 it becomes square, but a turned mask would not fit the picture."""
    rows = np.repeat(np.arange(128) < 40, 2).astype(float)
    map, mask = np.repeat(rows[:, None], 384, 1), np.repeat(rows[:, None], 384, 1)
    inside, scores = np.arange(128) < 40, []
    for shift in range(128):
        shared = (np.roll(inside, shift) & inside).sum()
        scores.append(shared / 40 - 3 * (40 - shared) / 88)
    found = imacs_chance(map, mask, IMACSSettings())
    assert (found.mean, found.sd) == pytest.approx((np.mean(scores), np.std(scores)), abs=1e-6)


def test_z_counts_standard_deviations_above_chance() -> None:
    assert ChanceLevel(mean=-0.5, sd=0.25).z(0.5) == 4
    with pytest.raises(UndefinedFigure, match="no spread"):
        ChanceLevel(mean=-0.5, sd=0.0).z(0.5)
    mask = box((16, 16), (2, 7), (3, 8))
    chance = imacs_chance(mask, mask, IMACSSettings())
    assert chance.z(imacs(mask, mask)) > 3
    noise = np.random.default_rng(1).random((16, 16))
    assert abs(imacs_chance(noise, mask, IMACSSettings()).z(imacs(noise, mask))) < 3


@pytest.mark.parametrize("seed", range(5))
def test_js_distance_equals_scipys(seed: int) -> None:
    a, b = attribution_map((7, 5), seed), 40 * attribution_map((7, 5), seed + 10)
    a[0, 0] = b[2, 2] = 0
    expected = jensenshannon(a.ravel().astype(np.float64), b.ravel().astype(np.float64), base=2)
    assert 0.1 < expected < 1
    assert js_distance(a, b) == pytest.approx(expected, abs=1e-7)
    assert js_distance(b, a) == pytest.approx(expected, abs=1e-7)


def test_js_distance_is_0_for_equal_and_1_for_disjoint_maps() -> None:
    map = attribution_map((4, 4)).astype(np.float64)
    assert js_distance(map, 2 * map) == pytest.approx(0, abs=1e-7)
    assert js_distance(box((4, 4), (0, 2), (0, 4)), box((4, 4), (2, 4), (0, 4))) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("broken", [HALF_NAN, INFINITE, np.zeros((4, 4))], ids=["NaN", "infinite", "zero"])
def test_figures_of_broken_maps_are_undefined_and_never_zero(broken: np.ndarray) -> None:
    for figure in (
        lambda: js_distance(GOOD_MAP, broken),
        lambda: js_distance(broken, GOOD_MAP),
        lambda: energy(broken, GOOD_MASK),
        lambda: pointing(broken, GOOD_MASK),
    ):
        with pytest.raises(UndefinedFigure, match="map"):
            figure()


def test_js_distance_of_maps_of_different_size_is_undefined() -> None:
    with pytest.raises(UndefinedFigure, match="maps of 4x4 and 3x5 tokens"):
        js_distance(GOOD_MAP, np.ones((3, 5)))
    with pytest.raises(UndefinedFigure, match="maps of 2x8 and 8x2 tokens"):
        js_distance(np.ones((2, 8)), np.ones((8, 2)))


def test_energy_is_the_share_of_mass_inside() -> None:
    map = [[1, 2], [3, 4]]
    assert energy(map, box((2, 2), (0, 2), (1, 2))) == pytest.approx(0.6, abs=1e-9)
    # the mask covers a quarter of each upper token and all of the lower right one
    mask = box((4, 4), (0, 1), (0, 4)) * 0.5 + box((4, 4), (2, 4), (2, 4))
    assert energy(map, mask) == pytest.approx((0.25 * 1 + 0.25 * 2 + 4) / 10, abs=1e-9)
    assert energy(np.ones((5, 5)), box((5, 5), (0, 2), (0, 3))) == pytest.approx(6 / 25, abs=1e-9)


def test_pointing_asks_where_the_maximum_lies() -> None:
    map = [[1, 2], [3, 4]]
    assert pointing(map, box((2, 2), (1, 2), (1, 2))) is True
    assert pointing(map, box((2, 2), (0, 2), (0, 1))) is False
    assert pointing(map, box((4, 4), (2, 4), (3, 4))) is True  # half of the token
    assert pointing(map, box((4, 4), (2, 3), (3, 4))) is False  # a quarter of it


def test_a_score_with_each_sample_left_out() -> None:
    maps = np.random.default_rng(3).random((4, 2, 3))
    expected = [float(np.delete(maps, i, axis=0).mean(0).max()) for i in range(4)]
    np.testing.assert_allclose(left_out(lambda map: float(map.max()), list(maps)), expected)
    assert np.isnan(left_out(float, [1.0])).all()


def test_reference_lines_stand_in_the_order_that_makes_sense() -> None:
    centred, corner = (np.kron(box((16, 16), s, s), np.ones((4, 4))) for s in ((4, 12), (0, 5)))
    lines, off = (reference_lines(m, (16, 16), IMACSSettings()) for m in (centred, corner))
    assert set(lines) == {"constant", "random", "blob", "perfect"}
    assert lines["constant"] == off["constant"] == 0
    for each in (lines, off):
        assert 0.75 < each["perfect"] <= 1
        assert each["perfect"] > max(each["random"], each["blob"])
        assert each["random"] == pytest.approx(-0.84, abs=0.1)
    assert lines["blob"] > 0 > lines["random"]  # the blob happens to be right
    assert off["blob"] < 0  # and happens to be wrong
    assert lines == reference_lines(centred, (16, 16), IMACSSettings())


def test_the_blob_is_a_gaussian_a_quarter_of_the_sides_wide() -> None:
    mask = box((6, 8), (1, 4), (2, 5))
    y, x = (np.arange(6) + 0.5) / 6, (np.arange(8) + 0.5) / 8
    blob = np.exp(-8 * ((y[:, None] - 0.5) ** 2 + (x - 0.5) ** 2))
    assert reference_lines(mask, (6, 8), IMACSSettings())["blob"] == pytest.approx(imacs_oracle(blob, mask), abs=1e-6)


def test_settings_are_named_in_full() -> None:
    expected = dict(penalty=3.0, threshold=0.4, polarity="direct", premask=False)
    assert IMACSSettings().to_dict() == expected
    assert IMACSSettings.authors("g2r").to_dict() == {**expected, "premask": True}
    assert IMACSSettings.authors(Direction.R2G).to_dict() == {**expected, "polarity": "inverted"}


def large_mask() -> np.ndarray:
    y, x = np.mgrid[:1024, :768] / 1024
    return ((x - 0.4) ** 2 + (y - 0.45) ** 2 < 0.25**2) | ((x > 0.6) & (y > 0.7))


@pytest.mark.parametrize("grid", [(64, 48), (32, 24), (7, 5)])
def test_a_large_mask_is_scored_at_a_few_pixels_a_token(grid: tuple[int, int]) -> None:
    mask = large_mask()
    map = np.random.default_rng(0).random(grid) ** 3 + region_weight(torch.from_numpy(mask), grid).view(grid).numpy()
    small = mask.reshape(256, 4, 192, 4).mean((1, 3))
    inside = Inside(mask, 256)
    assert score_imacs(map, inside, IMACSSettings()) == pytest.approx(imacs_oracle(map, small), abs=1e-9)
    assert score_imacs(map, inside, IMACSSettings()) == pytest.approx(imacs(map, mask), abs=0.01)
    assert energy(map, inside) == pytest.approx(energy(map, mask), abs=1e-12)
    assert pointing(map, inside) == pointing(map, mask)


def test_a_small_mask_is_scored_as_it_is() -> None:
    mask = np.zeros((256, 100), dtype=bool)
    mask[30:90, 20:70] = True
    map = np.random.default_rng(0).random((16, 16))
    for settings in (IMACSSettings(), IMACSSettings(polarity="inverted"), IMACSSettings(premask=True)):
        assert score_imacs(map, Inside(mask, 256), settings) == score_imacs(map, mask, settings)
    assert Inside.of(inside := Inside(mask)) is inside


class LargestOutput(TorchFunctionMode):
    """The most numbers that any operation gave back."""

    numbers = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numbers = max(self.numbers, out.numel())
        return out


def test_a_pair_looks_at_the_pixels_of_its_mask_once_not_for_each_layer() -> None:
    mask, map = large_mask(), np.random.default_rng(0).random((64, 48))
    given = {"observation": None, "pair": None, "reference": 0, "copying_layer": "up", "baseline": {}}
    view = PairView(**given, settings=IMACSSettings())
    with LargestOutput() as largest:
        first = view.imacs(map, mask), view.imacs_z(map, mask), view.energy(map, mask)
        assert largest.numbers >= mask.size
        largest.numbers = 0
        assert (view.imacs(map, mask), view.imacs_z(map, mask), view.energy(map, mask)) == first
        view.imacs_without_each(np.stack([map, map**2]), mask)
    assert 0 < largest.numbers <= 256 * 256
    assert first[0] == pytest.approx(imacs(map, mask), abs=0.01)
    other = ~mask
    assert view.imacs(map, other) == pytest.approx(imacs(map, other), abs=0.01)
