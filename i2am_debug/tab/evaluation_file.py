"""One evaluation's file as the tab wants it: what it holds, single maps and rows, information, pictures.

A pair goes by its number in the evaluation, as in the file. All sizes are bounded by what `packing` writes.
"""

from __future__ import annotations

import io
import json
import re
from typing import Any

import numpy as np
from PIL import Image

from ..figures.record import Evaluation
from ..figures.values import Undefined, reference_tag
from ..pairs.region_words import called, called_together
from ..store.evaluation_file import pairs_file_name
from .index_file import number, refuse_newer
from .refusal import Refusal
from .regions import words
from .stored_arrays import Array, ArrayFile

MAP_BYTES = 2**20
ROWS_BYTES = 2**20
PICTURE_BYTES = 2**22
_PICTURE_SIDE = 1024
_MAP_SIDE = 2**12
_ENTRIES = 512
_CELLS = 2**14
_INFORMATION_BYTES = 2**20

_LAYERS = "layer/"
_PREFIX = r"(?P<reference>reference_[1-9]\d{0,2}/)?"  # of the maps and rows of further references
_MAP = re.compile(
    _PREFIX + r"((r2g|g2r)/(unified|(?P<several>by_time|by_head|by_layer_head/.+)|by_layer/.+)"
    r"|(r2g_centred|r2g_object_mass|g2r_region)/unified)",
    re.DOTALL,
)
_ROWS = re.compile(
    _PREFIX + r"rows/(unified|copying_layer|(?P<several>by_time|by_head)|by_layer/.+)(?<!/scale)", re.DOTALL
)
_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
_NOT_OURS = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError)
_THINNED = (
    "only the newest evaluations, the baseline, the best and those of alerts keep their rows, where there is room"
)


def check_version(file: ArrayFile) -> None:
    """Raises:
    Refusal: it is of a newer version, or none of ours.
    """
    version = file.header.metadata.get("format", "")
    if not (version.isascii() and version.isdecimal() and len(version) < 10):
        raise Refusal(404, f"{file.name} is a safetensors file, but not one of i2am-debug.")
    refuse_newer(file.name, int(version))


def evaluation_of(file: ArrayFile) -> Evaluation:
    """What the file says in words and figures.

    Raises:
        Refusal: it holds no evaluation that can be read.
    """
    try:
        return Evaluation.from_json(json.loads(file.header.metadata["evaluation"]))
    except (KeyError, ValueError, RecursionError) as error:
        raise Refusal(404, f"{file.name} holds an evaluation that can't be read ({error!r:.200}).") from None


def describe(file: ArrayFile) -> dict[str, Any]:
    """All of it but the arrays.

    Raises:
        Refusal: as `evaluation_of`.
    """
    evaluation = evaluation_of(file)
    if not evaluation.pairs:
        raise Refusal(404, f"{file.name} has no pairs.")
    watched = evaluation.watched_layer or evaluation.copying_layer
    copying = None if isinstance(watched, Undefined) else str(watched)
    tags = [t for t in evaluation.figures if not t.startswith(_LAYERS) or t.startswith(f"{_LAYERS}{copying}/")]
    known = [str(i) for i in range(len(evaluation.pairs))]
    maps: dict[str, list[str]] = {pair: [] for pair in known}
    for name, array in file.header.arrays.items():
        pair, _, rest = name.partition("/")
        if pair in maps and _can_be_shown(rest, array):
            maps[pair].append(rest)
    references = {pair: _references(names) for pair, names in maps.items()}
    return {
        "step": number(evaluation.global_step),
        "pairs": [
            {"name": name, "figures": {tag: _figure(evaluation.figures[tag][i]) for tag in tags}}
            for i, name in enumerate(evaluation.pairs)
        ],
        **_region_names(evaluation),
        "layers": list(evaluation.layers),
        "heads": _most(file, "by_head") or _most(file, "information", axis=1),
        "looked_at": _looked_at(evaluation, file),
        "times": _most(file, "by_time"),
        "copying_layer": copying,
        "references": references,
        "reference_layers": {
            n: layers
            for n in sorted({n for own in references.values() for n in own})
            if (layers := _layers_of(file, evaluation, n)) != list(evaluation.layers)
        },
        "reference_lines": _reference_lines(evaluation.reference_lines),
        "generated": [int(pair) for pair in known if f"{pair}/generated" in file.header.arrays],
        "made": [_made(file, pair) for pair in known],
        "maps": {pair: sorted(names) for pair, names in maps.items()},
        "undefined": _missing(evaluation, maps),
    }


