"""Products that wait are attributed as if each had been when it came."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from i2am_debug.capture import pending
from i2am_debug.capture.accumulate import Accumulator
from i2am_debug.capture.attention import LookedAt, attribute
from i2am_debug.capture.pending import Pending, Waiting
from i2am_debug.capture.plan import CapturePlan
from i2am_debug.capture.product import Buffers
from i2am_debug.grids import Grid

IMAGES, CHANNELS = 3, 8


@dataclass(frozen=True)
class Layer:
    generated: Grid
    reference: Grid
    tokens: int
    heads: dict[int, float]
    all_heads: int = 4

    @property
    def grids(self) -> tuple[Grid, Grid]:
        return self.generated, self.reference


LAYERS = {  # of two kinds, one after the other, of unequal numbers of heads
    "down.0": Layer((8, 8), (4, 4), 16, {0: 1.0, 1: 1.5, 3: 1.5}),
    "down.1": Layer((4, 4), (4, 4), 16, {2: 4.0}),
    "mid": Layer((5, 7), (3, 3), 9, {0: 2.0, 3: 2.0}),
    "up.0": Layer((4, 4), (4, 4), 16, dict.fromkeys(range(4), 1.0)),
    "up.1": Layer((8, 8), (4, 4), 16, {1: 4.0}),
}
STEPS = (0, 3)


def products() -> Iterator[tuple[str, Layer, int, dict[str, torch.Tensor]]]:
    random = torch.Generator().manual_seed(0)
    for step in STEPS:
        for name, layer in LAYERS.items():
            G, N = layer.generated[0] * layer.generated[1], len(layer.heads)
            q, k = (2 * torch.randn(IMAGES, N, n, CHANNELS, generator=random) for n in (G, layer.tokens))
            weights = {"query_weight_BG": torch.linspace(0.1, 1, G).expand(IMAGES, G).clone()}
            weights["key_weight_BR"] = torch.linspace(0, 1, layer.tokens).repeat(IMAGES, 1)
            yield name, layer, step, {"q_BNGH": q, "k_BNRH": k, **weights}


def waiting(
    accumulator: Accumulator, name: str, layer: Layer, step: int, given: dict[str, Any], **more: Any
) -> Waiting:
    accumulator.expect(name, layer.grids, layer.heads, images=IMAGES)
    return Waiting(
        accumulator=accumulator,
        layer=name,
        step=step,
        grids=layer.grids,
        heads=layer.heads,
        all_heads=layer.all_heads,
        product=LookedAt(scale=0.3, **given),
        **more,
    )


def one_by_one(plan: CapturePlan) -> Accumulator:
    accumulator = Accumulator(plan)
    for name, layer, step, given in products():
        where = {"images": IMAGES, "all_heads": layer.all_heads, "device": torch.device("cpu")}
        rows = accumulator.rows(name, step, layer.grids, layer.heads, **where)
        accumulator.add(name, step, layer.grids, layer.heads, attribute(scale=0.3, rows=rows, **given))
    return accumulator


def together(plan: CapturePlan, **how: Any) -> Accumulator:
    accumulator, waits = Accumulator(plan), Pending(Buffers(), **how)
    for product in products():
        waits.add(waiting(accumulator, *product))
    waits.settle()
    return accumulator


def assert_same(found: Any, expected: Any, name: str = "") -> None:
    if is_dataclass(found):
        for field in fields(found):
            assert_same(getattr(found, field.name), getattr(expected, field.name), f"{name}.{field.name}")
    elif isinstance(found, Mapping):
        assert list(found) == list(expected), name
        for key, value in found.items():
            assert_same(value, expected[key], f"{name}[{key}]")
    elif isinstance(found, np.ndarray):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-7, err_msg=name)
    elif isinstance(found, tuple) and any(isinstance(one, np.ndarray) for one in found):
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, name)
    else:
        assert found == expected, name


@pytest.mark.parametrize("plan", [CapturePlan.full(), CapturePlan.paper(exclude=())], ids=["equal", "paper"])
@pytest.mark.parametrize("room", [1, 20_000, 2**23])
def test_maps_are_those_of_products_that_did_not_wait(plan: CapturePlan, room: int, monkeypatch) -> None:
    monkeypatch.setattr(pending, "thin_room", lambda device: room)
    found, expected = together(plan), one_by_one(plan)
    for image in range(IMAGES):
        assert_same(found.maps(image, 5), expected.maps(image, 5))


def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many products each call attributes, as calls are made."""
    made: list[int] = []
    own = pending.attribute_together
    monkeypatch.setattr(pending, "attribute_together", lambda each, **how: made.append(len(each)) or own(each, **how))
    return made


