"""What every family must keep: both directions and the reference mass as the oracle has them, for one image and for three,
with guidance and without; outputs to the bit; planted copies found where they were planted; no model that is not its own.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CASES
from contract import Case, planted_copies
from oracle import Recorded, assert_maps_equal
from test_capture import left_behind

from i2am_debug import trace
from i2am_debug.capture.trace import find_denoiser
from i2am_debug.families.registry import find_family, registered

FAMILIES = pytest.mark.parametrize("name", CASES)
WAYS = [(name, guided) for name, make in CASES.items() for guided in make().ways]


def numbers(tokens, count: int) -> list[int]:
    """Of the tokens that a slice or a list means."""
    return list(range(count))[tokens] if isinstance(tokens, slice) else list(tokens)


def test_every_registered_family_is_held_to_it() -> None:
    assert set(CASES) == {family.name for family in registered()}
    assert all(make().family.name == name for name, make in CASES.items())


def mass(product: Recorded, row: int, queries, keys) -> float:
    """Share of the generated tokens' own attention, over all keys, on the reference's."""
    return float(product.weights([row], queries)[..., keys].sum(-1).mean())


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize(("name", "guided"), WAYS, ids=[f"{n}{'-guided' * g}" for n, g in WAYS])
def test_maps_and_mass_are_those_of_the_conditional_rows_and_outputs_those_without_a_trace(
    name, guided, images
) -> None:
    case = CASES[name]()
    model = case.model()
    with case.recorder(case.modules(model)) as made:
        plain = case.run(model, images, guided)
    with trace(model, family=case.family) as t:
        seen = case.run(model, images, guided)
    assert all(map(torch.equal, plain, seen)), "what is looked at is altered"
    assert left_behind(find_denoiser(model)) == []
    products = {layer: case.products(found, guided) for layer, found in made.items()}
    first = next(iter(products.values()))[0]
    assert t.images == images and t.references == tuple(range(len(case.keys(first))))
    for image in range(images):
        row = case.row(image, images, guided)
        for number in t.references:
            maps = t.maps(image, number)
            assert (maps.undefined_place is None) == case.has_grid and len(maps.steps) == maps.total_steps == 2
            if case.has_grid:
                truth = {
                    layer: [p.logits([row], case.queries(p), case.keys(p)[number])[0] for p in found]
                    for layer, found in products.items()
                }
                assert_maps_equal(maps, truth)
            else:
                assert_rows_equal(case, maps, products, row)
            wanted = {
                layer: np.mean([mass(p, row, case.queries(p), case.keys(p)[number]) for p in found])
                for layer, found in products.items()
            }
            assert maps.reference_mass == pytest.approx(wanted if case.joint else {}, rel=1e-5)


def assert_rows_equal(case: Case, maps, products, row: int) -> None:
    """As the oracle's own comparison: tokens without a grid make one row, and every patch's row is theirs."""
    assert list(maps.layers) == list(products)
    for layer, found in products.items():
        logits = torch.stack([p.logits([row], case.queries(p), case.keys(p)[0])[0] for p in found])
        for ours, truth in (
            (maps.r2g.by_layer[layer], logits.softmax(2).mean((0, 1, 3))),
            (maps.g2r.by_layer[layer], logits.softmax(3).mean((0, 1, 2))),
            (maps.rows.by_layer[layer][1], logits.softmax(3).mean((0, 1))),
        ):
            assert np.abs(ours.ravel() - truth.numpy().ravel()).max() <= 1e-5 * float(truth.max()), layer
            assert truth.max() > 1.01 * truth.min(), "the truth is flat, the comparison would prove nothing"


@pytest.mark.parametrize("place", [0, 1], ids=["one", "another"])
@FAMILIES
def test_a_planted_copy_is_found_where_it_was_planted(name, place) -> None:
    """One generated token's query is the key of one reference token: R2G peaks there, and its row at that token."""
    case = CASES[name]()
    if case.not_planted:
        pytest.skip(case.not_planted)
    model, guided = case.model(), case.ways[-1]
    with case.recorder(case.modules(model)) as made:
        case.run(model, 1, guided)
    chosen = {layer: case.products(range(len(found)), guided) for layer, found in made.items()}
    row = case.row(0, 1, guided)
    spots: dict[str, tuple[int, int]] = {}

    def plant(layer: str, number: int, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if number not in chosen[layer]:
            return q, k
        draw = torch.Generator().manual_seed(number)
        product = made[layer][number]
        queries = numbers(case.queries(product), q.shape[2])
        keys = numbers(case.keys(product)[-place], k.shape[2])
        spots[layer] = (len(queries) // 3 + place, len(keys) - 2 - place)
        k = k.clone().copy_(2 * F.normalize(torch.randn(k.shape, generator=draw), dim=-1))  # strides as they were
        q = q.clone().copy_(0.1 * torch.randn(q.shape, generator=draw))
        generated, reference = (tokens[spot] for tokens, spot in zip((queries, keys), spots[layer], strict=True))
        q[row, :, generated] = 12 * k[row, :, reference].repeat_interleave(q.shape[1] // k.shape[1], 0)
        return q, k

    with planted_copies(case.modules(model), plant), trace(model, family=case.family) as t:
        case.run(model, 1, guided)
    maps, checked = t.maps(0, t.references[-place]), []  # the first reference, or the last
    for layer in maps.layers:
        generated, reference = spots[layer]
        r2g = maps.r2g.by_layer[layer]
        grid, rows = maps.rows.by_layer[layer]
        assert grid == r2g.shape and r2g.argmax() == generated, layer
        if rows.shape[1] != maps.g2r.by_layer[layer].size:
            continue  # rows are on the finest reference grid: this layer's own one is coarser
        checked.append(layer)
        assert rows[generated].argmax() == reference, layer
        others = np.delete(rows, generated, axis=0)
        assert rows[generated].max() > 2 * others.max(), layer
    assert checked


@FAMILIES
def test_it_knows_its_model_and_says_of_another_why_it_does_not(name) -> None:
    case = CASES[name]()
    model, other = case.model(), torch.nn.Linear(2, 2)
    denoiser = find_denoiser(model)
    assert type(case.family)().refuses(other, other)
    if case.asked_for:
        return
    assert type(case.family)().refuses(model, denoiser) is None
    assert find_family(model, denoiser).name == name
