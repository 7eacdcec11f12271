"""Kept patches and their own places, and the figures of a pair that has a kept region in place of its masks."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from row_sums import pooled_rows

from i2am_debug import CapturePlan, Undefined
from i2am_debug.demo.inpainting.pairs import validation_pairs
from i2am_debug.errors import UndefinedFigure
from i2am_debug.evaluation.evaluator import Evaluator
from i2am_debug.figures.pair_view import PairView
from i2am_debug.figures.places import share_at_own_place
from i2am_debug.figures.scores import IMACSSettings, energy, imacs
from i2am_debug.figures.scoring import figures_of
from i2am_debug.grids import Grid
from i2am_debug.pairs.collection import ValidationPairs

ALL = np.ones((64, 64), dtype=bool)


def rows_to(generated: Grid, reference: Grid, places: Any) -> np.ndarray:
    """(g, r) rows with their maximum at `places(row, column)` → (row, column) of the reference, on a little noise."""
    rows = np.random.default_rng(0).random((generated[0] * generated[1], reference[0] * reference[1])) * 0.1
    for i in range(generated[0]):
        for j in range(generated[1]):
            a, b = places(i, j)
            rows[i * generated[1] + j, a * reference[1] + b] = 1
    return rows / rows.sum(1, keepdims=True)


def near(generated: Grid, reference: Grid, patch: tuple[int, int], found: tuple[int, int]) -> bool:
    """The definition again, in fractions, for grids that need no pooling."""
    return all(
        abs(Fraction(2 * p + 1, 2 * g) - Fraction(2 * f + 1, 2 * r)) <= Fraction(1, min(g, r))
        for p, f, g, r in zip(patch, found, generated, reference, strict=True)
    )


@pytest.mark.parametrize(
    ("generated", "reference"), [((8, 8), (8, 8)), ((6, 9), (8, 5)), ((4, 4), (12, 3)), ((7, 1), (5, 2))]
)
def test_places_are_near_as_defined(generated: Grid, reference: Grid) -> None:
    random = np.random.default_rng(1)
    found = {
        (i, j): (int(random.integers(reference[0])), int(random.integers(reference[1])))
        for i in range(generated[0])
        for j in range(generated[1])
    }
    for kept in (ALL, np.arange(64)[:, None] * np.ones(64) < 32):
        inside = [p for p in found if kept is ALL or (p[0] + 0.5) / generated[0] <= 0.5]
        expected = np.mean([near(generated, reference, p, found[p]) for p in inside])
        rows = rows_to(generated, reference, lambda i, j: found[i, j])
        assert share_at_own_place(rows, generated, reference, kept) == pytest.approx(expected)


def test_on_equal_grids_it_is_the_patch_and_its_neighbours() -> None:
    for shift, share in (((0, 0), 1.0), ((1, 1), 1.0), ((0, 2), 0.0), ((-2, 0), 0.0)):
        rows = rows_to((9, 9), (9, 9), lambda i, j, s=shift: ((i + s[0]) % 9, (j + s[1]) % 9))
        inner = np.zeros((9, 9), dtype=bool)
        inner[2:7, 2:7] = True
        assert share_at_own_place(rows, (9, 9), (9, 9), inner) == share
    mirrored = rows_to((9, 9), (9, 9), lambda i, j: (i, 8 - j))
    assert share_at_own_place(mirrored, (9, 9), (9, 9), np.ones((9, 9), dtype=bool)) == pytest.approx(1 / 9)


def test_chance_is_nine_patches() -> None:
    rows = np.random.default_rng(2).random((1024, 1024))
    assert share_at_own_place(rows, (32, 32), (32, 32), ALL) == pytest.approx(9 / 1024, abs=0.006)


@pytest.mark.parametrize("reference", [(64, 64), (55, 74), (74, 55), (33, 100), (48, 31)])
@pytest.mark.parametrize("generated", [(64, 64), (40, 70), (31, 33)])
def test_pooled_rows_of_a_model_that_copies_stay_within_one_patch(generated: Grid, reference: Grid) -> None:
    """Every token of the generated picture looks at the reference's token at its own place; on any two grids."""

    def codes(grid: Grid) -> torch.Tensor:  # nearest places have the largest product
        y, x = torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in grid), indexing="ij")
        return torch.stack([y, x], -1).view(1, 1, -1, 2)

    q, k = codes(generated), codes(reference)
    keys = torch.cat([k, -(k**2).sum(-1, keepdim=True) / 2], -1)  # −|q − k|² / 2 but for what q alone adds
    queries = torch.cat([q, torch.ones_like(q[..., :1])], -1)
    rows = pooled_rows(queries, keys, generated, reference, scale=1e5).mean_Bgr[0].numpy()
    assert share_at_own_place(rows, generated, reference, ALL) == 1.0
    high, wide = (min(n, 32) for n in reference)
    far = np.roll(rows.reshape(-1, high, wide), 6, 2).reshape(rows.shape)
    assert share_at_own_place(far, generated, reference, ALL) == 0.0


