"""What is drawn for a person: the panel of one pair, strips of maps, what single patches look at, a pair before and now.

They know no models, pairs or stores; they are given PIL pictures, maps (float32, (h, w), sum 1, or the reason why there is
none) and words.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from PIL import Image

from ..pairs.region_words import HOLE, OBJECT
from .marks import Marks
from .render import GREY, Map, Mask, Size, outlined_on, problem, relative, scaled, times
from .sheet import Tile, legend, map_tile, sheet

_OWN_SCALE = "Each map is scaled to its own maximum, at least to 2 × uniform (uniform = attention spread evenly)."
_MARKS = "IoU: of the dashed box, around the heaviest part of the map, with the box of what is outlined."


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
    outlined: tuple[str, str] = (HOLE, OBJECT),
    drawing: str = HOLE,
    marks: tuple[Marks | None, Marks | None] = (None, None),
    note: str = "",
) -> Image.Image:
    """One validation pair at a glance: its pictures, and below them both directions of attention.

    region, reference_region: bool (H, W), outlined on R2G and on G2R; `outlined` says what they are, `drawing` whose G2R it is.
    marks: of R2G and of G2R, where they are marked.
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
    tiles = [Tile(title, note, picture, partial(scaled, picture)) for title, note, picture in offered if picture]
    under = generated or truth or masked_input or Image.new("RGB", reference.size, GREY)
    where = "generated" if generated else "truth" if truth else "masked input" if masked_input else "empty canvas"
    maps = [
        map_tile(
            "G2R on the reference",
            f"what {drawing} draws from it" if region is not None else "what the model draws from it",
            reference,
            g2r,
            reference_region,
            marks=marks[1],
        ),
        map_tile(f"R2G on the {where}", "which regions the reference influences", under, r2g, region, marks=marks[0]),
    ]
    # Each map stands below the picture it lies over, as far as what is there allows.
    if len(tiles) == 4:
        maps.insert(1, tiles.pop(2))
    notes = [
        f"{side} {times(map)} uniform (1/{np.size(map)})"
        + (f", {thing} outlined." if mask is not None and min(np.shape(map)) > 1 else ".")
        for side, map, mask, thing in (("R2G", r2g, region, outlined[0]), ("G2R", g2r, reference_region, outlined[1]))
        if not problem(map)
    ]
    ends = ("low", "high share of attention") if notes else ()
    compared = _MARKS if any(one and one.words for one in marks) else ""
    said = " ".join(filter(None, [_OWN_SCALE, *notes, compared, note]))
    foot = partial(legend, ends, said, figures=figures, marked=any(marks))
    return sheet(name, subtitle, tiles + maps, foot, columns=2 if len(tiles) == 2 else 3, roomy=True)


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
    tops = [float(relative(map).max()) for map in maps if not problem(map)]
    top = max([2.0, *tops])
    tiles = [map_tile(label, times(map), picture, map, region, top) for label, map in zip(labels, maps, strict=True)]
    scale = (
        "One colour scale for all tiles. × = times the even share (uniform: attention spread evenly over all tokens)."
    )
    foot = partial(legend, ("0", f"{top:.1f} × uniform") if tops else (), f"{scale} {note}".rstrip())
    return sheet(title, "", tiles, foot, columns or (len(tiles) if len(tiles) <= 5 else 0))


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
        tiles.append(Tile(f"{number}   generated", what, generated, partial(outlined_on, generated, mask)))
        tiles.append(map_tile("→ reference", times(map), reference, map))
    foot = partial(legend, ("low", "high share of the patch's attention"), _OWN_SCALE)
    explanation = "Left: the generated picture, one patch boxed. Right: where in the reference that patch looks."
    return sheet(title, explanation, tiles, foot, group=2)


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
    tops = [max([2.0, *(float(relative(s[i]).max()) for _, s in seen if not problem(s[i]))]) for i in (1, 2)]
    tiles = []
    if before[0] is not None and now[0] is not None:
        tiles.append(Tile("Truth", "", truth, partial(scaled, truth)))
        tiles += [Tile(f"Generated, {when}", "", s[0], partial(scaled, s[0])) for when, s in seen if s[0] is not None]
    tiles.append(Tile("Reference", "", reference, partial(scaled, reference)))
    tiles += [map_tile(f"G2R, {when}", times(s[2]), reference, s[2], reference_object, tops[1]) for when, s in seen]
    outlined = partial(scaled, truth) if hole is None else partial(outlined_on, truth, hole)
    tiles.append(Tile("Truth" if hole is None else "Hole", "", truth, outlined))
    for when, (generated, r2g, _) in seen:
        where = f"R2G, {when}" + ("" if generated else ", on the truth")
        tiles.append(map_tile(where, times(r2g), generated or truth, r2g, hole, tops[0]))
    note = "Baseline and now share one colour scale in each direction. × = times the even share."
    return sheet(name, subtitle, tiles, partial(legend, ("low", "high share of attention"), note), columns=3)