def test_products_of_one_kind_are_attributed_at_once_whatever_their_layer_and_step(monkeypatch) -> None:
    made = calls(monkeypatch)
    together(CapturePlan.full())
    assert made == [4, 4, 2]


def test_a_pilot_sees_each_by_itself(monkeypatch) -> None:
    made = calls(monkeypatch)
    together(CapturePlan.full(), at_once=True)
    assert made == [1] * 10


def test_no_more_waits_than_there_is_room_for(monkeypatch) -> None:
    room = 60_000
    monkeypatch.setattr(pending, "thin_room", lambda device: room)
    made = calls(monkeypatch)
    waits, accumulator = Pending(Buffers()), Accumulator(CapturePlan.full())
    for product in products():
        one = waiting(accumulator, *product)
        before = len(made)
        waits.add(one)
        if one.product.thin_bytes >= room:
            assert len(made) == before + 1, "too large to wait at all"
        assert sum(waits._bytes.values()) <= room
        held = sum(each.product.thin_bytes for kind in waits._waiting.values() for each in kind)
        assert held == sum(waits._bytes.values())
    assert made and max(made) > 1
    waits.settle()
    assert sum(made) == 10 and not waits._waiting


def test_the_model_may_write_to_its_memory_and_has_it_back() -> None:
    accumulator, waits = Accumulator(CapturePlan.full()), Pending(Buffers())
    held = []
    for name, layer, step, given in products():
        waits.add(waiting(accumulator, name, layer, step, given))
        for one in ("q_BNGH", "k_BNRH"):
            given[one].zero_()
            held.append(weakref.ref(given.pop(one)))
    del given
    gc.collect()
    assert not any(one() is not None for one in held)
    waits.settle()
    assert_same(accumulator.maps(1, 5), one_by_one(CapturePlan.full()).maps(1, 5))


@pytest.mark.parametrize("first", [torch.inference_mode, torch.no_grad, nullcontext])
@pytest.mark.parametrize("then", [torch.inference_mode, torch.no_grad, nullcontext])
def test_what_is_seen_in_one_mode_may_be_added_to_in_another(first: Any, then: Any) -> None:
    accumulator, waits = Accumulator(CapturePlan.full()), Pending(Buffers())
    for product in products():
        with (first if product[2] == STEPS[0] else then)():
            waits.add(waiting(accumulator, *product))
            if product[0] == "mid":
                waits.settle()
    with torch.autocast("cpu", torch.bfloat16):
        waits.settle()
    assert_same(accumulator.maps(0, 5), one_by_one(CapturePlan.full()).maps(0, 5))


def test_each_is_told_of_its_own_normaliser() -> None:
    accumulator, waits, told, expected = Accumulator(CapturePlan.full()), Pending(Buffers()), {}, {}
    for name, layer, step, given in products():
        then = partial(told.__setitem__, (name, step))
        waits.add(waiting(accumulator, name, layer, step, given, then=then))
        logits = given["q_BNGH"].double() @ given["k_BNRH"].double().transpose(-1, -2) * 0.3
        expected[name, step] = torch.logsumexp(logits, -1).float()
    waits.settle()
    assert told.keys() == expected.keys()
    for key, lse in expected.items():
        torch.testing.assert_close(told[key].log_normaliser_BNG, lse, rtol=1e-5, atol=1e-5)


def test_images_of_a_large_batch_are_read_out_some_at_a_time(monkeypatch) -> None:
    whole = one_by_one(CapturePlan.full())
    expected = [whole.maps(image, 5, every_head=True) for image in range(IMAGES)]
    monkeypatch.setattr("i2am_debug.capture.readout._TOGETHER", 2)
    apart = one_by_one(CapturePlan.full())
    for image in (2, 0, 1):
        assert_same(apart.maps(image, 5, every_head=True), expected[image])
