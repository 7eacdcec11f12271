"""Evaluations on disk: what is written is read back, is small, survives crashes and resumed runs."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from i2am_debug import store as store_module
from i2am_debug.drift import Alert, Drop
from i2am_debug.errors import StoreError
from i2am_debug.record import FORMAT, Evaluation, Undefined
from i2am_debug.store import PAIR_BYTES, RunStore, _pool_rows, pack_pair, read_evaluation

NO_MASK = Undefined("no reference mask")
Grid = tuple[int, int]


def evaluation(step: int, imacs: float = 0.25) -> Evaluation:
    return Evaluation(
        global_step=step,
        pairs=("shirt", "dress"),
        figures={"imacs_g": (imacs, 1 / 3), "imacs_r": (NO_MASK, 0.1), "reference_gap": (NO_MASK, NO_MASK)},
        errors={"imacs_g": (0.01, NO_MASK)},
        layers=("up",),
        copying_layer=NO_MASK,
        reference_lines={"imacs_g": {"random": -0.9}},
        fingerprint={"seed": 0, "plan": {"layers": ["*"]}},
        heads={"up": {3: 2.5}},
        seconds=1.5,
    )


def alert(step: int) -> Alert:
    drop = Drop(figure="imacs_g", baseline=0.5, now=0.1, drop=0.4, standard_error=0.05, margin=0.15, pairs=("dress",))
    return Alert(global_step=step, baseline_step=0, drops=(drop,))


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
        return SimpleNamespace(unified=a_map(), by_time=by_time, by_head=a_map(heads), by_layer=by_layer)

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
        by_layer=dict.fromkeys(r2g.by_layer, (generated, rows_of((), generated, reference, seed=4))),
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


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def steps(run: RunStore) -> list[int]:
    return [s.evaluation.global_step for s in run.evaluations()]


@pytest.fixture
def run(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "run")


@pytest.fixture(scope="module")
def packed() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A small pair's arrays under its number, as the callback writes them, and the grids."""
    arrays, grids = pack_pair(maps_of((8, 6), (4, 5)), "layer.1", noise(16))
    return {f"0/{name}": value for name, value in arrays.items()}, {"0": grids}


# -- the index and the file ------------------------------------------------------------------------------------------


def test_what_was_written_is_read_back(run: RunStore, packed: Any) -> None:
    arrays, grids = packed
    path = run.write(evaluation(12), arrays, grids)
    assert path == run.folder / "step_00000012.safetensors"
    assert run.folder.parts[-2:] == ("plugins", "i2am_debug")

    (stored,) = run.evaluations()
    assert stored.path == path
    assert stored.evaluation == evaluation(12) and stored.evaluation.seconds == 1.5

    read, unified = read_evaluation(path)
    assert read == evaluation(12)
    assert set(unified) == {"0/r2g", "0/g2r"}  # the companions are other maps
    for name, found in unified.items():
        np.testing.assert_array_equal(found, arrays[f"{name}/unified"])

    on_disk = load_file(path)
    assert on_disk.keys() == arrays.keys()
    for name, value in arrays.items():
        assert on_disk[name].dtype == value.dtype
        np.testing.assert_array_equal(on_disk[name], value)
    with safe_open(path, framework="numpy") as file:
        assert json.loads(file.metadata()["grids"]) == json.loads(json.dumps(grids))


def test_undefined_stays_undefined_with_its_reason(run: RunStore, packed: Any) -> None:
    path = run.write(evaluation(1), *packed)
    for read in (run.evaluations()[0].evaluation, read_evaluation(path)[0]):
        assert read.figures["imacs_r"] == (NO_MASK, 0.1)
        assert read.mean("reference_gap") == NO_MASK
        assert read.errors["imacs_g"] == (0.01, NO_MASK)
        assert read.copying_layer == NO_MASK


def test_evaluations_come_by_step_and_alerts_as_written(run: RunStore) -> None:
    assert run.evaluations() == [] and run.alerts() == []
    for step in (200, 0, 100):
        run.write(evaluation(step), {}, {})
    run.write_alert(alert(100))
    run.write_alert(alert(200))
    assert steps(run) == [0, 100, 200]
    assert run.alerts() == [alert(100), alert(200)]


