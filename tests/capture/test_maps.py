"""Levels of maps against a float64 loop over the samples (sampler step, layer, head), written from SPEC.

Shapes: B images, N heads, G generated tokens, R reference tokens, g r pooled ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from i2am_debug.capture.accumulate import Accumulator
from i2am_debug.capture.attention import Attribution, map_places
from i2am_debug.capture.maps import AttributionMaps
from i2am_debug.capture.plan import CapturePlan
from i2am_debug.capture.readout import _pooled, resize
from i2am_debug.errors import UndefinedFigure

IMAGES = 2
STEPS, TOTAL = (0, 3, 5, 9), 10  # groups of two steps: 0, 1, 2 and 4 hold one each, 3 none
NAMES = {
    "r2g": "r2g_BNG",
    "r2g_centred": "r2g_centred_BNG",
    "r2g_object_mass": "r2g_object_mass_BNG",
    "g2r": "g2r_BNR",
    "g2r_region": "g2r_region_BNR",
}


@dataclass
class Rows:
    """Each patch's distribution over reference patches: (images, g, r), and (images, heads, g, r)."""

    mean_Bgr: torch.Tensor
    heads_BNgr: torch.Tensor


@dataclass
class Layer:
    generated: tuple[int, int]
    reference: tuple[int, int] | None
    weights: dict[int, float]  # head index → how many heads it stands for
    tokens: int = 0  # of the reference, where it has no grid

    @property
    def R(self) -> int:
        return self.tokens or self.reference[0] * self.reference[1]


# The finest generated grid is the first layer's, the finest reference grid the second's; grids are not square.
LAYERS = {
    "down": Layer((6, 8), (2, 3), {0: 1.0, 1: 1.0}),
    "up": Layer((3, 4), (4, 6), {0: 1.0, 1: 1.0, 2: 1.0}),
}
DRAWN_HEADS = {
    "down": Layer((6, 8), (2, 3), {0: 1.0, 3: 3.0}),
    "up": Layer((3, 4), (4, 6), {0: 2.5, 1: 1.0, 4: 2.5}),
}