def read_map(file: ArrayFile, pair: int, name: str, index: int | None) -> np.ndarray:
    """One map, (h, w) float32, sum 1.

    Raises:
        Refusal: no such map, or not one that the tab reads.
    """
    known = _MAP.fullmatch(name)
    if not known:
        raise Refusal(400, "name is not the name of a map, such as r2g/unified, g2r/by_head or r2g/by_layer/<layer>.")
    _check_index(bool(known["several"]), index)
    found = file.read(f"{pair}/{name}", dtypes=("F16", "F32"), most_bytes=MAP_BYTES, index=index)
    if found.ndim != 2 or not found.size or max(found.shape) > _MAP_SIDE:
        raise Refusal(404, f"{pair}/{name} in {file.name} is no map: its shape is {_in_words(found)}.")
    # All but the unified maps ("r2g/unified") are stored with mean 1, to lie well inside float16's range.
    is_unified = _split(name)[1].partition("/")[2] == "unified"
    return found.astype("<f4") if is_unified else found.astype("<f4") / np.float32(found.size)


def read_rows(file: ArrayFile, pair: int, name: str, index: int | None) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """A matrix of rows: scale (g,) float32, values (g, r) uint8, and [gh, gw, rh, rw].

    Raises:
        Refusal: as `read_map`.
    """
    prefix, rest = _split(name)
    known = _ROWS.fullmatch(f"{prefix}rows/{rest}")
    if not known:
        raise Refusal(400, "name is not the name of rows, such as unified, copying_layer, by_time or by_layer/<layer>.")
    _check_index(bool(known["several"]), index)
    own = f"{pair}/{prefix}rows/{rest}"
    values = file.read(own, dtypes=("U8",), most_bytes=ROWS_BYTES, index=index)
    scale = file.read(f"{own}/scale", dtypes=("F32",), most_bytes=4 * ROWS_BYTES, index=index)
    grid = _grids(file, [str(pair)])[str(pair)].get(name)
    if grid is None:
        raise Refusal(404, f"{file.name} does not say on which grids {own} is.")
    (gh, gw), (rh, rw) = grid
    if values.shape != (gh * gw, rh * rw) or scale.shape != (gh * gw,) or not values.size:
        raise Refusal(404, f"{own} in {file.name} does not fit its grids.")
    return scale, values, [gh, gw, rh, rw]


def information(file: ArrayFile, reference: int = 0) -> dict[str, Any]:
    """Attention information of each layer and head in bits, mean over the pairs that have it.

    Raises:
        Refusal: as `evaluation_of`; there is none, or it does not fit the layers.
    """
    evaluation = evaluation_of(file)
    total = count = None
    prefix = f"{reference_tag(reference)}/" if reference else ""
    layers = _layers_of(file, evaluation, reference)
    for i in range(len(evaluation.pairs)):
        name = f"{i}/{prefix}information"
        if name not in file.header.arrays:
            continue
        bits = file.read(name, dtypes=("F32",), most_bytes=_INFORMATION_BYTES).astype(float)
        if bits.ndim != 2 or len(bits) != len(layers) or (total is not None and bits.shape != total.shape):
            raise Refusal(404, f"{name} in {file.name} does not fit the other pairs' or the layers.")
        known = np.isfinite(bits)
        total = np.where(known, bits, 0) + (0 if total is None else total)
        count = known + (0 if count is None else count)
    if total is None or count is None:
        raise Refusal(404, f"{file.name} has no attention information.")
    if total.size > _CELLS:
        raise Refusal(404, f"{file.name} has {total.size} layers and heads, more than the {_CELLS} that the tab shows.")
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return {
        "layers": layers,
        "heads": mean.shape[1],
        "bits": [[number(value) for value in row] for row in mean.tolist()],
    }


