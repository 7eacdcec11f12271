"""The sheet that every panel and strip is: titled tiles in rows, and below them figures and a legend.

A sheet is RGB, its longest side ≤ `LONGEST`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ..figures.boxes import Box
from .lettering import SMALLEST_TEXT, font, shorten, wrap
from .marks import Marks, draw_box, draw_ring
from .render import GREY, GROUND, NOTE_LINE, Map, Mask, Size, blend, fit, overlay, problem

LONGEST = 1024  # pixels: TensorBoard and a pull request show it without scaling it down

Foot = Callable[[int], Image.Image]  # of a width in pixels

MARGIN = 28
_PAPER, _INK, _LINE = (251, 251, 252), (28, 32, 38), (212, 216, 222)
_GAP, _NARROWEST, _LARGEST_TILE, _SMALLEST_TILE = 22, 760, 480, 40
_TITLE_LINE = 20


class Tile(NamedTuple):
    title: str
    note: str
    under: Image.Image  # gives the tile its shape
    draw: Callable[[Size], Image.Image]
    below: str = ""


def map_tile(
    title: str,
    note: str,
    under: Image.Image,
    map: Map,
    mask: Mask = None,
    top: float = 0,
    marks: Marks | None = None,
) -> Tile:
    if not problem(map) and min(np.shape(map)) == 1:
        note = "tokens without a grid"
    return Tile(title, note, under, partial(overlay, under, map, mask, top, marks=marks), marks.words if marks else "")


def sheet(
    title: str, subtitle: str, tiles: list[Tile], foot: Foot, columns: int = 0, roomy: bool = False, group: int = 1
) -> Image.Image:
    """`columns` 0: what makes the tiles largest. `roomy`: cells wide enough for a sentence, shorter rows centred.
    `group`: so many neighbours stand closer together."""
    narrow, caption = _NARROWEST - 2 * MARGIN, _TITLE_LINE + NOTE_LINE + 7
    heading = [(line, _INK, font(21, bold=True), 29) for line in wrap(title, font(21, bold=True), narrow, 2)]
    heading += [(line, GREY, font(14), 21) for line in wrap(subtitle, font(14), narrow, 2) if line]
    # The foot is measured at the narrowest width, where it is highest: at the real width it can only need less.
    fixed = 2 * MARGIN + 8 + sum(line[3] for line in heading) + foot(narrow).height

    below = NOTE_LINE + 4 if any(tile.below for tile in tiles) else 0

    def box(columns: int) -> Size:
        width, rows = (LONGEST - 2 * MARGIN - (columns - 1) * _GAP) // columns, -(-len(tiles) // columns)
        return min(_LARGEST_TILE, width), min(_LARGEST_TILE, (LONGEST - fixed) // rows - caption - below - _GAP)

    def fullness(columns: int) -> tuple[int, int]:
        return prod(fit(tiles[-1].under, box(columns))), -(-len(tiles) % columns)

    columns = columns or max(range(group, len(tiles) + 1, group), key=fullness)
    if min(box(columns)) < _SMALLEST_TILE:
        raise ValueError(f"{len(tiles)} tiles in {columns} columns can't be seen on {LONGEST} px; draw fewer")
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    sizes = [[fit(tile.under, box(columns)) for tile in row] for row in rows]
    cell = max(262 if roomy else 0, *(size[0] for row in sizes for size in row))
    used = columns * cell + (columns - 1) * _GAP
    width = max(_NARROWEST, used + 2 * MARGIN)
    canvas = Image.new("RGB", (width, LONGEST), _PAPER)
    draw, y = ImageDraw.Draw(canvas), MARGIN - 6
    for line, colour, face, height in heading:
        draw.text((MARGIN, y + height / 2), line, colour, face, "lm")
        y += height
    y += 14
    small, bold = font(SMALLEST_TEXT), font(14 if cell > 240 else SMALLEST_TEXT, bold=True)
    for row, row_sizes in zip(rows, sizes, strict=True):
        x = (width - used + (columns - len(row)) * (cell + _GAP)) // 2 if roomy else MARGIN
        for index, (tile, size) in enumerate(zip(row, row_sizes, strict=True), start=1):
            draw.text((x, y + _TITLE_LINE / 2), shorten(tile.title, bold, cell), _INK, bold, "lm")
            draw.text((x, y + _TITLE_LINE + NOTE_LINE / 2), shorten(tile.note, small, cell), GREY, small, "lm")
            draw.rectangle((x - 1, y + caption - 1, x + size[0], y + caption + size[1]), outline=_LINE)
            canvas.paste(tile.draw(size), (x, y + caption))
            draw.text(
                (x, y + caption + size[1] + 4 + NOTE_LINE / 2), shorten(tile.below, small, cell), GREY, small, "lm"
            )
            x += cell + (_GAP if group == 1 else _GAP // 3 if index % group else _GAP * 5 // 3)
        y += caption + max(size[1] for size in row_sizes) + (below if any(tile.below for tile in row) else 0) + _GAP
    last = foot(width - 2 * MARGIN)
    canvas.paste(last, (MARGIN, y))
    return canvas.crop((0, 0, width, min(LONGEST, y + last.height + MARGIN)))


def legend(
    ends: Sequence[str], note: str, width: int, figures: dict[str, str] | None = None, marked: bool = False
) -> Image.Image:
    """What stands below the tiles, as high as it needs to be: figures, and, where there is a map, the colour bar and, where
    some are `marked`, what the marks mean."""
    canvas = Image.new("RGB", (width, LONGEST), _PAPER)
    draw, plain, bold, x, y = ImageDraw.Draw(canvas), font(14), font(14, bold=True), 0.0, 0
    for name, value in (figures or {}).items():
        name = shorten(name, plain, width / 2 - 8)
        value = shorten(value, bold, width - plain.getlength(name) - 8)  # a reason may take the line's rest
        middle, used = plain.getlength(name) + 7, plain.getlength(name) + 7 + bold.getlength(value)
        if x and x + used > width:
            x, y = 0.0, y + 22
        draw.text((x, y + 11), name, GREY, plain, "lm")
        draw.text((x + middle, y + 11), value, _INK, bold, "lm")
        x += used + 28
    y += 34 if figures else 0
    if ends:
        left = round(plain.getlength(ends[0])) + 8
        ramp = Image.linear_gradient("L").rotate(90).resize((200, 14))
        draw.text((0, y + 9), ends[0], _INK, plain, "lm")
        draw.text((left + 208, y + 9), ends[1], _INK, plain, "lm")
        canvas.paste(blend(Image.new("RGB", (200, 14), GROUND), ramp), (left, y + 2))
        if marked:
            _explain_marks(canvas, left + 208 + round(plain.getlength(ends[1])) + 28, y)
        lines = wrap(note, font(SMALLEST_TEXT), width, 6)
        draw.multiline_text((0, y + 26), "\n".join(lines), GREY, font(SMALLEST_TEXT), spacing=5)
        y += 26 + len(lines) * NOTE_LINE
    return canvas.crop((0, 0, width, max(1, y)))


def _explain_marks(canvas: Image.Image, x: int, y: int) -> None:
    draw, plain = ImageDraw.Draw(canvas), font(14)
    for words, paint in (
        ("heaviest part", lambda ground: draw_box(ground, Box(top=0.15, left=0.1, bottom=0.85, right=0.9))),
        ("maximum", lambda ground: draw_ring(ground, (0.5, 0.5))),
    ):
        ground = Image.new("RGB", (26, 18), GROUND)
        paint(ground)
        canvas.paste(ground, (x, y))
        draw.text((x + 34, y + 9), words, _INK, plain, "lm")
        x += 34 + round(plain.getlength(words)) + 20
