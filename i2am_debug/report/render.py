"""Map → picture: overlays, the panel of one pair, strips of maps, and what single patches look at.

The only place that normalises for display, and a leaf: no figure is ever read off a picture. It knows no models, pairs
or stores; it is given PIL pictures, maps (float32, (h, w), sum 1) and words. An undefined map comes as its reason, a
`str`, and becomes a neutral tile that says so. Every picture returned is RGB, its longest side ≤ `LONGEST`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from math import prod
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageDraw

from .lettering import font, shorten, wrap
from .outline import outline

LONGEST = 1024  # pixels: TensorBoard and a pull request show it without scaling it down
SMALLEST_TEXT = 12  # pixels

Size = tuple[int, int]
Map: TypeAlias = np.ndarray | str
Mask: TypeAlias = np.ndarray | None
Legend = Callable[[int], Image.Image]

_PAPER, _INK, _GREY = (251, 251, 252), (28, 32, 38), (96, 104, 116)
_LINE, _NEUTRAL, _GROUND = (212, 216, 222), (238, 240, 243), (72, 72, 72)
_MARGIN, _GAP, _NARROWEST, _LARGEST_TILE, _SMALLEST_TILE = 28, 22, 760, 480, 40
_TITLE_LINE, _NOTE_LINE = 20, 17
# Of each channel, compressed: the heat colours then stand out on a white picture as well as on a black one.
_DARK_GREYS = [round(value * 0.45 + 28) for value in range(256)] * 3
_OPACITY = [round(255 * 0.92 * (value / 255) ** 0.9) for value in range(256)]
_OWN_SCALE = "Each map is scaled to its own maximum, at least to 2 × uniform (uniform = attention spread evenly)."


def heat(picture: Image.Image, map: Map, *, size: Size, vmax: float | None = None) -> Image.Image:
    """The map over a muted picture: the more attention, the brighter and the more opaque.

    picture: any size; it keeps its aspect ratio, so the result is the largest that fits into `size` (width, height).
    map: (h, w), at least 0, on any grid; (1, n) and (n, 1) are tokens without a grid and become bars. A
        reason, or a map that shows nothing (not finite, all zero, one token), gives an undefined tile.
    vmax: the value, in the map's units, drawn at full strength. Default: the map's maximum but at least twice its mean,
        so that an even map looks even instead of hot everywhere.
    """
    top = 0.0 if vmax is None or _problem(map) else vmax / float(np.mean(np.asarray(map)))
    return _overlay(picture, map, None, top, _fit(picture, size))


def panel(
    *,
    name: str,
    reference: Image.Image,
    masked_input: Image.Image | None,
    generated: Image.Image | None,
    made: str = "what the model made of it",
    truth: Image.Image | None,
    r2g: Map,
    g2r: Map,
    region: Mask,
    reference_region: Mask,
    figures: dict[str, str],
    subtitle: str = "",
    outlined: tuple[str, str] = ("the hole", "the object"),
    drawing: str = "the hole",
    note: str = "",
) -> Image.Image:
    """One validation pair at a glance: its pictures, and below them both directions of attention.

    region, reference_region: bool (H, W), outlined on R2G and on G2R; `outlined` says what they are, `drawing` whose G2R it is.
    figures: name → text, printed as they are. note: what else there is to say below.
    Absent pictures are left out and the rest moves up. Without a generated picture R2G lies over the truth (or the
    masked input, or plain grey) and its title says so.
    """
    offered = (
        ("Reference", "what the model may copy from", reference),
        ("Masked input", "what the model is asked to complete", masked_input),
        ("Truth", "what it should look like", truth),
        ("Generated", made, generated),
    )
    tiles = [_Tile(title, note, picture, partial(_scaled, picture)) for title, note, picture in offered if picture]
    under = generated or truth or masked_input or Image.new("RGB", reference.size, _GREY)
    where = "generated" if generated else "truth" if truth else "masked input" if masked_input else "empty canvas"
    maps = [
        _map_tile(
            "G2R on the reference",
            f"what {drawing} draws from it" if region is not None else "what the model draws from it",
            reference,
            g2r,
            reference_region,
        ),
        _map_tile(f"R2G on the {where}", "which regions the reference influences", under, r2g, region),
    ]
    # Each map stands below the picture it lies over, as far as what is there allows.
    if len(tiles) == 4:
        maps.insert(1, tiles.pop(2))
    notes = [
        f"{side} {_times(map)} uniform (1/{np.size(map)})"
        + (f", {thing} outlined." if mask is not None and min(np.shape(map)) > 1 else ".")
        for side, map, mask, thing in (("R2G", r2g, region, outlined[0]), ("G2R", g2r, reference_region, outlined[1]))
        if not _problem(map)
    ]
    ends = ("low", "high share of attention") if notes else ()
    legend = partial(_legend, ends, " ".join(filter(None, [_OWN_SCALE, *notes, note])), figures=figures)
    return _sheet(name, subtitle, tiles + maps, legend, columns=2 if len(tiles) == 2 else 3, roomy=True)


def strip(
    *,
    title: str,
    picture: Image.Image,
    maps: Sequence[Map],
    labels: Sequence[str],
    columns: int | None = None,
    region: Mask = None,
    note: str = "",
) -> Image.Image:
    """Several maps over one picture on one colour scale: time groups, heads or layers.

    maps: each (h, w) on its own grid, or a reason; compared as multiples of their mean, so that coarse and fine grids
    can stand side by side. columns: default one row for up to five maps, else what makes the tiles largest. region: bool
    (H, W), outlined on each. note: what else there is to say below.
    Raises ValueError if maps and labels differ in number, if there are none, or too many to be seen.
    """
    if not maps or len(maps) != len(labels) or (columns is not None and columns < 1):
        got = f"{len(maps)} maps, {len(labels)} labels, columns={columns}"
        raise ValueError(f"strip needs maps, one label for each, and columns >= 1; got {got}")
    tops = [float(_relative(map).max()) for map in maps if not _problem(map)]
    top = max([2.0, *tops])
    tiles = [_map_tile(label, _times(map), picture, map, region, top) for label, map in zip(labels, maps, strict=True)]
    scale = (
        "One colour scale for all tiles. × = times the even share (uniform: attention spread evenly over all tokens)."
    )
    legend = partial(_legend, ("0", f"{top:.1f} × uniform") if tops else (), f"{scale} {note}".rstrip())
    return _sheet(title, "", tiles, legend, columns or (len(tiles) if len(tiles) <= 5 else 0))


def specific_grid(
    *,
    title: str,
    generated: Image.Image,
    reference: Image.Image,
    rows: np.ndarray,
    generated_grid: Size,
    reference_grid: Size,
    patches: Sequence[tuple[int, int]],
) -> Image.Image:
    """For each chosen patch of the generated picture, where in the reference its attention goes (SRAM).

    rows: (g, r), the G2R row of each generated token; g = h·w of `generated_grid`, r = h·w of `reference_grid`, both
    (h, w). patches: (row, column) on `generated_grid`. Raises ValueError if these do not fit together.
    """
    (gh, gw), (rh, rw) = generated_grid, reference_grid
    if rows.shape != (gh * gw, rh * rw):
        raise ValueError(f"rows must be {(gh * gw, rh * rw)} for grids {gh}x{gw} and {rh}x{rw}, got {rows.shape}")
    outside = [patch for patch in patches if not (0 <= patch[0] < gh and 0 <= patch[1] < gw)]
    if outside or not patches:
        raise ValueError(f"patches must be one or more (row, column) on a {gh}x{gw} grid, got {outside or 'none'}")

    tiles = []
    for number, patch in enumerate(patches, start=1):
        map = rows[patch[0] * gw + patch[1]].reshape(rh, rw)
        what = f"patch ({patch[0]}, {patch[1]})" if min(gh, gw) > 1 else f"token {max(patch)}, which has no place"
        mask = np.zeros(generated_grid, dtype=bool)
        mask[patch[0], patch[1]] = min(gh, gw) > 1
        tiles.append(_Tile(f"{number}   generated", what, generated, partial(_outlined, generated, mask)))
        tiles.append(_map_tile("→ reference", _times(map), reference, map))
    legend = partial(_legend, ("low", "high share of the patch's attention"), _OWN_SCALE)
    explanation = "Left: the generated picture, one patch boxed. Right: where in the reference that patch looks."
    return _sheet(title, explanation, tiles, legend, group=2)


def comparison(
    *,
    name: str,
    subtitle: str,
    reference: Image.Image,
    truth: Image.Image,
    before: tuple[Image.Image | None, Map, Map],
    now: tuple[Image.Image | None, Map, Map],
    hole: Mask,
    reference_object: Mask,
) -> Image.Image:
    """One pair at the baseline and now: what was generated, and both directions of attention, each on one colour scale.

    before, now: (generated picture, r2g, g2r). R2G lies over the generated picture of its time, or over the truth where
    there is none; hole and reference_object are outlined.
    """
    seen = (("baseline", before), ("now", now))
    tops = [max([2.0, *(float(_relative(s[i]).max()) for _, s in seen if not _problem(s[i]))]) for i in (1, 2)]
    tiles = []
    if before[0] is not None and now[0] is not None:
        tiles.append(_Tile("Truth", "", truth, partial(_scaled, truth)))
        tiles += [_Tile(f"Generated, {when}", "", s[0], partial(_scaled, s[0])) for when, s in seen if s[0] is not None]
    tiles.append(_Tile("Reference", "", reference, partial(_scaled, reference)))
    tiles += [_map_tile(f"G2R, {when}", _times(s[2]), reference, s[2], reference_object, tops[1]) for when, s in seen]
    outlined = partial(_scaled, truth) if hole is None else partial(_outlined, truth, hole)
    tiles.append(_Tile("Truth" if hole is None else "Hole", "", truth, outlined))
    for when, (generated, r2g, _) in seen:
        where = f"R2G, {when}" + ("" if generated else ", on the truth")
        tiles.append(_map_tile(where, _times(r2g), generated or truth, r2g, hole, tops[0]))
    note = "Baseline and now share one colour scale in each direction. × = times the even share."
    return _sheet(name, subtitle, tiles, partial(_legend, ("low", "high share of attention"), note), columns=3)


def choose_patches(hole: Mask, grid: Size, count: int = 6) -> list[tuple[int, int]]:
    """Up to `count` patches (row, column), evenly spread over the hole, in reading order; the same for the same input.

    hole: bool (H, W), any size; None means the whole grid. A patch is in the hole if more than half of it is; if no
    patch is, those that the hole covers most. grid: (h, w). Raises ValueError if the hole is empty or `count` < 1.
    """
    if count < 1 or (hole is not None and not np.any(hole)):
        raise ValueError(f"choose_patches needs a hole that is not empty and count >= 1, got count={count}")
    mask = Image.fromarray(np.ones(grid, dtype=np.float32) if hole is None else np.asarray(hole, dtype=np.float32))
    covered = np.asarray(mask.resize((grid[1], grid[0]), Image.Resampling.BOX))
    inside = np.argwhere(covered > 0.5 if (covered > 0.5).any() else covered == covered.max())
    cells = inside[:, 0] + 1j * inside[:, 1]
    centres = cells[[abs(cells - cells.mean()).argmin()]]
    while len(centres) < min(count, len(cells)):
        centres = np.append(centres, cells[abs(cells[:, None] - centres).min(1).argmax()])
    # The farthest cells lie on the hole's rim; a few rounds of k-medoids move them inwards. No cell is in two clusters.
    for _ in range(8):
        nearest = abs(cells[:, None] - centres).argmin(1)
        clusters = [cells[nearest == index] for index in range(len(centres))]
        centres = np.array([own[abs(own - own.mean()).argmin()] for own in clusters])
    return sorted((int(centre.real), int(centre.imag)) for centre in centres)


class _Tile(NamedTuple):
    title: str
    note: str
    under: Image.Image  # gives the tile its shape
    draw: Callable[[Size], Image.Image]


def _map_tile(title: str, note: str, under: Image.Image, map: Map, mask: Mask = None, top: float = 0) -> _Tile:
    if not _problem(map) and min(np.shape(map)) == 1:
        note = "tokens without a grid"
    return _Tile(title, note, under, partial(_overlay, under, map, mask, top))


def _overlay(picture: Image.Image, map: Map, mask: Mask, top: float, size: Size) -> Image.Image:
    """`heat` at exactly this size; `top` is its vmax as a multiple of the map's mean or 0, `mask` is outlined."""
    if reason := _problem(map):
        image, face = Image.new("RGB", size, _NEUTRAL), font(SMALLEST_TEXT)
        text = "\n".join(wrap(f"undefined: {reason}", face, size[0] - 8, max(1, size[1] // _NOTE_LINE)))
        ImageDraw.Draw(image).multiline_text((size[0] / 2, size[1] / 2), text, _GREY, face, "mm", 5, "center")
        return image
    strength = _relative(map) / np.float32(top or max(2.0, _relative(map).max()))
    if min(strength.shape) == 1:
        return _bars(strength.ravel(), size)
    smooth = Image.fromarray(strength * 255).resize(size, Image.Resampling.BICUBIC).convert("L")
    colour = _scaled(picture, size)
    muted = Image.blend(colour.convert("L").convert("RGB"), colour, 0.2)
    drawn = _blend(muted.point(_DARK_GREYS), smooth)
    return drawn if mask is None else _outlined(drawn, mask, size)


def _problem(map: Map) -> str:
    """Why the map can't be drawn, or ""."""
    if isinstance(map, str):
        return map.removeprefix("undefined:").strip() or "no reason given"
    if map.ndim != 2 or map.size == 0:
        raise ValueError(f"a map must be (h, w), got shape {map.shape}; tokens without a grid are (1, n)")
    if not np.isfinite(map).all() or map.min() < 0:
        return "negative attention" if np.isfinite(map).all() else "not finite"
    return "all zero" if map.max() <= 0 else "one token" if map.size == 1 else ""


def _relative(map: Map) -> np.ndarray:
    return np.asarray(map, dtype=np.float32) / np.float32(np.mean(map, dtype=np.float64))


def _times(map: Map) -> str:
    return "undefined" if _problem(map) else f"max {_relative(map).max():.1f} ×"


def _bars(strength: np.ndarray, size: Size) -> Image.Image:
    image, starts = Image.new("RGB", size, _NEUTRAL), np.arange(min(len(strength), size[0]))
    tops = np.maximum.reduceat(strength, starts * len(strength) // len(starts)).clip(0, 1)
    tops = tops[np.arange(size[0]) * len(starts) // size[0]]
    colours = _blend(Image.new("RGB", size, _GROUND), Image.fromarray(np.uint8(tops * 255)[None]).resize(size))
    filled = np.arange(size[1], 0, -1)[:, None] <= 0.94 * size[1] * tops
    image.paste(colours, mask=Image.fromarray(np.uint8(filled * 255)))
    return image


def _outlined(picture: Image.Image, mask: np.ndarray, size: Size) -> Image.Image:
    image = _scaled(picture, size)
    outline(image, mask)
    return image


def _blend(ground: Image.Image, strength: Image.Image) -> Image.Image:
    """Heat colours over `ground` (RGB), the stronger (L) the more opaque."""
    heat = strength.copy()
    heat.putpalette(_colours())
    return Image.composite(heat.convert("RGB"), ground, strength.point(_OPACITY))


def get_ready_to_draw() -> None:
    """Imports and keeps what drawing needs: not for a thread that runs beside others to do."""
    _colours(), font(14)


@lru_cache(maxsize=1)
def _colours() -> bytes:
    from matplotlib import colormaps

    # Inferno without its black end: low values are shown by transparency, and must not darken the picture.
    return (colormaps["inferno"](np.linspace(0.35, 1, 256))[:, :3] * 255).astype(np.uint8).tobytes()


def _fit(picture: Image.Image, box: Size) -> Size:
    scale = min(box[0] / picture.width, box[1] / picture.height)
    return max(1, round(picture.width * scale)), max(1, round(picture.height * scale))


def _scaled(picture: Image.Image, size: Size) -> Image.Image:
    crisp = size[0] >= 2 * picture.width
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST if crisp else Image.Resampling.LANCZOS)


def _sheet(
    title: str, subtitle: str, tiles: list[_Tile], legend: Legend, columns: int = 0, roomy: bool = False, group: int = 1
) -> Image.Image:
    """`columns` 0: what makes the tiles largest. `roomy`: cells wide enough for a sentence, shorter rows centred.
    `group`: so many neighbours stand closer together."""
    narrow, caption = _NARROWEST - 2 * _MARGIN, _TITLE_LINE + _NOTE_LINE + 7
    heading = [(line, _INK, font(21, bold=True), 29) for line in wrap(title, font(21, bold=True), narrow, 2)]
    heading += [(line, _GREY, font(14), 21) for line in wrap(subtitle, font(14), narrow, 2) if line]
    # The legend is measured at the narrowest width, where it is highest: at the real width it can only need less.
    fixed = 2 * _MARGIN + 8 + sum(line[3] for line in heading) + legend(narrow).height

    def box(columns: int) -> Size:
        width, rows = (LONGEST - 2 * _MARGIN - (columns - 1) * _GAP) // columns, -(-len(tiles) // columns)
        return min(_LARGEST_TILE, width), min(_LARGEST_TILE, (LONGEST - fixed) // rows - caption - _GAP)

    def fullness(columns: int) -> tuple[int, int]:
        return prod(_fit(tiles[-1].under, box(columns))), -(-len(tiles) % columns)

    columns = columns or max(range(group, len(tiles) + 1, group), key=fullness)
    if min(box(columns)) < _SMALLEST_TILE:
        raise ValueError(f"{len(tiles)} tiles in {columns} columns can't be seen on {LONGEST} px; draw fewer")
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    sizes = [[_fit(tile.under, box(columns)) for tile in row] for row in rows]
    cell = max(262 if roomy else 0, *(size[0] for row in sizes for size in row))
    used = columns * cell + (columns - 1) * _GAP
    width = max(_NARROWEST, used + 2 * _MARGIN)
    canvas = Image.new("RGB", (width, LONGEST), _PAPER)
    draw, y = ImageDraw.Draw(canvas), _MARGIN - 6
    for line, colour, face, height in heading:
        draw.text((_MARGIN, y + height / 2), line, colour, face, "lm")
        y += height
    y += 14
    small, bold = font(SMALLEST_TEXT), font(14 if cell > 240 else SMALLEST_TEXT, bold=True)
    for row, row_sizes in zip(rows, sizes, strict=True):
        x = (width - used + (columns - len(row)) * (cell + _GAP)) // 2 if roomy else _MARGIN
        for index, (tile, size) in enumerate(zip(row, row_sizes, strict=True), start=1):
            draw.text((x, y + _TITLE_LINE / 2), shorten(tile.title, bold, cell), _INK, bold, "lm")
            draw.text((x, y + _TITLE_LINE + _NOTE_LINE / 2), shorten(tile.note, small, cell), _GREY, small, "lm")
            draw.rectangle((x - 1, y + caption - 1, x + size[0], y + caption + size[1]), outline=_LINE)
            canvas.paste(tile.draw(size), (x, y + caption))
            x += cell + (_GAP if group == 1 else _GAP // 3 if index % group else _GAP * 5 // 3)
        y += caption + max(size[1] for size in row_sizes) + _GAP
    foot = legend(width - 2 * _MARGIN)
    canvas.paste(foot, (_MARGIN, y))
    return canvas.crop((0, 0, width, min(LONGEST, y + foot.height + _MARGIN)))


def _legend(ends: Sequence[str], note: str, width: int, figures: dict[str, str] | None = None) -> Image.Image:
    """What stands below the tiles, as high as it needs to be: figures, and, where there is a map, the colour bar."""
    canvas = Image.new("RGB", (width, LONGEST), _PAPER)
    draw, plain, bold, x, y = ImageDraw.Draw(canvas), font(14), font(14, bold=True), 0.0, 0
    for name, value in (figures or {}).items():
        name = shorten(name, plain, width / 2 - 8)
        value = shorten(value, bold, width - plain.getlength(name) - 8)  # a reason may take the line's rest
        middle, used = plain.getlength(name) + 7, plain.getlength(name) + 7 + bold.getlength(value)
        if x and x + used > width:
            x, y = 0.0, y + 22
        draw.text((x, y + 11), name, _GREY, plain, "lm")
        draw.text((x + middle, y + 11), value, _INK, bold, "lm")
        x += used + 28
    y += 34 if figures else 0
    if ends:
        left = round(plain.getlength(ends[0])) + 8
        ramp = Image.linear_gradient("L").rotate(90).resize((200, 14))
        draw.text((0, y + 9), ends[0], _INK, plain, "lm")
        draw.text((left + 208, y + 9), ends[1], _INK, plain, "lm")
        canvas.paste(_blend(Image.new("RGB", (200, 14), _GROUND), ramp), (left, y + 2))
        lines = wrap(note, font(SMALLEST_TEXT), width, 5)
        draw.multiline_text((0, y + 26), "\n".join(lines), _GREY, font(SMALLEST_TEXT), spacing=5)
        y += 26 + len(lines) * _NOTE_LINE
    return canvas.crop((0, 0, width, max(1, y)))
