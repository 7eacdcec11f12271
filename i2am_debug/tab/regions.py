"""The regions of a pair that are outlined on its pictures, each as bits. Knows no evaluation.

They are decoded here and not in the browser: some browsers blur what a page reads back from a picture.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from ..pairs.region_words import CHANGED, HOLE, OBJECT
from .refusal import Refusal
from .stored_arrays import ArrayFile

SIDE = 512
BYTES = 2**18
_WORDS_BYTES = 2**12

# How each is stored, what it is called, and which pictures it is outlined on, its own first. Those of a hole and an object are
# theirs: figures look at what is kept only where a pair has none (`ValidationPair.region`, `reference_region`). What changes is
# outlined, as on panels: a line around all the rest would not say on which side it is meant.
_REGIONS = (
    ("mask", HOLE, ("generated",)),
    ("reference_mask", OBJECT, ("reference",)),
    ("kept", CHANGED, ("generated", "reference")),
)


def regions(file: ArrayFile, pair: int) -> list[dict[str, Any]]:
    """The regions that are outlined on a pair's pictures, as far as its file has them.

    They are {name, of, origin, sought, height, width, bits}: "of" names the pictures one is outlined on, at the same shares of
    their height and width; "origin" says in words where it comes from, or nothing; "sought" whether maps are to point at it,
    which they are not in an edit; "bits" is base64 of its pixels row by row, eight a byte, the first in the highest bit, 1
    inside, the last byte filled up with 0.

    Raises:
        Refusal: the file has no such pair, a region is not a small black and white PNG, or its origin is no text.
    """
    if not any(name.startswith(f"{pair}/") for name in file.header.arrays):
        raise Refusal(404, f"{file.name} has no pair {pair}.")
    found = []
    taken: set[str] = set()
    for stored, name, sides in _REGIONS:
        if f"{pair}/{stored}" not in file.header.arrays or sides[0] in taken:
            continue
        inside = _decoded(file, f"{pair}/{stored}") != (name == CHANGED)
        found.append(
            {
                "name": name,
                "of": [side for side in sides if side not in taken],
                "origin": words(file, f"{pair}/{stored}_origin"),
                "height": inside.shape[0],
                "width": inside.shape[1],
                "bits": base64.b64encode(np.packbits(inside).tobytes()).decode(),
            }
        )
        taken.update(sides)
    is_edit = any(region["name"] == CHANGED for region in found)
    return [{**region, "sought": not is_edit} for region in found]


def _decoded(file: ArrayFile, name: str) -> np.ndarray:
    """(h, w) bool."""
    encoded = file.read(name, dtypes=("U8",), most_bytes=BYTES).tobytes()
    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG",)) as picture:
            if max(picture.size) > SIDE:  # a few bytes can claim gigabytes; so far only the header was read
                raise Refusal(422, f"{name} in {file.name} has more pixels a side than {SIDE}.")
            if picture.mode not in ("1", "L"):
                raise Refusal(422, f"{name} in {file.name} is not black and white.")
            return np.asarray(picture.convert("L")) > 127
    except Refusal:
        raise
    except Image.DecompressionBombError:
        raise Refusal(422, f"{name} in {file.name} has more pixels a side than {SIDE}.") from None
    except Exception:  # of a broken file Pillow raises anything: OSError, SyntaxError, ValueError, struct.error, …
        raise Refusal(422, f"{name} in {file.name} is no PNG that can be read.") from None


def words(file: ArrayFile, name: str) -> str:
    """Stored in UTF-8; nothing where there are none."""
    if name not in file.header.arrays:
        return ""
    stored = file.read(name, dtypes=("U8",), most_bytes=_WORDS_BYTES).tobytes()
    try:
        return stored.decode()
    except UnicodeDecodeError:
        raise Refusal(422, f"{name} in {file.name} is no text.") from None