def pairs_file_of(file: ArrayFile) -> str:
    """The name of the file with the pictures of this evaluation's pairs."""
    evaluation = evaluation_of(file)
    try:
        return pairs_file_name(evaluation)
    except _NOT_OURS:
        raise Refusal(404, f"{file.name} does not say which pairs it looked at.") from None


def read_picture(file: ArrayFile, pair: int, which: str) -> tuple[bytes, str]:
    """An encoded picture and its type.

    Raises:
        Refusal: there is none, or it is neither PNG nor JPEG.
    """
    found = file.read(f"{pair}/{which}", dtypes=("U8",), most_bytes=PICTURE_BYTES).tobytes()
    for signature, kind in _SIGNATURES.items():
        if found.startswith(signature):
            if max(_size(found)) > _PICTURE_SIDE:  # a few bytes can claim gigabytes, and the browser would ask for them
                raise Refusal(422, f"{pair}/{which} in {file.name} has more pixels a side than {_PICTURE_SIDE}.")
            return found, kind
    raise Refusal(422, f"{pair}/{which} in {file.name} is neither PNG nor JPEG.")


def _size(encoded: bytes) -> tuple[int, int]:
    """Width and height that a PNG or JPEG claims; 0, 0 where it claims none, and no browser shows it then."""
    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as picture:
            return picture.size
    except Image.DecompressionBombError:
        return 2**31, 2**31
    except Exception:  # of a broken file Pillow raises anything: OSError, SyntaxError, ValueError, struct.error, …
        return 0, 0


def _check_index(needed: bool, index: int | None) -> None:
    if needed and index is None:
        raise Refusal(
            400, "by_time, by_head and by_layer_head hold one entry a time group or head: give index=0 or higher."
        )
    if not needed and index is not None:
        raise Refusal(400, "index is for by_time, by_head and by_layer_head only.")


def _can_be_shown(name: str, array: Array) -> bool:
    rows, a_map = _ROWS.fullmatch(name), _MAP.fullmatch(name)
    if rows:
        return array.dtype == "U8" and len(array.shape) == 2 + bool(rows["several"])
    return bool(a_map and array.dtype in ("F16", "F32") and len(array.shape) == 2 + bool(a_map["several"]))


def _split(name: str) -> tuple[str, str]:
    """What stands before the names of a further reference, and the rest; nothing for the pair's own."""
    found = re.match(_PREFIX, name)
    prefix = (found and found["reference"]) or ""
    return prefix, name[len(prefix) :]


def _references(names: list[str]) -> list[int]:
    """Numbers of the references that these maps and rows are of."""
    prefixes = {_split(name)[0] for name in names}
    return sorted(int(prefix[len("reference_") : -1]) if prefix else 0 for prefix in prefixes)


def _looked_at(evaluation: Evaluation, file: ArrayFile) -> dict[str, list[int]]:
    """Layer → the heads looked at, in the order of their maps; layers without such maps may be missing."""
    if evaluation.heads is not None:
        return {layer: [int(head) for head in heads] for layer, heads in evaluation.heads.items()}
    found: dict[str, list[int]] = {}
    for key, array in file.header.arrays.items():
        level, _, layer = _split(key.partition("/")[2])[1].removeprefix("r2g/").partition("/")
        if level == "by_layer_head" and array.shape:
            found.setdefault(layer, list(range(min(_ENTRIES, array.shape[0]))))
    return found


def _layers_of(file: ArrayFile, evaluation: Evaluation, reference: int) -> list[str]:
    """Names of the layers that read a reference, in the model's order."""
    prefix = f"{reference_tag(reference)}/" if reference else ""
    for i in range(len(evaluation.pairs)):
        if f"{i}/{prefix}layers" in file.header.arrays:
            stored = file.read(f"{i}/{prefix}layers", dtypes=("U8",), most_bytes=_INFORMATION_BYTES).tobytes()
            try:
                return [str(name) for name in json.loads(stored)]
            except _NOT_OURS:
                raise Refusal(404, f"{i}/{prefix}layers in {file.name} can't be read.") from None
    return list(evaluation.layers)


