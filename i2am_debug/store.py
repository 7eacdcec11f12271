"""Evaluations on disk: one safetensors file each, and `index.jsonl` with every figure. Imports no torch.

A write is a temporary file, fsync, rename, then the index line; a torn last line is skipped. A line `{"resumed_at": n}`
says that training went back to step n: what was recorded after it before that line is superseded.

What a pair takes on disk is bounded by `PAIR_BYTES` whatever the model's resolution: the specific-reference rows are pooled
until they fit.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .drift import Alert
from .errors import StoreError
from .record import FORMAT, Evaluation

PLUGIN_NAME = "i2am_debug"
PAIR_BYTES = 3 * 2**19
"""At most 1.5 MiB a pair."""

_PICTURE_SIDE = 384
_UNIFIED_SIDE, _LEVEL_SIDE = 64, 32
# Sides of the rows of (unified and copying layer, all other levels), from the finest that can be had to what always fits.
_ROW_SIDES = (
    (32, 16),
    (32, 12),
    (32, 8),
    (28, 8),
    (24, 8),
    (24, 6),
    (20, 6),
    (16, 6),
    (16, 4),
    (12, 4),
    (8, 4),
    (8, 2),
)
_COMPANIONS = ("r2g_centred", "r2g_object_mass", "g2r_region")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One line of the index: an evaluation's figures and where its maps are."""

    evaluation: Evaluation
    path: Path


class RunStore:
    """The folder of one run, `<run>/plugins/i2am_debug`."""

    def __init__(self, run: str | Path) -> None:
        self.folder = Path(run) / "plugins" / PLUGIN_NAME
        self.index = self.folder / "index.jsonl"
        self.alerts_file = self.folder / "alerts.jsonl"

    def write(self, evaluation: Evaluation, arrays: Mapping[str, np.ndarray], grids: Mapping[str, Any]) -> Path:
        """Writes one evaluation: its file first, then its line."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step_{evaluation.global_step:08d}.safetensors"
        metadata = {
            "format": str(FORMAT),
            "evaluation": json.dumps(evaluation.to_json()),
            "grids": json.dumps(grids),
        }
        _save(path, arrays, metadata)
        _append(self.index, {"file": path.name, **evaluation.to_json()})
        return path

    def write_alert(self, alert: Alert) -> None:
        """Appends one alert to `alerts.jsonl`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _append(self.alerts_file, {"format": FORMAT, **alert.to_json()})

    def resume(self, global_step: int) -> None:
        """Training goes on from `global_step`: later evaluations and alerts belong to an abandoned attempt."""
        for file, steps in (
            (self.index, [s.evaluation.global_step for s in self.evaluations()]),
            (self.alerts_file, [a.global_step for a in self.alerts()]),
        ):
            if any(step > global_step for step in steps):
                _append(file, {"resumed_at": global_step})

    def evaluations(self) -> list[Stored]:
        """All evaluations that count, by step.

        Raises:
            StoreError: the index was written by a newer version.
        """
        found: dict[int, Stored] = {}
        for row in _lines(self.index):
            if "resumed_at" in row:
                found = {step: s for step, s in found.items() if step <= row["resumed_at"]}
                continue
            _refuse_newer(self.index, row.get("format", 0))
            stored = Stored(evaluation=Evaluation.from_json(row), path=self.folder / row["file"])
            found[stored.evaluation.global_step] = stored
        return [found[step] for step in sorted(found)]

    def alerts(self) -> list[Alert]:
        """All alerts that count, in order."""
        found: dict[int, Alert] = {}
        for row in _lines(self.alerts_file):
            if "resumed_at" in row:
                found = {step: a for step, a in found.items() if step <= row["resumed_at"]}
                continue
            _refuse_newer(self.alerts_file, row.get("format", 0))
            found[row["global_step"]] = Alert.from_json(row)
        return [found[step] for step in sorted(found)]

    def thin(self, keep: int, protected: Iterable[int]) -> None:
        """Drops the rows of all but the newest `keep` evaluations and the `protected` steps; their maps and figures stay."""
        spared = set(protected)
        everything = self.evaluations()
        for stored in everything[: max(0, len(everything) - keep)]:
            if stored.evaluation.global_step in spared or not stored.path.is_file():
                continue
            with safe_open(stored.path, framework="numpy") as file:
                names = list(file.keys())
                if not any("/rows/" in n for n in names):
                    continue
                arrays = {n: file.get_tensor(n) for n in names if "/rows/" not in n}
                metadata = file.metadata()
            _save(stored.path, arrays, metadata)


