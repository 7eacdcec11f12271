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
    row, column = (int(n) for n in np.unravel_index(int(np.argmax(map)), map.shape))
    maximum = (row + 0.5) / map.shape[0], (column + 0.5) / map.shape[1]
    words = "" if region is None else _compared(box, _share_inside(region, map.shape, (row, column)), region)
    return Marks(box, maximum, words)


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


def _compared(box: Box, inside: float, region: np.ndarray) -> str:
    """`inside`: how much of the maximum's token lies in the region."""
    if region.all() or not region.any():
        return ""
    return f"box IoU {box.iou(Box.around(region)):.2f} · maximum {'hits' if inside >= 0.5 else 'misses'}"


def _share_inside(region: np.ndarray, grid: tuple[int, ...], token: tuple[int, int]) -> float:
    """As `scores.pointing` weighs a token, of this one alone."""
    (row, column), (height, width) = token, region.shape
    rows = slice(row * height // grid[0], -(-(row + 1) * height // grid[0]))
    columns = slice(column * width // grid[1], -(-(column + 1) * width // grid[1]))
    return float(region[rows, columns].mean())