def smooth(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    """Positive and summing to 1; flat enough that bicubic enlargement never falls below 0."""
    x = 1 + 0.3 * rng.random(shape)
    return torch.tensor(x / x.sum(-1, keepdims=True), dtype=torch.float32)


def attribution(rng: np.random.Generator, layer: Layer, **changed: torch.Tensor) -> Attribution:
    N, G, R = len(layer.weights), layer.generated[0] * layer.generated[1], layer.R
    values = {name: smooth(rng, IMAGES, N, G) for name in ("r2g", "r2g_centred", "r2g_object_mass")}
    values |= {name: smooth(rng, IMAGES, N, R) for name in ("g2r", "g2r_region")}
    values |= {"information": torch.tensor(rng.random((IMAGES, N, 1)), dtype=torch.float32), **changed}
    places = map_places(G, R, True)
    return Attribution(
        maps_BNX=torch.cat([values[name] for name in places], -1),
        places=places,
        log_normaliser_BNG=torch.zeros(IMAGES, N, G),
    )


def rows_of(rng: np.random.Generator, layer: Layer) -> Rows:
    """As `pooled_rows` makes them; these grids are small enough not to be pooled."""
    G, R, weights = layer.generated[0] * layer.generated[1], layer.R, torch.tensor(list(layer.weights.values()))
    heads = smooth(rng, IMAGES, len(weights), G, R)
    return Rows(mean_Bgr=torch.einsum("bngr,n->bgr", heads, weights / weights.sum()), heads_BNgr=heads)


@dataclass
class Run:
    """What was fed, and the maps that came out for one image."""

    layers: dict[str, Layer]
    fed: dict[tuple[str, int], tuple[Attribution, Rows]]
    maps: AttributionMaps
    image: int


def run(layers: dict[str, Layer], *, steps: tuple[int, ...] = STEPS, image: int = 1, **plan: Any) -> Run:
    rng, accumulator, fed = np.random.default_rng(0), Accumulator(CapturePlan.full(**plan)), {}
    for step in steps:
        for name, layer in layers.items():
            fed[name, step] = attribution(rng, layer), rows_of(rng, layer)
            add(accumulator, name, layer, step, *fed[name, step])
    return Run(layers, fed, accumulator.maps(image, TOTAL), image)


def add(accumulator: Accumulator, name: str, layer: Layer, step: int, found: Attribution, rows: Rows) -> None:
    grids = layer.generated, layer.reference or (1, layer.R)
    sums = accumulator.rows(
        name,
        step,
        grids,
        layer.weights,
        images=IMAGES,
        all_heads=1 + max(layer.weights),
        device=torch.device("cpu"),
    )
    generated, reference = (
        torch.arange(n) if p.wide_back is None else p.wide_back
        for n, p in zip(sums.mean_Bgr.shape[1:], sums.patches, strict=True)
    )
    sums.mean_Bgr[:, generated[:, None], reference] += rows.mean_Bgr
    for i, (head, weight) in enumerate(layer.weights.items()):
        sums.heads_BNgr[:, head] += weight * rows.heads_BNgr[:, i]
        sums.step_Bgr.add_(rows.heads_BNgr[:, i], alpha=weight)
    accumulator.add(name, step, (layer.generated, layer.reference), layer.weights, found)


def cubic(x: float) -> float:
    a, x = -0.75, abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def linear(x: float) -> float:
    return max(0.0, 1 - abs(x))


def enlarge(maps: np.ndarray, grid: tuple[int, int], kernel: Any = cubic) -> np.ndarray:
    """(…, h, w) on another grid: half-pixel centres, borders repeated."""
    return side(maps.shape[-2], grid[0], kernel) @ maps @ side(maps.shape[-1], grid[1], kernel).T


@cache
def side(n: int, wanted: int, kernel: Any) -> np.ndarray:
    out = np.zeros((wanted, n))
    for i in range(wanted):
        x = (i + 0.5) * n / wanted - 0.5
        for j in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
            out[i, min(max(j, 0), n - 1)] += kernel(x - j)
    return out


def samples(
    run: Run, name: str, *, common: tuple[int, int] | None, weighting: str
) -> list[tuple[int, str, int, Any, Any]]:
    """Every sample: (step, layer, head, weight, map), the map on the common grid (or its own) in float64."""
    out = []
    for (layer, step), (found, _) in run.fed.items():
        grid = run.layers[layer].generated if name.startswith("r2g") else run.layers[layer].reference
        for i, (head, weight) in enumerate(run.layers[layer].weights.items()):
            a = getattr(found, NAMES[name])[run.image, i].double().numpy().reshape(grid)
            if common is not None:
                a = a / a.mean() if weighting == "equal" else a
                a = np.maximum(enlarge(a, common), 0)
            out.append((step, layer, head, weight, a))
    return out


def mean(chosen: list[tuple[int, str, int, Any, Any]]) -> np.ndarray:
    """The mean map of samples, each counted as often as the heads it stands for; sum 1."""
    total = sum(weight * a for *_, weight, a in chosen)
    return total / total.sum()


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 2e-6 * expected.max()


COMMON = {"r2g": (6, 8), "r2g_centred": (6, 8), "r2g_object_mass": (6, 8), "g2r": (4, 6), "g2r_region": (4, 6)}


@pytest.mark.parametrize("layers", [LAYERS, DRAWN_HEADS], ids=["all heads", "drawn heads"])
@pytest.mark.parametrize("weighting", ["equal", "paper"])
@pytest.mark.parametrize("name", NAMES)
def test_every_level_is_the_mean_of_its_samples(layers: dict[str, Layer], weighting: Any, name: str) -> None:
    r = run(layers, layer_weighting=weighting)
    maps = getattr(r.maps, name)
    every = samples(r, name, common=COMMON[name], weighting=weighting)
    assert_close(maps.unified, mean(every))
    assert maps.by_step.shape[0] == len(STEPS)
    for i, step in enumerate(STEPS):
        assert_close(maps.by_step[i], mean([s for s in every if s[0] == step]))
    assert maps.by_time.shape[0] == 5
    for group in range(5):
        chosen = [s for s in every if s[0] in (2 * group, 2 * group + 1)]
        if chosen:
            assert_close(maps.by_time[group], mean(chosen))
        else:
            assert group == 3
            assert np.isnan(maps.by_time[group]).all()
    for head in range(len(maps.by_head)):
        chosen = [s for s in every if s[2] == head]
        if chosen:
            assert_close(maps.by_head[head], mean(chosen))
        else:
            assert np.isnan(maps.by_head[head]).all()
    assert {s[2] for s in every} <= set(range(len(maps.by_head)))
    own = samples(r, name, common=None, weighting=weighting)
    assert tuple(maps.by_layer) == tuple(layers) == r.maps.layers
    for layer, found in maps.by_layer.items():
        assert_close(found, mean([s for s in own if s[1] == layer]))


@pytest.mark.parametrize("layers", [LAYERS, DRAWN_HEADS], ids=["all heads", "drawn heads"])
@pytest.mark.parametrize("name", NAMES)
def test_each_head_of_each_layer_has_its_map(layers: dict[str, Layer], name: str) -> None:
    r = run(layers)
    found = getattr(r.maps, name).by_layer_head
    assert r.maps.heads == {layer: tuple(given.weights) for layer, given in layers.items()}
    if name not in ("r2g", "g2r"):
        assert found == {}
        return
    own = samples(r, name, common=None, weighting="equal")
    assert tuple(found) == tuple(layers)
    for layer, maps in found.items():
        assert len(maps) == len(r.maps.heads[layer])
        for one, head in zip(maps, r.maps.heads[layer], strict=True):
            assert_close(one, mean([s for s in own if s[1:3] == (layer, head)]))


def test_maps_of_single_heads_are_pooled_to_sixteen_tokens_a_side() -> None:
    maps = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = maps.reshape(3, 16, 2, 16, 3).mean((2, 4))
    np.testing.assert_allclose(_pooled(maps).numpy(), expected.numpy(), rtol=1e-5)
    assert _pooled(torch.rand(2, 7, 20)).shape == (2, 7, 16) and _pooled(torch.rand(2, 1, 257)).shape == (2, 1, 16)


def test_the_two_weightings_differ() -> None:
    """Otherwise the test above would not tell them apart."""
    equal, paper = (run(LAYERS, layer_weighting=w).maps.r2g.unified for w in ("equal", "paper"))
    assert np.abs(equal - paper).max() > 1e-3 * equal.max()


@pytest.mark.parametrize("image", range(IMAGES))
def test_images_of_a_batch_are_kept_apart(image: int) -> None:
    r = run(LAYERS, image=image)
    assert_close(r.maps.g2r.unified, mean(samples(r, "g2r", common=(4, 6), weighting="equal")))


def test_all_maps_sum_to_one() -> None:
    maps = run(DRAWN_HEADS).maps
    for name in NAMES:
        direction = getattr(maps, name)
        stacks = [direction.unified[None], direction.by_step, direction.by_time, direction.by_head]
        for stack in (*stacks, *(m[None] for m in direction.by_layer.values())):
            sums = stack.sum((-2, -1), dtype=np.float64)
            np.testing.assert_allclose(sums[~np.isnan(sums)], 1, atol=1e-5)
            assert (stack[~np.isnan(sums)] >= 0).all()
    for rows in (maps.rows.unified, maps.rows.by_time, maps.rows.by_head, *(r for _, r in maps.rows.by_layer.values())):
        sums = rows.sum(-1, dtype=np.float64)
        np.testing.assert_allclose(sums[~np.isnan(sums)], 1, atol=1e-5)


def test_negative_lobes_of_the_enlargement_are_cut_off() -> None:
    spike = torch.zeros(1, 4, 5)
    spike[0, 1, 2] = 1
    expected = enlarge(spike[0].double().numpy(), (9, 11))
    assert expected.min() < -0.01
    np.testing.assert_allclose(resize(spike, (9, 11))[0], np.maximum(expected, 0), atol=1e-6)


def test_information_is_the_mean_over_steps_and_weighted_heads() -> None:
    r = run(DRAWN_HEADS)
    for name, layer in DRAWN_HEADS.items():
        bits = np.array([r.fed[name, s][0].information_BN[r.image].double().numpy() for s in STEPS])
        heads, weights = list(layer.weights), list(layer.weights.values())
        found = r.maps.information[name]
        np.testing.assert_allclose(found[heads], bits.mean(0), atol=1e-6)
        assert np.isnan(np.delete(found, heads)).all()
        by_step = np.average(bits, axis=1, weights=weights)
        np.testing.assert_allclose(r.maps.information_by_step[name], by_step, atol=1e-6)
        assert r.maps.layer_information[name] == pytest.approx(by_step.mean(), abs=1e-6)


def rows_on(rows: np.ndarray, own: tuple[tuple[int, int], ...], wanted: tuple[tuple[int, int], ...]) -> np.ndarray:
    """(g, r) rows on other grids, bilinear along both, each row a distribution again."""
    x = rows.reshape(*own[0], *own[1])
    x = enlarge(x, wanted[1], linear)
    x = enlarge(x.transpose(2, 3, 0, 1), wanted[0], linear).transpose(2, 3, 0, 1)
    x = x.reshape(wanted[0][0] * wanted[0][1], -1)
    return x / x.sum(-1, keepdims=True)


@pytest.mark.parametrize("layers", [LAYERS, DRAWN_HEADS], ids=["all heads", "drawn heads"])
def test_specific_rows_are_the_mean_of_their_samples(layers: dict[str, Layer]) -> None:
    r = run(layers)
    wanted, every, own_rows = ((6, 8), (4, 6)), [], []
    for (name, step), (_, rows) in r.fed.items():
        grids = layers[name].generated, layers[name].reference
        for i, (head, weight) in enumerate(layers[name].weights.items()):
            row = rows.heads_BNgr[r.image, i].double().numpy()
            every.append((step, name, head, weight, rows_on(row, grids, wanted)))
            own_rows.append((step, name, head, weight, rows_on(row, grids, (grids[0], wanted[1]))))

    def row_mean(chosen: list) -> np.ndarray:
        total = sum(weight * x for *_, weight, x in chosen)
        return total / total.sum(-1, keepdims=True)

    found = r.maps.rows
    assert (found.generated_grid, found.reference_grid) == wanted == found.small_grids
    assert_close(found.unified, row_mean(every))
    for name, (grid, rows) in found.by_layer.items():
        assert grid == layers[name].generated
        assert_close(rows, row_mean([s for s in own_rows if s[1] == name]))
    for group in (0, 1, 2, 4):
        assert_close(found.by_time[group], row_mean([s for s in every if s[0] // 2 == group]))
    assert np.isnan(found.by_time[3]).all()
    heads = {h for layer in layers.values() for h in layer.weights}
    for head in range(len(found.by_head)):
        if head in heads:
            assert_close(found.by_head[head], row_mean([s for s in every if s[2] == head]))
        else:
            assert np.isnan(found.by_head[head]).all()


def test_specific_picks_the_row_of_the_patch() -> None:
    """Generated patch i of the only layer looks at reference patch 23 − i of 24 and nowhere else."""
    layer, accumulator = Layer((4, 6), (3, 8), {0: 1.0}), Accumulator(CapturePlan())
    rows = torch.eye(24).flip(1).expand(IMAGES, 1, -1, -1)
    found = attribution(np.random.default_rng(0), layer)
    add(accumulator, "up", layer, 0, found, Rows(mean_Bgr=rows[:, 0], heads_BNgr=rows))
    maps = accumulator.maps(0, 1)
    for row, col in ((0, 0), (1, 2), (3, 5)):
        for chosen in (None, "up"):
            specific = maps.specific(row, col, layer=chosen)
            assert specific.shape == (3, 8)
            expected = np.zeros(24)
            expected[23 - (row * 6 + col)] = 1
            np.testing.assert_allclose(specific.ravel(), expected, atol=1e-6)


def test_specific_of_a_layer_counts_patches_on_its_own_grid() -> None:
    maps = run(LAYERS).maps
    np.testing.assert_array_equal(maps.specific(2, 3, layer="up").ravel(), maps.rows.by_layer["up"][1][2 * 4 + 3])
    np.testing.assert_array_equal(maps.specific(5, 7).ravel(), maps.rows.unified[-1])
    assert maps.specific(0, 0, layer="up").shape == (4, 6)


@pytest.mark.parametrize(
    ("row", "col", "layer"), [(6, 0, None), (0, 8, None), (-1, 0, None), (3, 0, "up"), (0, 4, "up")]
)
def test_patches_outside_the_grid_are_refused(row: int, col: int, layer: str | None) -> None:
    grid = "6x8" if layer is None else "3x4"
    with pytest.raises(IndexError, match=rf"\({row}, {col}\) lies outside the {grid} grid"):
        run(LAYERS, steps=(0,)).maps.specific(row, col, layer=layer)


@pytest.mark.parametrize("image", [-1, IMAGES])
def test_an_image_outside_the_batch_is_refused(image: int) -> None:
    with pytest.raises(IndexError, match=f"image {image} of a batch of {IMAGES}"):
        run(LAYERS, steps=(0,), image=image)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Layer((3, 4), None, {0: 1.0}, tokens=1), "one reference token"),
        (Layer((3, 4), (1, 1), {0: 1.0}), "one reference token"),
    ],
)
def test_with_one_reference_token_only_r2g_exists(layer: Layer, reason: str) -> None:
    r = run({"only": layer})
    assert r.maps.undefined_g2r == reason
    for figure in (lambda: r.maps.g2r, lambda: r.maps.g2r_region, lambda: r.maps.specific(0, 0)):
        with pytest.raises(UndefinedFigure) as caught:
            figure()
        assert caught.value.reason == reason
        assert str(caught.value) == f"undefined: {reason}"
    for name in ("r2g", "r2g_centred"):
        assert_close(getattr(r.maps, name).unified, mean(samples(r, name, common=(3, 4), weighting="equal")))


def test_tokens_without_a_grid_are_one_row_and_no_mask_can_be_laid_over_them() -> None:
    r = run({"only": Layer((3, 4), None, {0: 1.0}, tokens=7)})
    assert r.maps.undefined_g2r is None and r.maps.undefined_place == "the reference tokens have no grid"
    assert r.maps.g2r.unified.shape == (1, 7) and r.maps.specific(0, 0).shape == (1, 7)
    in_a_row = run({"only": Layer((3, 4), (1, 7), {0: 1.0})}).maps
    np.testing.assert_array_equal(r.maps.g2r.unified, in_a_row.g2r.unified)
    np.testing.assert_array_equal(r.maps.rows.unified, in_a_row.rows.unified)
    with pytest.raises(UndefinedFigure, match="the reference tokens have no grid"):
        _ = r.maps.r2g_object_mass


def test_with_one_reference_token_object_mass_says_nothing_either() -> None:
    """Every generated token's row is the constant 1, so its share on the object is the same for all."""
    with pytest.raises(UndefinedFigure) as caught:
        _ = run({"only": Layer((3, 4), (1, 1), {0: 1.0})}).maps.r2g_object_mass
    assert caught.value.reason == "one reference token"


def test_object_mass_without_an_object_is_undefined() -> None:
    accumulator, rng = Accumulator(CapturePlan()), np.random.default_rng(0)
    layer = LAYERS["up"]
    found = attribution(rng, layer)
    without = {name: place for name, place in found.places.items() if name != "r2g_object_mass"}
    found = replace(found, places=without, maps_BNX=found.maps_BNX[..., : without["information"].stop])
    add(accumulator, "up", layer, 0, found, rows_of(rng, layer))
    with pytest.raises(UndefinedFigure) as caught:
        _ = accumulator.maps(0, 1).r2g_object_mass
    assert caught.value.reason == "no reference mask"


@pytest.mark.parametrize("forwards", [2, 3])
def test_several_forwards_of_one_step_count_as_their_mean(forwards: int) -> None:
    accumulator, rng, layer = Accumulator(CapturePlan()), np.random.default_rng(0), LAYERS["up"]
    found = [attribution(rng, layer) for _ in range(forwards)]
    for one in found:
        add(accumulator, "up", layer, 0, one, rows_of(rng, layer))
    maps, expected = accumulator.maps(0, 1), sum(f.r2g_BNG[0].double().numpy().mean(0) for f in found) / forwards
    for level in (maps.r2g.by_step[0], maps.r2g.unified, maps.r2g.by_time[0], maps.r2g.by_layer["up"]):
        assert_close(level.ravel(), expected)
    bits = np.mean([f.information_BN[0].mean() for f in found])
    assert maps.layer_information["up"] == pytest.approx(bits, abs=1e-6)


@pytest.mark.parametrize(("total", "groups"), [(50, 5), (20, 5), (7, 3)])
def test_time_groups_are_equal_runs_of_consecutive_steps(total: int, groups: int) -> None:
    """SPEC: 5 groups of 10 out of 50 steps, group 0 the noisiest. Each step's map shows its own number."""
    accumulator, layer = Accumulator(CapturePlan(time_groups=groups)), Layer((1, 2), (1, 2), {0: 1.0})
    rng, right = np.random.default_rng(0), [(s + 1) / (total + 1) for s in range(total)]
    for step, value in enumerate(right):
        map = torch.tensor([1 - value, value]).expand(IMAGES, 1, 2)
        found = attribution(rng, layer, r2g=map)
        add(accumulator, "up", layer, step, found, rows_of(rng, layer))
    maps = accumulator.maps(0, total)
    assert (maps.steps, maps.total_steps) == (tuple(range(total)), total)
    for group in range(groups):
        own = [right[s] for s in range(total) if group * total <= s * groups < (group + 1) * total]
        assert maps.r2g.by_time[group, 0, 1] == pytest.approx(np.mean(own), abs=1e-6)


def test_without_a_total_it_is_what_was_seen() -> None:
    accumulator, rng, layer = Accumulator(CapturePlan()), np.random.default_rng(0), LAYERS["up"]
    for step in range(4):
        add(accumulator, "up", layer, step, attribution(rng, layer), rows_of(rng, layer))
    assert accumulator.images == IMAGES
    assert accumulator.maps(0, None).total_steps == 4


def test_big_rows_are_brought_to_32_and_16() -> None:
    layer, rng, accumulator = Layer((40, 2), (1, 33), {0: 1.0}), np.random.default_rng(0), Accumulator(CapturePlan())
    rows = Rows(mean_Bgr=smooth(rng, IMAGES, 64, 32), heads_BNgr=smooth(rng, IMAGES, 1, 32, 16))
    add(accumulator, "up", layer, 0, attribution(rng, layer), rows)
    found = accumulator.maps(1, 1).rows
    assert (found.generated_grid, found.reference_grid, found.small_grids) == ((32, 2), (1, 32), ((16, 2), (1, 16)))
    assert_close(found.unified, rows.mean_Bgr[1].double().numpy())
    assert_close(found.by_time[0], rows.heads_BNgr[1, 0].double().numpy())


def test_a_layer_that_was_not_looked_at_is_named():
    maps = run(LAYERS, steps=(0,)).maps
    with pytest.raises(KeyError, match=r"layer 'nowhere' was not looked at; these were: "):
        maps.specific(0, 0, layer="nowhere")
