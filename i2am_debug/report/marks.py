"""Where a map says that something is, marked on its picture: the box around its heaviest part and its maximum."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ..errors import UndefinedFigure
from ..figures.boxes import Box, boxes

# The heat has no blue, and the picture below it is muted: read on both, and told from the white line around a region.
_BLUE, _RIM = (70, 214, 255), (10, 34, 48)
_DASH, _GAP, _RADIUS = 7, 5, 6  # pixels


class Marks(NamedTuple):
    box: Box
    maximum: tuple[float, float]
    """Middle of the strongest token: shares of the picture's height and width."""
    words: str
    """How they lie to a region, or nothing where they are compared with none."""


def marks_of(map: np.ndarray | str, region: np.ndarray | None) -> Marks | None:
    """Of a map (h, w), and compared with a region (H, W) bool of the same picture; none of a map that is nowhere strongest:
    undefined, constant, or of tokens without a grid."""
    if isinstance(map, str) or min(map.shape) == 1:
        return None
    try:
        box = boxes(map)[0]
    except (UndefinedFigure, ValueError):  # ValueError: negative attention, which the tile says
        return None
    row, column = np.unravel_index(int(np.argmax(map)), map.shape)
    maximum = (row + 0.5) / map.shape[0], (column + 0.5) / map.shape[1]
    return Marks(box, maximum, "" if region is None else _compared(map, box, region))


def draw_marks(picture: Image.Image, marks: Marks) -> None:
    """Into an RGB picture: the box dashed, a ring around the maximum."""
    draw_box(picture, marks.box)
    draw_ring(picture, marks.maximum)


def draw_box(picture: Image.Image, box: Box) -> None:
    draw, (width, height) = ImageDraw.Draw(picture), picture.size
    left, right = (round(share * width) for share in (box.left, box.right))
    top, bottom = (round(share * height) for share in (box.top, box.bottom))
    for grown, colour in ((1, _RIM), (0, _BLUE)):
        for start in range(left, right, _DASH + _GAP):
            for y in (top, bottom - 2):
                draw.rectangle((start - grown, y - grown, min(start + _DASH, right) - 1 + grown, y + 1 + grown), colour)
        for start in range(top, bottom, _DASH + _GAP):
            for x in (left, right - 2):
                draw.rectangle(
                    (x - grown, start - grown, x + 1 + grown, min(start + _DASH, bottom) - 1 + grown), colour
                )


def draw_ring(picture: Image.Image, place: tuple[float, float]) -> None:
    draw, y, x = ImageDraw.Draw(picture), place[0] * picture.height, place[1] * picture.width
    for grown, colour, thick in ((1, _RIM, 4), (0, _BLUE, 2)):
        radius = _RADIUS + grown
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=thick)


def _compared(map: np.ndarray, box: Box, region: np.ndarray) -> str:
    from ..figures.scores import pointing  # here: it imports torch, which drawing alone does without

    try:
        hits = pointing(map, region)
        return f"box IoU {box.iou(Box.around(region)):.2f} · maximum {'hits' if hits else 'misses'}"
    except UndefinedFigure:  # the region is all of the picture
        return ""
