"""One pair's maps, rows and picture in the form they are stored in. Imports no torch.

What a pair takes is bounded by `PAIR_BYTES` whatever the model's resolution: maps of single levels and the
specific-reference rows are pooled until they fit.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from ..capture.maps import patch_starts, pool_map, unified_form
from ..errors import StoreError
from ..figures.values import reference_tag
from ..pairs.pair import ValidationPair

PAIR_BYTES = 3 * 2**19
"""At most 1.5 MiB a pair."""

_PICTURE_SIDE = 384
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
_LEVEL_SIDES = (32, 24, 16, 8)
_HEAD_SIDES = (16, 12, 8)
_COMPANIONS = ("r2g_centred", "r2g_object_mass", "g2r_region")


def pack_observations(
    observations: Sequence[Any], copying_layer: str | None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """`pack_pair` of every `Observation`: arrays by "<pair number>/<name>", and pair number → grids of its rows.

    Those of further references stand under "<pair number>/reference_1/<name>", with the names of their "layers" as JSON
    where these are others than the first reference's; all of a pair share its `PAIR_BYTES`. Beside "generated" stands
    "generated_origin", words in UTF-8, where it is no finished sample.
    """
    arrays: dict[str, np.ndarray] = {}
    grids: dict[str, Any] = {}
    for observation in observations:
        grids[str(observation.index)] = {}
        for prefix, maps in _references(observation):
            room = PAIR_BYTES // (1 + len(observation.further))
            own, own_grids = pack_pair(maps, copying_layer, None if prefix else observation.generated, room)
            if list(maps.information) != list(observation.maps.information):
                own["layers"] = np.frombuffer(json.dumps(list(maps.information)).encode(), dtype=np.uint8)
            if "generated" in own and observation.painted:
                own["generated_origin"] = np.frombuffer(observation.painted.encode(), dtype=np.uint8)
            arrays.update({f"{observation.index}/{prefix}{name}": value for name, value in own.items()})
            grids[str(observation.index)].update({prefix + name: grid for name, grid in own_grids.items()})
    return arrays, grids


def unified_maps(observations: Sequence[Any]) -> dict[str, np.ndarray]:
    """ "0/r2g", "0/g2r", "0/reference_1/r2g", …: what later evaluations measure their distance from."""
    found = {}
    for observation in observations:
        for prefix, maps in _references(observation):
            found[f"{observation.index}/{prefix}r2g"] = unified_form(maps.r2g.unified)
            if maps.undefined_g2r is None:
                found[f"{observation.index}/{prefix}g2r"] = unified_form(maps.g2r.unified)
    return found


def _references(observation: Any) -> Iterator[tuple[str, Any]]:
    """What stands before the names of each reference's arrays, and its maps."""
    yield "", observation.maps
    for number, maps in observation.further.items():
        yield f"{reference_tag(number)}/", maps