def test_a_step_evaluated_again_replaces_the_old_one(run: RunStore) -> None:
    run.write(evaluation(0, 0.125), {"0/r2g/unified": np.zeros((1, 1), np.float32)}, {})
    run.write(evaluation(5), {}, {})
    path = run.write(evaluation(0, 0.875), {"0/r2g/unified": np.ones((1, 1), np.float32)}, {})
    assert steps(run) == [0, 5]
    assert run.evaluations()[0].evaluation.figures["imacs_g"][0] == 0.875
    read, unified = read_evaluation(path)
    assert read.figures["imacs_g"][0] == 0.875 and unified["0/r2g"].item() == 1


# -- crashes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", [b'{"file": "step_00000', b'{"file": "step_\xc3', b"{", b'{"format": 1, "pairs": ["a'])
def test_a_torn_last_line_is_skipped_and_the_next_one_is_whole(run: RunStore, torn: bytes) -> None:
    run.write(evaluation(1), {}, {})
    run.write_alert(alert(1))
    for file in (run.index, run.alerts_file):
        file.write_bytes(file.read_bytes() + torn)
    assert steps(run) == [1] and run.alerts() == [alert(1)]

    run.write(evaluation(2), {}, {})
    run.write_alert(alert(2))
    assert steps(run) == [1, 2] and run.alerts() == [alert(1), alert(2)]
    for file in (run.index, run.alerts_file):
        lines = file.read_bytes().split(b"\n")
        assert lines[1] == torn and len(lines) == 4 and lines[3] == b""


class _PowerCut(BaseException):
    """Nothing that `except Exception` sees, as KeyboardInterrupt."""


@pytest.mark.parametrize("function", ["save_file", "replace", "fsync"])
@pytest.mark.parametrize("again", [False, True])
def test_a_failed_write_leaves_everything_as_it_was(
    run: RunStore, packed: Any, monkeypatch: pytest.MonkeyPatch, function: str, again: bool
) -> None:
    run.write(evaluation(1), *packed)
    before = contents(run.folder)
    failed = []

    def fail(*args: Any, **kwargs: Any) -> None:
        if function == "save_file":
            Path(args[1]).write_bytes(b"half")
        failed.append(function)
        raise _PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(store_module if function == "save_file" else os, function, fail)
        with pytest.raises(_PowerCut):
            run.write(evaluation(1 if again else 2, 0.875), *packed)
    assert failed
    assert contents(run.folder) == before