def _made(file: ArrayFile, pair: str) -> str:
    """How a picture was made that is no finished sample; the picture is shown whether or not that can be read."""
    try:
        return words(file, f"{pair}/generated_origin")
    except Refusal:
        return ""


def _region_names(evaluation: Evaluation) -> dict[str, Any]:
    """What figures call the region they look at, and what each pair's is called; older runs name none."""
    own = evaluation.fingerprint.get("regions")
    known = own if isinstance(own, list) and all(isinstance(one, str) for one in own) else []
    together = called_together(known)
    names = (
        [called(one) for one in known] if len(known) == len(evaluation.pairs) else [together] * len(evaluation.pairs)
    )
    return {"region": together, "regions": names}


def _figure(value: Any) -> Any:
    if isinstance(value, Undefined):
        return {"undefined": str(value.reason)[:500]}
    found = number(value)
    return {"undefined": "not a finite number"} if found is None else found


def _reference_lines(stored: Any) -> dict[str, dict[str, Any]]:
    own = stored.items() if isinstance(stored, dict) else ()
    return {tag: {line: number(v) for line, v in lines.items()} for tag, lines in own if isinstance(lines, dict)}


def _most(file: ArrayFile, name: str, axis: int = 0) -> int:
    """The most entries that an array of this name has in any pair: "r2g/by_head" as well as "g2r/by_head"."""
    own = (a.shape for key, a in file.header.arrays.items() if _last(key) == name)
    return min(_ENTRIES, max((shape[axis] for shape in own if len(shape) > axis), default=0))


def _last(key: str) -> str:
    """The level of a map that is of no single layer: "by_head" for "0/reference_1/r2g/by_head"."""
    rest = _split(key.partition("/")[2])[1]
    return rest.rpartition("/")[2] if rest.count("/") < 2 else ""


def _grids(file: ArrayFile, pairs: list[str]) -> dict[str, dict[str, list[list[int]]]]:
    """Pair → row name → [[gh, gw], [rh, rw]]; what has another form is left out."""
    try:
        stored = json.loads(file.header.metadata.get("grids", "{}"))
    except (ValueError, RecursionError):
        stored = {}
    known = stored if isinstance(stored, dict) else {}
    of_pair = {pair: known.get(pair) for pair in pairs}
    return {
        pair: {name: grid for name, grid in own.items() if _is_grid(grid)} if isinstance(own, dict) else {}
        for pair, own in of_pair.items()
    }


def _is_grid(grid: Any) -> bool:
    return (
        isinstance(grid, list)
        and len(grid) == 2
        and all(
            isinstance(g, list) and len(g) == 2 and all(type(n) is int and 0 < n <= _MAP_SIDE for n in g) for g in grid
        )
    )


def _missing(evaluation: Evaluation, maps: dict[str, list[str]]) -> dict[str, str]:
    """Why whole kinds of maps are not there, as far as the figures tell: "g2r", "rows", "reference_1/g2r", …"""
    kinds: dict[str, set[str]] = {"": set()}  # of each reference
    for name in (name for names in maps.values() for name in names):
        prefix, rest = _split(name)
        kinds.setdefault(prefix, set()).add(rest.partition("/")[0])
    out = {}
    for prefix, kept in kinds.items():
        if "g2r" not in kept:
            out[f"{prefix}g2r"] = _why_no_g2r(evaluation, prefix, maps)
        if "rows" not in kept:
            out[f"{prefix}rows"] = out.get(f"{prefix}g2r", _THINNED)
    return out


def _why_no_g2r(evaluation: Evaluation, prefix: str, maps: dict[str, list[str]]) -> str:
    """Its information is undefined for the same reason."""
    figures = evaluation.figures.get(f"{prefix}attention_information", ())
    for pair, figure in enumerate(figures):
        if isinstance(figure, Undefined) and any(name.startswith(prefix) for name in maps[str(pair)]):
            return str(figure.reason)[:500]
    if not prefix and isinstance(evaluation.copying_layer, Undefined):
        return str(evaluation.copying_layer.reason)[:500]
    return "not recorded"


def _in_words(array: np.ndarray) -> str:
    return "×".join(map(str, array.shape)) or "a single value"
