"""What is kept of a pair: small whatever the model's size, within known bounds of the truth, pictures recognisable."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from i2am_debug.capture.maps import unified_form
from i2am_debug.errors import StoreError
from i2am_debug.figures.record import Evaluation
from i2am_debug.figures.values import Undefined
from i2am_debug.pairs.pair import ValidationPair
from i2am_debug.store import packing
from i2am_debug.store.evaluation_file import read_evaluation
from i2am_debug.store.packing import (
    PAIR_BYTES,
    _pool_rows,
    pack_observations,
    pack_pair,
    pack_pictures,
    unified_maps,
    unpack_picture,
)
from i2am_debug.store.run_store import RunStore

Grid = tuple[int, int]


class Rows(dict):
    """As `LayerRows`, all made."""

    @property
    def grids(self) -> dict[str, Grid]:
        return {layer: grid for layer, (grid, _) in self.items()}


def rows_of(lead: tuple[int, ...], g: Grid, r: Grid, seed: int = 0) -> np.ndarray:
    """(…, g, r) float32 of distributions, a few of them sharp."""
    values = np.random.default_rng(seed).random((*lead, g[0] * g[1], r[0] * r[1]), dtype=np.float32) ** 8
    return values / values.sum(-1, keepdims=True)


def maps_of(
    generated: Grid,
    reference: Grid,
    *,
    layers: int = 2,
    heads: int = 2,
    groups: int = 5,
    map_grid: Grid | None = None,
    looked_at: int | None = None,
    one_token: bool = False,
) -> Any:
    """What `pack_pair` reads of an `AttributionMaps`; arrays are shared between layers to save memory."""
    rng = np.random.default_rng(1)

    def levels(grid: Grid) -> Any:
        def a_map(*lead: int) -> np.ndarray:
            found = rng.random((*lead, *grid), dtype=np.float32)
            return found / found.sum((-2, -1), keepdims=True)

        by_layer = dict.fromkeys([f"layer.{i}" for i in range(layers)], a_map())
        by_time = a_map(groups)
        by_time[0] = np.nan  # no looked-at step in that group
        found = dict(unified=a_map(), by_time=by_time, by_head=a_map(heads), by_layer=by_layer)
        of_heads = rng.random((looked_at or heads, *(min(n, 16) for n in grid)), dtype=np.float32)
        by_layer_head = dict.fromkeys(by_layer, of_heads / of_heads.sum((-2, -1), keepdims=True))
        return SimpleNamespace(by_layer_head=by_layer_head, **found)

    information = {f"layer.{i}": np.linspace(0, 1, heads - i % 2, dtype=np.float32) for i in range(layers)}
    r2g, centred = levels(map_grid or generated), levels(map_grid or generated)
    if one_token:  # neither G2R nor rows: reading them would raise AttributeError
        return SimpleNamespace(
            r2g=r2g, r2g_centred=centred, information=information, undefined_g2r="one reference token", _g2r_region=None
        )
    small = tuple(tuple(min(n, 16) for n in grid) for grid in (generated, reference))
    by_time = rows_of((groups,), *small, seed=2)
    by_time[0] = np.nan
    rows = SimpleNamespace(
        generated_grid=generated,
        reference_grid=reference,
        unified=rows_of((), generated, reference, seed=3),
        by_layer=Rows.fromkeys(r2g.by_layer, (generated, rows_of((), generated, reference, seed=4))),
        small_grids=small,
        by_time=by_time,
        by_head=rows_of((heads,), *small, seed=5),
    )
    g2r = levels(map_grid or reference)
    return SimpleNamespace(
        r2g=r2g,
        r2g_centred=centred,
        g2r=g2r,
        _r2g_object_mass=levels(map_grid or generated),
        _g2r_region=levels(map_grid or reference),
        rows=rows,
        information=information,
        undefined_g2r=None,
    )


def noise(side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(6).integers(0, 256, (side, side, 3), dtype=np.uint8))


def bytes_of(arrays: dict[str, np.ndarray]) -> int:
    return sum(a.nbytes for a in arrays.values())


# -- the stored form of a pair ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        dict(generated=(32, 32), reference=(32, 32), layers=57, heads=24, map_grid=(64, 64)),
        dict(generated=(32, 32), reference=(16, 16), layers=16, heads=8),
        dict(generated=(16, 16), reference=(8, 8), layers=2, heads=2),
    ],
    ids=["flux-sized", "unet-sized", "tiny"],
)
def test_a_pair_is_never_larger_than_promised(given: dict[str, Any]) -> None:
    maps = maps_of(**given)
    arrays, grids = pack_pair(maps, "layer.1", noise(1024))
    assert bytes_of(arrays) <= 1.5 * 2**20  # as `PAIR_BYTES` says in words
    expected = {"unified", "by_time", "by_head", "copying_layer", *(f"by_layer/{layer}" for layer in maps.r2g.by_layer)}
    assert grids.keys() == expected  # nothing was left out to be small enough
    for name, (g, r) in grids.items():
        stored = arrays[f"rows/{name}"]
        assert stored.dtype == np.uint8 and stored.shape[-2:] == (g[0] * g[1], r[0] * r[1])
        assert arrays[f"rows/{name}/scale"].shape == stored.shape[:-1]
    if given["layers"] == 2:  # what fits isn't pooled
        assert grids["unified"] == [[16, 16], [8, 8]]


def test_the_larger_rows_are_those_of_the_unified_and_the_copying_layer() -> None:
    arrays, grids = pack_pair(maps_of((32, 32), (16, 16), layers=16, heads=8), "layer.3", None)
    assert grids["unified"] == grids["copying_layer"]
    assert grids["unified"][0] > grids["by_layer/layer.3"][0] == grids["by_layer/layer.0"][0]
    assert "copying_layer" not in pack_pair(maps_of((8, 8), (8, 8)), None, None)[1]
    assert "generated" not in arrays


def test_one_reference_token_leaves_no_g2r_and_no_rows() -> None:
    arrays, grids = pack_pair(maps_of((8, 8), (1, 1), one_token=True), None, noise(16))
    assert grids == {}
    assert {name.split("/")[0] for name in arrays} == {"r2g", "r2g_centred", "information", "generated"}
    assert bytes_of(arrays) <= PAIR_BYTES


@pytest.mark.parametrize("grids", [((16, 16), (8, 8)), ((20, 12), (18, 24))], ids=["as it is", "pooled, not square"])
def test_a_stored_row_is_off_by_half_a_step_of_its_maximum_at_most(grids: tuple[Grid, Grid]) -> None:
    maps = maps_of(*grids, layers=4, heads=3)
    arrays, stored_grids = pack_pair(maps, "layer.1", None)
    given = {
        "unified": (maps.rows.unified[None], grids),
        "by_head": (maps.rows.by_head, maps.rows.small_grids),
        "by_time": (maps.rows.by_time[1:], maps.rows.small_grids),
        "copying_layer": (maps.rows.by_layer["layer.1"][1][None], grids),
        "by_layer/layer.0": (maps.rows.by_layer["layer.0"][1][None], grids),
    }
    for name, (rows, own) in given.items():
        scale = arrays[f"rows/{name}/scale"].astype(np.float64)
        decoded = arrays[f"rows/{name}"].astype(np.float64) * scale[..., None] / 255
        decoded = decoded[1:] if name == "by_time" else decoded.reshape(len(rows), *decoded.shape[-2:])
        for one, found in zip(rows, decoded, strict=True):
            true = slowly_pooled(one, own, tuple(map(tuple, stored_grids[name])))
            off = np.abs(found - true).max(-1) / (true.max(-1) / 255)
            assert off.max() <= 0.5 + 1e-3
            np.testing.assert_allclose(found.max(-1), true.max(-1), rtol=1e-5)
            assert off.max() > 0.4  # the bound is reached: this isn't comparing a thing with itself
    assert np.isnan(arrays["rows/by_time/scale"][0]).all()  # a group without samples stays marked as such
    assert np.isfinite(arrays["rows/by_time/scale"][1:]).all()


@pytest.mark.parametrize(
    ("own", "limit"),
    [
        (((8, 8), (8, 8)), 4),
        (((12, 5), (3, 16)), 5),
        (((9, 4), (10, 7)), 4),
        (((1, 24), (7, 1)), 6),
        (((6, 4), (4, 6)), 8),
    ],
)
def test_pooled_rows_equal_a_plain_loop_and_sum_to_1(own: tuple[Grid, Grid], limit: int) -> None:
    rows = rows_of((3,), *own)
    pooled, grids = _pool_rows(rows, own, limit)
    assert grids == tuple((min(h, limit), min(w, limit)) for h, w in own)
    np.testing.assert_allclose(pooled.sum(-1), 1, atol=1e-6)
    for one, found in zip(rows, pooled, strict=True):
        np.testing.assert_allclose(found, slowly_pooled(one, own, grids), rtol=1e-5, atol=1e-9)


def slowly_pooled(rows: np.ndarray, own: tuple[Grid, Grid], small: Any) -> np.ndarray:
    """Each token in the block of its upper left corner: mean over generated tokens, sum over reference tokens."""
    blocks = [
        [(y * h // height) * w + x * w // width for y in range(height) for x in range(width)]
        for (height, width), (h, w) in zip(own, small, strict=True)
    ]
    (gh, gw), (rh, rw) = small
    total, count = np.zeros((gh * gw, rh * rw)), np.zeros((gh * gw, 1))
    for row, block in zip(rows.astype(np.float64), blocks[0], strict=True):
        count[block] += 1
        np.add.at(total[block], blocks[1], row)
    mean = total / count
    return mean / mean.sum(-1, keepdims=True)


def test_maps_keep_their_sum_and_are_at_most_64_a_side() -> None:
    maps = maps_of((8, 8), (8, 8), map_grid=(96, 40))
    arrays, _ = pack_pair(maps, None, None)
    for name in ("r2g", "g2r", "r2g_centred", "r2g_object_mass", "g2r_region"):
        unified = arrays[f"{name}/unified"]
        assert unified.shape == (64, 40) and unified.dtype == np.float32
        assert unified.sum() == pytest.approx(1, abs=1e-5)
    for level in ("by_time", "by_head", "by_layer/layer.0"):
        found = arrays[f"g2r/{level}"]
        assert found.shape[-2:] == (32, 32) and found.dtype == np.float16
        means = found.astype(np.float64).mean((-2, -1)).reshape(-1)
        np.testing.assert_allclose(means[1:] if level == "by_time" else means, 1, atol=1e-3)
    assert np.isnan(arrays["g2r/by_time"][0]).all()


@pytest.mark.parametrize(
    ("layers", "heads", "side"), [(2, 3, 16), (57, 5, 16), (57, 8, 12), (57, 24, 8), (57, 40, None)]
)
def test_maps_of_single_heads_are_as_fine_as_a_quarter_of_the_room_allows(layers: int, heads: int, side: Any) -> None:
    maps = maps_of((32, 32), (32, 32), layers=layers, heads=heads)
    arrays, grids = pack_pair(maps, "layer.0", None)
    of_heads = {name: a for name, a in arrays.items() if "/by_layer_head/" in name}
    assert bytes_of(arrays) <= PAIR_BYTES and "unified" in grids
    if side is None:
        assert of_heads == {}
        return
    assert of_heads.keys() == {f"{way}/by_layer_head/layer.{i}" for way in ("r2g", "g2r") for i in range(layers)}
    assert bytes_of(of_heads) <= PAIR_BYTES // 4
    for found in of_heads.values():
        assert found.shape == (heads, side, side) and found.dtype == np.float16
        np.testing.assert_allclose(found.astype(np.float64).mean((-2, -1)), 1, atol=1e-3)
    if side == 16:  # the size it came in
        given = maps.g2r.by_layer_head["layer.0"]
        np.testing.assert_allclose(of_heads["g2r/by_layer_head/layer.0"] / 256.0, given, rtol=1e-3, atol=1e-6)


def test_information_of_a_layer_with_fewer_heads_is_not_filled_with_zeros() -> None:
    maps = maps_of((4, 4), (4, 4), layers=2, heads=3)
    information = pack_pair(maps, None, None)[0]["information"]
    np.testing.assert_array_equal(information, np.array([[0, 0.5, 1], [0, 1, np.nan]], np.float32))


@pytest.mark.parametrize(
    ("side", "form", "stored"), [(48, "PNG", 48), (64, "PNG", 64), (65, "JPEG", 65), (900, "JPEG", 384)]
)
def test_the_generated_picture(side: int, form: str, stored: int) -> None:
    given = noise(side)
    data = pack_pair(maps_of((4, 4), (1, 1), one_token=True), None, given)[0]["generated"].tobytes()
    picture = Image.open(io.BytesIO(data))
    assert (picture.format, picture.size) == (form, (stored, stored))
    assert given.size == (side, side)  # the caller's picture isn't the one that was made smaller
    if form == "PNG":
        np.testing.assert_array_equal(np.array(picture), np.array(given))


# -- looks of an evaluation --------------------------------------------------------------------------------------------


def look(index: int, further: dict[int, Any] | None = None, **changes: Any) -> Any:
    """What is read of a `Observation`."""
    maps = maps_of(**{"generated": (8, 6), "reference": (4, 5), **changes})
    painted = "predicted in one step from 26% noise" if index > 9 else ""
    return SimpleNamespace(index=index, maps=maps, generated=noise(8 + index), painted=painted, further=further or {})


def test_looks_are_packed_under_the_numbers_of_their_pairs() -> None:
    looks = [look(3), look(11, reference=(6, 6))]  # numbers of pairs, not places in the list
    arrays, grids = pack_observations(looks, "layer.1")
    expected = {}
    for given in looks:
        own, own_grids = pack_pair(given.maps, "layer.1", given.generated)
        assert json.loads(json.dumps(grids))[str(given.index)] == own_grids
        expected.update({f"{given.index}/{name}": value for name, value in own.items()})
    assert arrays.pop("11/generated_origin").tobytes() == b"predicted in one step from 26% noise"
    assert arrays.keys() == expected.keys() and grids.keys() == {"3", "11"}
    for name, value in expected.items():
        np.testing.assert_array_equal(arrays[name], value)


def test_further_references_are_packed_under_their_numbers() -> None:
    others = {2: maps_of((8, 6), (3, 7)), 1: maps_of((8, 6), (1, 1), one_token=True)}
    arrays, grids = pack_observations([look(4, further=others), look(5)], "layer.1")
    for number, maps in others.items():
        own, own_grids = pack_pair(maps, "layer.1", None)
        stored = {name: a for name, a in arrays.items() if name.startswith(f"4/reference_{number}/")}
        assert stored.keys() == {f"4/reference_{number}/{name}" for name in own}
        for name, value in own.items():
            np.testing.assert_array_equal(stored[f"4/reference_{number}/{name}"], value)
        assert {f"reference_{number}/{name}": grid for name, grid in own_grids.items()}.items() <= grids["4"].items()
    alone, alone_grids = pack_observations([look(4)], "layer.1")
    for name, value in alone.items():  # the pair's own reference is stored as if it had no others
        np.testing.assert_array_equal(arrays[name], value)
    assert alone_grids["4"].items() <= grids["4"].items() and not any("reference" in name for name in grids["5"])
    assert unified_maps([look(4, further=others)]).keys() == {
        *("4/r2g", "4/g2r", "4/reference_1/r2g", "4/reference_2/r2g", "4/reference_2/g2r")
    }


def test_the_layers_of_a_further_reference_are_named_where_they_are_others() -> None:
    same, other = maps_of((8, 6), (3, 7)), maps_of((8, 6), (3, 7), layers=3)
    arrays, _ = pack_observations([look(0, {1: same, 2: other})], None)
    named = {name: json.loads(a.tobytes()) for name, a in arrays.items() if name.endswith("/layers")}
    assert named == {"0/reference_2/layers": ["layer.0", "layer.1", "layer.2"]}


@pytest.mark.parametrize("references", [2, 3, 5])
@pytest.mark.parametrize("looked_at", [2, 24])
def test_all_references_of_a_pair_share_its_room(references: int, looked_at: int) -> None:
    sizes = dict(generated=(32, 32), reference=(32, 32), layers=57, heads=24, map_grid=(64, 64), looked_at=looked_at)
    maps = maps_of(**sizes)
    arrays, grids = pack_observations([look(0, dict.fromkeys(range(1, references), maps), **sizes)], "layer.1")
    assert bytes_of(arrays) <= PAIR_BYTES
    prefixes = ["", *(f"reference_{n}/" for n in range(1, references))]
    assert {f"{prefix}{name}" for prefix in prefixes for name in ("unified", "copying_layer")} <= grids["0"].keys()
    kept = {name.removeprefix("0/") for name in arrays}
    assert {f"{prefix}g2r/by_layer/layer.56" for prefix in prefixes} <= kept


@pytest.mark.parametrize("one_token", [False, True])
def test_the_maps_that_a_baseline_keeps_in_memory_are_those_that_it_stores(tmp_path: Path, one_token: bool) -> None:
    looks = [look(i, map_grid=(80, 7), one_token=one_token) for i in range(2)]
    path = RunStore(tmp_path).write(evaluation(0), *pack_observations(looks, None))
    kept, stored = unified_maps(looks), read_evaluation(path)[1]
    assert kept.keys() == stored.keys() == {f"{i}/{d}" for i in range(2) for d in ("r2g", "g2r")[: 2 - one_token]}
    for name, found in kept.items():
        assert found.dtype == stored[name].dtype
        np.testing.assert_array_equal(found, stored[name])


def test_thinning_a_store_drops_exactly_the_rows_of_what_was_packed(tmp_path: Path) -> None:
    run = RunStore(tmp_path)
    arrays, grids = pack_observations([look(0), look(1)], "layer.1")
    path = run.write(evaluation(0), arrays, grids)
    run.drop_rows(0)
    rows = {f"{i}/rows/{name}{end}" for i in range(2) for name in grids[str(i)] for end in ("", "/scale")}
    assert len(rows) == 24 and rows < arrays.keys()
    assert load_file(path).keys() == arrays.keys() - rows


def test_a_unified_map_is_pooled_by_sums_and_small_ones_are_left_alone() -> None:
    rng = np.random.default_rng(7)
    small, large = rng.random((64, 3)), rng.random((150, 65))
    np.testing.assert_array_equal(unified_form(small), small.astype(np.float32))
    expected = np.zeros((64, 64))
    for y in range(150):
        for x in range(65):
            expected[y * 64 // 150, x * 64 // 65] += large[y, x]
    found = unified_form(large)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def evaluation(step: int) -> Evaluation:
    return Evaluation(
        global_step=step,
        pairs=("shirt", "dress"),
        figures={},
        errors={},
        layers=(),
        copying_layer=Undefined("one reference token"),
        reference_lines={},
        fingerprint={},
    )


# -- pictures ----------------------------------------------------------------------------------------------------------


def pair_of(size: tuple[int, int], reference_size: tuple[int, int] | None = None, masks: bool = True) -> ValidationPair:
    """Random pictures of (height, width), each mask a left part of its picture with a ragged edge."""
    rng = np.random.default_rng(8)

    def picture(shape: tuple[int, int]) -> np.ndarray:
        return rng.integers(0, 256, (*shape, 3), dtype=np.uint8)

    def mask(shape: tuple[int, int]) -> np.ndarray:
        return np.arange(shape[1])[None] < rng.integers(1, shape[1], (shape[0], 1))

    reference_size = reference_size or size
    found = {"reference": picture(reference_size), "target": picture(size)}
    if masks:
        found |= {"mask": mask(size), "reference_mask": mask(reference_size)}
    return ValidationPair(name="shirt", **found)


def test_pictures_of_further_references_are_kept_by_their_numbers() -> None:
    pictures = [noise(20), noise(30)]
    pair = ValidationPair(name="shirt", reference=noise(10), target=noise(10), further_references=pictures)
    stored = unpacked(pair)
    assert stored.keys() == {"reference", "target", "reference_1", "reference_2"}
    assert [np.array_equal(stored[f"reference_{i}"], picture) for i, picture in enumerate(pictures, 1)] == [True, True]


def unpacked(pair: ValidationPair) -> dict[str, Image.Image]:
    stored = pack_pictures(pair)
    assert all(a.dtype == np.uint8 and a.ndim == 1 for a in stored.values())
    return {name: unpack_picture(a) for name, a in stored.items()}


@pytest.mark.parametrize(
    ("size", "reference_size"), [((24, 16), (16, 40)), ((64, 64), (1, 64)), ((3, 2), (2, 3))], ids=str
)
def test_small_pictures_come_back_pixel_by_pixel(size: Grid, reference_size: Grid) -> None:
    pair = pair_of(size, reference_size)
    found = unpacked(pair)
    assert {name: picture.mode for name, picture in found.items()} == {
        "reference": "RGB",
        "target": "RGB",
        "mask": "L",
        "reference_mask": "L",
    }
    np.testing.assert_array_equal(np.array(found["reference"]), np.array(pair.reference))
    np.testing.assert_array_equal(np.array(found["target"]), np.array(pair.target))
    np.testing.assert_array_equal(np.array(found["mask"]), pair.mask * np.uint8(255))
    np.testing.assert_array_equal(np.array(found["reference_mask"]), pair.reference_mask * np.uint8(255))


def test_masks_come_back_pixel_by_pixel_where_their_pictures_are_lossy() -> None:
    pair = pair_of((384, 250), (65, 70))
    stored, found = pack_pictures(pair), unpacked(pair)
    assert Image.open(io.BytesIO(stored["target"].tobytes())).format == "JPEG"
    np.testing.assert_array_equal(np.array(found["mask"]), pair.mask * np.uint8(255))
    np.testing.assert_array_equal(np.array(found["reference_mask"]), pair.reference_mask * np.uint8(255))


def test_a_pair_without_masks_has_none_stored() -> None:
    assert pack_pictures(pair_of((8, 8), masks=False)).keys() == {"reference", "target"}


def test_masks_take_one_bit_a_pixel_at_most() -> None:
    noisy = np.random.default_rng(0).random((384, 384)) < 0.5
    stored = pack_pictures(ValidationPair(name="a", reference=noise(8), target=noise(384), mask=noisy))["mask"]
    assert Image.open(io.BytesIO(stored.tobytes())).mode == "1"
    assert stored.nbytes < 384 * (384 // 8 + 1) + 100  # PNG adds a byte to each row
    np.testing.assert_array_equal(np.array(unpack_picture(stored)) > 0, noisy)


@pytest.mark.parametrize(("given", "words"), [(None, "given"), ("derived: Otsu, |target − reference| < 0.081",) * 2])
def test_a_kept_region_comes_back_with_where_it_comes_from(given: str | None, words: str) -> None:
    kept = np.arange(30)[None] < np.arange(20)[:, None]
    target = np.zeros((20, 30, 3), np.uint8)
    stored = pack_pictures(ValidationPair(name="a", reference=noise(8), target=target, kept=kept, kept_origin=given))
    np.testing.assert_array_equal(np.array(unpack_picture(stored["kept"])) > 0, kept)
    assert stored["kept_origin"].tobytes().decode() == words


def test_a_large_mask_still_lies_over_its_picture() -> None:
    mask = np.zeros((600, 900), bool)
    mask[:300, 450:] = True
    found = unpacked(ValidationPair(name="a", reference=noise(8), target=np.zeros((600, 900, 3), np.uint8), mask=mask))
    assert found["target"].size == found["mask"].size == (384, 256)  # as 900 × 600
    shrunk = np.array(found["mask"])
    assert shrunk[:126, 194:].min() == 255  # two pixels beside the edge may be grey
    assert shrunk[130:].max() == shrunk[:, :190].max() == 0


def test_a_lossy_picture_is_close_to_the_truth() -> None:
    y, x = np.mgrid[:200, :300]
    smooth = np.stack([x * 255 // 299, y * 255 // 199, 128 + 100 * np.sin(x / 20)], -1).astype(np.uint8)
    found = unpacked(ValidationPair(name="a", reference=smooth, target=smooth))["reference"]
    assert found.size == (300, 200)
    assert np.abs(np.array(found, float) - smooth).mean() < 3


def test_packing_leaves_the_pair_as_it_was() -> None:
    pair = pair_of((500, 400))
    before = pair.content_hash()
    pack_pictures(pair)
    assert pair.reference.size == (400, 500) and pair.content_hash() == before


# -- how much is kept --------------------------------------------------------------------------------------------------


def packed_within(monkeypatch: pytest.MonkeyPatch, limit: int, maps: Any) -> tuple[int, dict[str, Any]]:
    monkeypatch.setattr(packing, "PAIR_BYTES", limit)
    arrays, grids = pack_pair(maps, "layer.1", None)
    assert {"r2g/unified", "g2r/unified", "r2g/by_time", "g2r/by_layer/layer.0"} <= arrays.keys()
    assert any("rows/" in name for name in arrays) == bool(grids)
    return bytes_of(arrays), grids


def test_rows_are_as_fine_as_fits_to_the_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = maps_of((32, 24), (28, 32), layers=3, heads=2, groups=2)
    size, grids = packed_within(monkeypatch, 100 * 2**20, maps)
    sizes = []
    while grids:
        assert packed_within(monkeypatch, size, maps) == (size, grids)
        sizes.append(size)
        size, grids = packed_within(monkeypatch, size - 1, maps)
        assert size < sizes[-1]
    assert len(sizes) > 5  # many steps down, and none at all in the end


def test_without_room_for_the_coarsest_rows_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packed_within(monkeypatch, 1, maps_of((8, 6), (4, 5)))[1] == {}


def test_maps_of_some_queries_are_kept_where_there_are_any() -> None:
    maps = maps_of((8, 6), (4, 5))
    maps._r2g_object_mass = maps._g2r_region = None  # no reference mask, no hole
    names = {name for name in pack_pair(maps, None, None)[0] if name.endswith("/unified") and "rows" not in name}
    assert names == {"r2g/unified", "g2r/unified", "r2g_centred/unified"}


@pytest.mark.parametrize("spoil", [lambda data: data[:40], lambda data: b"no picture", lambda data: b""])
def test_a_stored_picture_that_is_broken_or_too_large_is_refused(spoil: Any) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    with pytest.raises(StoreError, match="a stored picture can't be read"):
        unpack_picture(np.frombuffer(spoil(buffer.getvalue()), dtype=np.uint8))
    large = io.BytesIO()
    Image.new("1", (385, 1)).save(large, "PNG")
    with pytest.raises(StoreError, match="it is 385x1, at most 384 pixels a side"):
        unpack_picture(np.frombuffer(large.getvalue(), dtype=np.uint8))