def test_a_file_is_whole_before_its_line_is_written(
    run: RunStore, packed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    append = store_module._append
    monkeypatch.setattr(
        store_module,
        "_append",
        lambda path, row: (seen.append(read_evaluation(run.folder / row["file"])[0]), append(path, row)),
    )
    run.write(evaluation(3), *packed)
    assert seen == [evaluation(3)] and steps(run) == [3]


def test_others_may_read_what_was_written(run: RunStore) -> None:
    assert run.write(evaluation(3), {}, {}).stat().st_mode & 0o777 == 0o644


# -- resumed runs ----------------------------------------------------------------------------------------------------


def test_what_came_after_the_resumed_step_is_superseded(run: RunStore) -> None:
    for step in (0, 100, 200, 300):
        run.write(evaluation(step), {}, {})
    for step in (100, 300):
        run.write_alert(alert(step))
    run.resume(100)
    assert steps(run) == [0, 100]
    assert run.alerts() == [alert(100)]

    run.write(evaluation(200, 0.875), {}, {})
    run.write_alert(alert(200))
    assert steps(run) == [0, 100, 200]
    assert run.evaluations()[2].evaluation.figures["imacs_g"][0] == 0.875
    assert run.alerts() == [alert(100), alert(200)]


def test_resuming_twice(run: RunStore) -> None:
    for step in (0, 100, 200):
        run.write(evaluation(step), {}, {})
    run.resume(100)
    run.write(evaluation(150), {}, {})
    run.resume(0)
    run.write(evaluation(50), {}, {})
    assert steps(run) == [0, 50]


def test_no_marker_when_nothing_is_later(run: RunStore) -> None:
    run.resume(0)
    assert not run.folder.exists()
    run.write(evaluation(0), {}, {})
    run.write(evaluation(100), {}, {})
    run.write_alert(alert(50))
    before = contents(run.folder)
    run.resume(100)
    assert contents(run.folder) == before
    run.resume(70)  # later than the alert, earlier than an evaluation
    after = contents(run.folder)
    assert after["alerts.jsonl"] == before["alerts.jsonl"]
    assert after["index.jsonl"] == before["index.jsonl"] + b'{"resumed_at": 70}\n'


# -- files that can't be used ----------------------------------------------------------------------------------------


def test_a_newer_index_is_refused(run: RunStore) -> None:
    run.write(evaluation(1), {}, {})
    row = json.loads(run.index.read_text())
    run.index.write_text(json.dumps({**row, "format": FORMAT + 1}) + "\n")
    with pytest.raises(StoreError, match=r"newer.*\(format 2, .* up to 1\).*pip install -U i2am-debug") as caught:
        run.evaluations()
    assert str(run.index) in str(caught.value)


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "step_00000001.safetensors"
    save_file({"x": np.zeros(1)}, path, metadata={"format": str(FORMAT + 1), "evaluation": "of another form"})
    with pytest.raises(StoreError, match=r"newer.*pip install -U i2am-debug") as caught:
        read_evaluation(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        StoreError, match=r"no evaluation at .*missing\.st; expected a step_….*plugins/i2am_debug folder"
    ):
        read_evaluation(tmp_path / "missing.st")
    with pytest.raises(StoreError, match="no evaluation at"):
        read_evaluation(tmp_path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_other_safetensors_are_no_evaluation(tmp_path: Path, metadata: dict | None) -> None:
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "model.safetensors", metadata=metadata)
    with pytest.raises(
        StoreError, match=r"model\.safetensors is a safetensors file, but not an evaluation of i2am-debug"
    ):
        read_evaluation(tmp_path / "model.safetensors")


@pytest.mark.parametrize("kept", [0, 5, 300, -1])
def test_a_broken_file_is_named(run: RunStore, packed: Any, kept: int) -> None:
    path = run.write(evaluation(1), *packed)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(StoreError, match=r"step_00000001\.safetensors can't be read: ."):
        read_evaluation(path)


# -- thinning --------------------------------------------------------------------------------------------------------


def test_thin_drops_rows_of_old_unprotected_evaluations_only(run: RunStore, packed: Any) -> None:
    paths = {step: run.write(evaluation(step), *packed) for step in (0, 100, 200, 300, 400)}
    before, listed = contents(run.folder), run.evaluations()
    rows = {name for name in packed[0] if name.startswith("0/rows/")}
    assert len(rows) == 2 * 6  # unified, time, head, copying layer, two layers; each with its scales

    run.thin(2, [0])
    assert run.evaluations() == listed
    thinned = {paths[100].name, paths[200].name}
    for name, content in contents(run.folder).items():
        assert (content != before[name]) == (name in thinned)
    for step in (100, 200):
        arrays = load_file(paths[step])
        assert arrays.keys() == packed[0].keys() - rows
        for name, value in arrays.items():
            assert value.dtype == packed[0][name].dtype
            np.testing.assert_array_equal(value, packed[0][name])
        assert read_evaluation(paths[step])[0] == evaluation(step)

    again = contents(run.folder)
    run.thin(2, [0])
    assert contents(run.folder) == again


def test_thin_keeps_all_when_there_are_few_and_skips_lost_files(run: RunStore, packed: Any) -> None:
    for step in (0, 100, 200):
        run.write(evaluation(step), *packed)
    before = contents(run.folder)
    run.thin(3, [])
    assert contents(run.folder) == before
    (run.folder / "step_00000000.safetensors").unlink()
    run.thin(1, [])
    assert not any("/rows/" in n for n in load_file(run.folder / "step_00000100.safetensors"))


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
    assert bytes_of(arrays) <= PAIR_BYTES
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