def read_evaluation(path: str | Path) -> tuple[Evaluation, dict[str, np.ndarray]]:
    """One evaluation's figures and its unified maps ("0/r2g", "0/g2r", …) from its file.

    Raises:
        StoreError: no such file, not an evaluation, or of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise StoreError(
            f"no evaluation at {path}; expected a step_….safetensors of a run's plugins/{PLUGIN_NAME} folder"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if "evaluation" not in metadata:
                raise StoreError(f"{path} is a safetensors file, but not an evaluation of i2am-debug")
            _refuse_newer(path, int(metadata.get("format", 0)))
            unified = {
                name.removesuffix("/unified"): file.get_tensor(name)
                for name in list(file.keys())
                if name.endswith(("/r2g/unified", "/g2r/unified"))
            }
    except SafetensorError as error:
        raise StoreError(f"{path} can't be read: {error}") from None
    try:
        return Evaluation.from_json(json.loads(metadata["evaluation"])), unified
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} holds an evaluation that can't be read: {error!r}") from None


def pack_pair(
    maps: Any, copying_layer: str | None, generated: Image.Image | None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """One pair's arrays in their stored form, and the grids of its rows.

    Args:
        maps: `AttributionMaps`.

    Returns:
        Arrays by name, at most `PAIR_BYTES` together: "r2g/unified" (h, w) float32 …, "r2g/by_time" (T, h, w) float16 with
        mean 1, "rows/…" (…, g, r) uint8 with "rows/…/scale" (…, g) float32, "generated" encoded picture bytes; and
        row name → [generated grid, reference grid].
    """
    arrays: dict[str, np.ndarray] = {}
    directions = {"r2g": maps.r2g}
    if maps.undefined_g2r is None:
        directions["g2r"] = maps.g2r
    for name, direction in directions.items():
        arrays[f"{name}/unified"] = unified_form(direction.unified)
        arrays[f"{name}/by_time"] = _level_form(direction.by_time)
        arrays[f"{name}/by_head"] = _level_form(direction.by_head)
        for layer, found in direction.by_layer.items():
            arrays[f"{name}/by_layer/{layer}"] = _level_form(found)
    for name in _COMPANIONS:
        companion = getattr(maps, f"_{name}", None) or (maps.r2g_centred if name == "r2g_centred" else None)
        if companion is not None:
            arrays[f"{name}/unified"] = unified_form(companion.unified)
    heads = max(len(bits) for bits in maps.information.values())
    arrays["information"] = np.stack(
        [np.pad(bits, (0, heads - len(bits)), constant_values=np.nan) for bits in maps.information.values()]
    ).astype(np.float32)
    if generated is not None:
        arrays["generated"] = np.frombuffer(encode_picture(generated), dtype=np.uint8)
    if maps.undefined_g2r is not None:
        return arrays, {}
    left = PAIR_BYTES - sum(a.nbytes for a in arrays.values())
    for sides in _ROW_SIDES:
        if _rows_bytes(maps.rows, copying_layer, *sides) <= left:
            rows, grids = _rows_form(maps.rows, copying_layer, *sides)
            return {**arrays, **rows}, grids
    return arrays, {}


def unified_form(found: np.ndarray) -> np.ndarray:
    """A unified map as it is stored and compared: float32, sum 1, at most 64 tokens a side."""
    return _pool(found, _UNIFIED_SIDE).astype(np.float32)


def encode_picture(picture: Image.Image) -> bytes:
    """PNG for small pictures, JPEG for others, at most 384 pixels a side."""
    picture = picture.convert("RGB")
    small = max(picture.size) <= 64
    picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, **({"format": "PNG"} if small else {"format": "JPEG", "quality": 90}))
    return buffer.getvalue()


def _rows_bytes(rows: Any, copying_layer: str | None, side: int, small_side: int) -> int:
    """What `_rows_form` would take, without forming it."""

    def size(count: int, own: Any, limit: int) -> int:
        g, r = (min(h, limit) * min(w, limit) for h, w in own)
        return count * g * (r + 4)  # uint8 values and a float32 scale

    total = size(1, (rows.generated_grid, rows.reference_grid), side)
    total += size(len(rows.by_time) + len(rows.by_head), rows.small_grids, small_side)
    for layer, (grid, _) in rows.by_layer.items():
        own = (grid, rows.reference_grid)
        total += size(1, own, small_side) + (size(1, own, side) if layer == copying_layer else 0)
    return total


def _rows_form(rows: Any, copying_layer: str | None, side: int, small_side: int) -> tuple[dict, dict]:
    arrays: dict[str, np.ndarray] = {}
    grids: dict[str, Any] = {}

    def put(name: str, values: np.ndarray, own: Any, limit: int) -> None:
        pooled, small = _pool_rows(values, own, limit)
        scale = np.maximum(pooled.max(-1, keepdims=True), 1e-30)
        quantised = np.nan_to_num(pooled / scale * 255).round()
        arrays[f"rows/{name}"] = quantised.astype(np.uint8)
        arrays[f"rows/{name}/scale"] = scale[..., 0].astype(np.float32)  # NaN where no sample was looked at
        grids[name] = [list(g) for g in small]

    put("unified", rows.unified, (rows.generated_grid, rows.reference_grid), side)
    put("by_time", rows.by_time, rows.small_grids, small_side)
    put("by_head", rows.by_head, rows.small_grids, small_side)
    for layer, (grid, values) in rows.by_layer.items():
        if layer == copying_layer:
            put("copying_layer", values, (grid, rows.reference_grid), side)
        put(f"by_layer/{layer}", values, (grid, rows.reference_grid), small_side)
    return arrays, grids


def _pool_rows(values: np.ndarray, own: Any, limit: int) -> tuple[np.ndarray, Any]:
    """(…, g, r) rows on grids of at most `limit` a side: summed over reference patches, averaged over generated ones."""
    small = tuple((min(h, limit), min(w, limit)) for h, w in own)
    if small == tuple(map(tuple, own)):
        return values, small
    lead = values.shape[:-2]
    blocks = values.reshape(*lead, *own[0], *own[1])
    for axis, (length, count) in enumerate(zip((*own[0], *own[1]), (*small[0], *small[1]), strict=True)):
        blocks = np.add.reduceat(blocks, _starts(length, count), axis=len(lead) + axis)
    flat = blocks.reshape(*lead, small[0][0] * small[0][1], small[1][0] * small[1][1])
    return flat / flat.sum(-1, keepdims=True), small


def _pool(found: np.ndarray, limit: int) -> np.ndarray:
    """(…, h, w) maps on at most `limit` tokens a side; sums are kept."""
    for axis in (-2, -1):
        if found.shape[axis] > limit:
            found = np.add.reduceat(found, _starts(found.shape[axis], limit), axis=axis)
    return found


def _level_form(found: np.ndarray) -> np.ndarray:
    pooled = _pool(found, _LEVEL_SIDE)
    return (pooled * pooled.shape[-1] * pooled.shape[-2]).astype(np.float16)  # mean 1, well inside float16's range


def _starts(length: int, count: int) -> np.ndarray:
    return -(-np.arange(count) * length // count)


def _refuse_newer(path: Path, version: int) -> None:
    if version > FORMAT:
        raise StoreError(
            f"{path} was written by a newer i2am-debug (format {version}, this one reads up to {FORMAT}); "
            "upgrade with: pip install -U i2am-debug"
        )


def _save(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    os.close(handle)
    try:
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, temporary, metadata=dict(metadata))
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private; a shared log folder is read by others
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _append(path: Path, row: Mapping[str, Any]) -> None:
    with open(path, "ab+") as file:
        if file.tell() and not _ends_with_newline(file):
            file.write(b"\n")  # a torn line stays a line of its own
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue  # torn by a crash while writing
            if isinstance(row, dict):
                yield row
