"""Map → picture: attention over the picture it is of.

The only place that normalises for display, and a leaf: no figure is ever read off a picture. It knows no models, pairs
or stores; it is given PIL pictures and maps (float32, (h, w), sum 1). An undefined map comes as its reason, a `str`, and
becomes a neutral tile that says so.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw

from .lettering import SMALLEST_TEXT, font, wrap
from .marks import Marks, draw_marks, marks_of
from .outline import outline

Size = tuple[int, int]
Map: TypeAlias = np.ndarray | str
Mask: TypeAlias = np.ndarray | None

GREY, GROUND = (96, 104, 116), (72, 72, 72)
NOTE_LINE = 17
_NEUTRAL = (238, 240, 243)
# Of each channel, compressed: the heat colours then stand out on a white picture as well as on a black one.
_DARK_GREYS = [round(value * 0.45 + 28) for value in range(256)] * 3
_OPACITY = [round(255 * 0.92 * (value / 255) ** 0.9) for value in range(256)]


def heat(picture: Image.Image, map: Map, *, size: Size, vmax: float | None = None) -> Image.Image:
    """The map over a muted picture: the more attention, the brighter and the more opaque.

    picture: any size; it keeps its aspect ratio, so the result is the largest that fits into `size` (width, height).
    map: (h, w), at least 0, on any grid; (1, n) and (n, 1) are tokens without a grid and become bars. A
        reason, or a map that shows nothing (not finite, all zero, one token), gives an undefined tile.
    vmax: the value, in the map's units, drawn at full strength. Default: the map's maximum but at least twice its mean,
        so that an even map looks even instead of hot everywhere.
    """
    top = 0.0 if vmax is None or problem(map) else vmax / float(np.mean(np.asarray(map)))
    return overlay(picture, map, None, top, fit(picture, size))


def overlay(
    picture: Image.Image, map: Map, mask: Mask, top: float, size: Size, marks: Marks | None = None
) -> Image.Image:
    """`heat` at exactly this size; `top` is its vmax as a multiple of the map's mean or 0, `mask` is outlined."""
    if reason := problem(map):
        image, face = Image.new("RGB", size, _NEUTRAL), font(SMALLEST_TEXT)
        text = "\n".join(wrap(f"undefined: {reason}", face, size[0] - 8, max(1, size[1] // NOTE_LINE)))
        ImageDraw.Draw(image).multiline_text((size[0] / 2, size[1] / 2), text, GREY, face, "mm", 5, "center")
        return image
    strength = relative(map) / np.float32(top or max(2.0, relative(map).max()))
    if min(strength.shape) == 1:
        return _bars(strength.ravel(), size)
    smooth = Image.fromarray(strength * 255).resize(size, Image.Resampling.BICUBIC).convert("L")
    colour = scaled(picture, size)
    muted = Image.blend(colour.convert("L").convert("RGB"), colour, 0.2)
    drawn = blend(muted.point(_DARK_GREYS), smooth)
    if mask is not None:
        outline(drawn, mask)
    if marks is not None:
        draw_marks(drawn, marks)
    return drawn


def problem(map: Map) -> str:
    """Why the map can't be drawn, or ""."""
    if isinstance(map, str):
        return map.removeprefix("undefined:").strip() or "no reason given"
    if map.ndim != 2 or map.size == 0:
        raise ValueError(f"a map must be (h, w), got shape {map.shape}; tokens without a grid are (1, n)")
    if not np.isfinite(map).all() or map.min() < 0:
        return "negative attention" if np.isfinite(map).all() else "not finite"
    return "all zero" if map.max() <= 0 else "one token" if map.size == 1 else ""


def relative(map: Map) -> np.ndarray:
    return np.asarray(map, dtype=np.float32) / np.float32(np.mean(map, dtype=np.float64))


def times(map: Map) -> str:
    return "undefined" if problem(map) else f"max {relative(map).max():.1f} ×"


def _bars(strength: np.ndarray, size: Size) -> Image.Image:
    image, starts = Image.new("RGB", size, _NEUTRAL), np.arange(min(len(strength), size[0]))
    tops = np.maximum.reduceat(strength, starts * len(strength) // len(starts)).clip(0, 1)
    tops = tops[np.arange(size[0]) * len(starts) // size[0]]
    colours = blend(Image.new("RGB", size, GROUND), Image.fromarray(np.uint8(tops * 255)[None]).resize(size))
    filled = np.arange(size[1], 0, -1)[:, None] <= 0.94 * size[1] * tops
    image.paste(colours, mask=Image.fromarray(np.uint8(filled * 255)))
    return image


def outlined_on(picture: Image.Image, mask: np.ndarray, size: Size) -> Image.Image:
    image = scaled(picture, size)
    outline(image, mask)
    return image


def blend(ground: Image.Image, strength: Image.Image) -> Image.Image:
    """Heat colours over `ground` (RGB), the stronger (L) the more opaque."""
    heat = strength.copy()
    heat.putpalette(_colours())
    return Image.composite(heat.convert("RGB"), ground, strength.point(_OPACITY))


def get_ready_to_draw() -> None:
    """Imports and keeps what drawing needs: not for a thread that runs beside others to do."""
    _colours(), font(14), marks_of(np.eye(2), np.eye(2))


@lru_cache(maxsize=1)
def _colours() -> bytes:
    from matplotlib import colormaps

    # Inferno without its black end: low values are shown by transparency, and must not darken the picture.
    return (colormaps["inferno"](np.linspace(0.35, 1, 256))[:, :3] * 255).astype(np.uint8).tobytes()


def fit(picture: Image.Image, box: Size) -> Size:
    scale = min(box[0] / picture.width, box[1] / picture.height)
    return max(1, round(picture.width * scale)), max(1, round(picture.height * scale))


def scaled(picture: Image.Image, size: Size) -> Image.Image:
    crisp = size[0] >= 2 * picture.width
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST if crisp else Image.Resampling.LANCZOS)