def pack_pair(
    maps: Any, copying_layer: str | None, generated: Image.Image | None, room: int | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """One pair's arrays in their stored form, and the grids of its rows.

    Args:
        maps: `AttributionMaps`.
        room: how many bytes there are for it, by default `PAIR_BYTES`.

    Returns:
        Arrays by name, at most `room` bytes together: "r2g/unified" (h, w) float32 …, "r2g/by_time" (T, h, w) float16 with
        mean 1, "r2g/by_layer_head/<layer>" (n, h, w) float16 of the n heads looked at in a layer, "rows/…" (…, g, r) uint8
        with "rows/…/scale" (…, g) float32, "generated" encoded picture bytes; and row name → [generated grid, reference
        grid].
    """
    room = PAIR_BYTES if room is None else room
    directions = {"r2g": maps.r2g}
    if maps.undefined_g2r is None:
        directions["g2r"] = maps.g2r
    arrays = {f"{name}/unified": unified_form(direction.unified) for name, direction in directions.items()}
    for name in _COMPANIONS:
        companion = getattr(maps, f"_{name}", None) or (maps.r2g_centred if name == "r2g_centred" else None)
        if companion is not None:
            arrays[f"{name}/unified"] = unified_form(companion.unified)
    arrays["information"] = _information_form(maps.information)
    if generated is not None:
        arrays["generated"] = _bytes(generated)
    has_rows = maps.undefined_g2r is None
    least = _rows_bytes(maps.rows, copying_layer, *_ROW_SIDES[-1]) if has_rows else 0
    left = room - _size(arrays)
    levels = _finest(_LEVEL_SIDES, partial(_levels_form, directions), left - least)
    levels = levels or _levels_form(directions, _LEVEL_SIDES[-1])  # kept in any case, rather than rows
    arrays.update(levels)
    left -= _size(levels)
    of_heads = _finest(_HEAD_SIDES, partial(_heads_form, directions), min(room // 4, left - least))
    arrays.update(of_heads)
    left -= _size(of_heads)
    for sides in _ROW_SIDES if has_rows else ():
        if _rows_bytes(maps.rows, copying_layer, *sides) <= left:
            rows, grids = _rows_form(maps.rows, copying_layer, *sides)
            return {**arrays, **rows}, grids
    return arrays, {}


def pack_pictures(pair: ValidationPair) -> dict[str, np.ndarray]:
    """A pair's own pictures: "reference", "target" and, where it has them, "mask", "reference_mask", "kept",
    "reference_1", …, as encoded bytes. Beside "kept" stands "kept_origin", words in UTF-8."""
    pictures = {"reference": pair.reference, "target": pair.target}
    pictures.update({reference_tag(number): one for number, one in enumerate(pair.further_references, 1)})
    regions = {"mask": pair.mask, "reference_mask": pair.reference_mask, "kept": pair.kept}
    pictures.update({name: Image.fromarray(one) for name, one in regions.items() if one is not None})
    found = {name: _bytes(picture) for name, picture in pictures.items()}
    if pair.kept_origin is not None:
        found["kept_origin"] = np.frombuffer(pair.kept_origin.encode(), dtype=np.uint8)
    return found


def unpack_picture(stored: np.ndarray) -> Image.Image:
    """The inverse of an encoded picture: RGB, or "L" for a mask.

    Raises:
        StoreError: it is none that `pack_pictures` or `pack_pair` made.
    """
    try:
        picture = Image.open(io.BytesIO(stored.tobytes()), formats=("PNG", "JPEG"))
        if max(picture.size) <= _PICTURE_SIDE:  # a few bytes can claim gigabytes; so far only the header was read
            picture.load()
            return picture.convert("L") if picture.mode == "1" else picture
        wrong = f"it is {picture.width}x{picture.height}, at most {_PICTURE_SIDE} pixels a side are stored"
    except Exception as error:  # of broken bytes Pillow raises anything: OSError, SyntaxError, struct.error, …
        wrong = str(error) or type(error).__name__
    raise StoreError(f"a stored picture can't be read: {wrong}")


def _bytes(picture: Image.Image) -> np.ndarray:
    """PNG for masks, one bit a pixel, and small pictures, JPEG for others, at most 384 pixels a side."""
    is_mask = picture.mode in ("1", "L")
    picture = picture.convert("L" if is_mask else "RGB")
    lossless = is_mask or max(picture.size) <= 64
    picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    if is_mask:
        picture = picture.point([255 * (value > 127) for value in range(256)], "1")
    buffer = io.BytesIO()
    picture.save(buffer, **({"format": "PNG"} if lossless else {"format": "JPEG", "quality": 90}))
    return np.frombuffer(buffer.getvalue(), dtype=np.uint8)


def _finest(sides: Sequence[int], form: Callable[[int], dict[str, np.ndarray]], room: int) -> dict[str, np.ndarray]:
    """What `form` makes with the largest of the sides that fits into `room` bytes; nothing where even the least doesn't."""
    return next((found for found in map(form, sides) if _size(found) <= room), {})


def _size(arrays: Mapping[str, np.ndarray]) -> int:
    return sum(a.nbytes for a in arrays.values())


def _information_form(information: Mapping[str, np.ndarray]) -> np.ndarray:
    """(layers, heads), NaN where a layer has no such head or it was not looked at."""
    heads = max(len(bits) for bits in information.values())
    rows = [np.pad(bits, (0, heads - len(bits)), constant_values=np.nan) for bits in information.values()]
    return np.stack(rows).astype(np.float32)


def _levels_form(directions: Mapping[str, Any], side: int) -> dict[str, np.ndarray]:
    """The maps of time groups, heads and layers, at most `side` tokens a side."""
    found = {}
    for name, direction in directions.items():
        found[f"{name}/by_time"] = _level_form(direction.by_time, side)
        found[f"{name}/by_head"] = _level_form(direction.by_head, side)
        found.update({f"{name}/by_layer/{layer}": _level_form(one, side) for layer, one in direction.by_layer.items()})
    return found


def _heads_form(directions: Mapping[str, Any], side: int) -> dict[str, np.ndarray]:
    """The maps of each head of each layer, at most `side` tokens a side."""
    return {
        f"{name}/by_layer_head/{layer}": _level_form(maps, side)
        for name, direction in directions.items()
        for layer, maps in direction.by_layer_head.items()
    }


def _rows_bytes(rows: Any, copying_layer: str | None, side: int, small_side: int) -> int:
    """What `_rows_form` would take, without forming it."""

    def size(count: int, own: Any, limit: int) -> int:
        g, r = (min(h, limit) * min(w, limit) for h, w in own)
        return count * g * (r + 4)  # uint8 values and a float32 scale

    total = size(1, (rows.generated_grid, rows.reference_grid), side)
    total += size(len(rows.by_time) + len(rows.by_head), rows.small_grids, small_side)
    for layer, grid in rows.by_layer.grids.items():
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
        blocks = np.add.reduceat(blocks, patch_starts(length, count), axis=len(lead) + axis)
    flat = blocks.reshape(*lead, small[0][0] * small[0][1], small[1][0] * small[1][1])
    return flat / flat.sum(-1, keepdims=True), small


def _level_form(found: np.ndarray, side: int) -> np.ndarray:
    pooled = pool_map(found, side)
    return (pooled * pooled.shape[-1] * pooled.shape[-2]).astype(np.float16)  # mean 1, well inside float16's range