def test_what_has_no_place() -> None:
    rows = rows_to((4, 4), (4, 4), lambda i, j: (i, j))
    speck = np.zeros((64, 64), dtype=bool)
    speck[0, 0] = True
    with pytest.raises(UndefinedFigure, match="no patch is kept for the greater part"):
        share_at_own_place(rows, (4, 4), (4, 4), speck)
    rows[3, 2] = np.nan
    with pytest.raises(UndefinedFigure, match="not finite"):
        share_at_own_place(rows, (4, 4), (4, 4), ALL)


# -- the figures of a pair -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def view(tiny_pipeline: Any) -> PairView:
    """A pair with a kept region, seen by the evaluator."""
    pair = validation_pairs(1, seed=3)[0]
    kept = dataclasses.replace(pair, mask=None, reference_mask=None, kept=pair.mask)

    def call(pipeline: Any, looked_at: Any, generator: torch.Generator) -> Any:
        hole = pair.mask_image  # the tiny model paints into one; what counts as kept is another matter
        return pipeline(looked_at.target, hole, looked_at.reference, num_inference_steps=2, generator=generator)

    evaluator = Evaluator(pairs=ValidationPairs([kept]), plan=CapturePlan.full(), call=call)
    (observation,) = evaluator.observe(tiny_pipeline, [0])
    maps = observation.maps
    return PairView(
        observation=observation,
        pair=kept,
        reference=0,
        copying_layer=max(maps.layer_information, key=lambda layer: maps.layer_information[layer]),
        settings=IMACSSettings(),
        baseline={},
    )


def test_the_figures_are_those_of_the_kept_region(view: PairView) -> None:
    kept, maps, found = view.pair.kept, view.maps, figures_of(view)
    assert kept is not None
    assert found["imacs_g"] == imacs(maps.r2g.unified, kept)
    assert found["imacs_r"] == imacs(maps.g2r.unified, kept)  # reference and target are of one size
    assert found["imacs_r_hole"] == imacs(maps.g2r_region.unified, kept)
    assert found["energy_r_hole"] == energy(maps.g2r_region.unified, kept)
    assert found["imacs_g_object_mass"] == imacs(maps.r2g_object_mass.unified, kept)
    assert np.abs(maps.g2r_region.unified - maps.g2r.unified).max() > 1e-4, "it is of the kept region's tokens"
    layer = view.copying_layer
    grid, rows = maps.rows.by_layer[layer]
    assert maps.r2g.by_layer[layer].shape == grid and maps.g2r.by_layer[layer].shape == maps.rows.reference_grid
    own = share_at_own_place(rows, grid, maps.rows.reference_grid, kept)
    assert found["kept_place"] == found[f"layer/{layer}/kept_place"] == own
    assert found["edited_mass"] == Undefined("no joint attention: 1 by construction")


def test_the_changed_region_is_inside_a_hole_and_outside_what_is_kept(view: PairView) -> None:
    masses = {"reference_mass_inside": {"a": 0.5, "b": 0.7}, "reference_mass_outside": {"a": 0.1, "b": 0.2}}
    parts = {f"_{name}": getattr(view.maps, f"_{name}") for name in ("g2r", "g2r_region", "r2g_object_mass")}
    maps = dataclasses.replace(view.maps, **parts, **masses)
    both = dataclasses.replace(view, observation=dataclasses.replace(view.observation, maps=maps))
    assert both.edited_mass() == pytest.approx(0.15)
    hole = dataclasses.replace(both, pair=dataclasses.replace(view.pair, mask=view.pair.kept, kept=None))
    assert hole.edited_mass() == pytest.approx(0.6)


def test_a_pair_without_a_kept_region_says_why(view: PairView) -> None:
    why = "the target differs from the reference everywhere"
    bare = dataclasses.replace(view.pair, kept=None, undefined_kept=why)
    found = figures_of(dataclasses.replace(view, pair=bare))
    assert found["imacs_g"] == Undefined(f"no mask and no kept region ({why})")
    assert found["imacs_r"] == Undefined(f"no reference mask and no kept region ({why})")
    assert found["kept_place"] == Undefined(f"no kept region ({why})")
    never = figures_of(dataclasses.replace(view, pair=dataclasses.replace(bare, undefined_kept=None)))
    assert (never["imacs_g"], never["edited_mass"]) == (Undefined("no mask"),) * 2
    assert never["kept_place"] == Undefined("no kept region (none was given or derived)")
