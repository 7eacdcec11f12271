"""Which pictures are drawn of which maps of an evaluation: panels, strips and the panels of an alert."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from ..alerts.alert import Alert
from ..capture.maps import AttributionMaps
from ..figures.declaration import Need
from ..figures.observation import Observation
from ..figures.record import Evaluation
from ..figures.registry import all_figures, of_copying_layer
from ..figures.values import Figure, Undefined
from ..pairs.collection import ValidationPairs
from ..pairs.pair import ValidationPair
from ..pairs.region_words import CHANGED, HOLE, OBJECT, called, titled
from .marks import marks_of
from .panels import panel, specific_grid, strip
from .patches import choose_patches


def pictures_of(
    evaluation: Evaluation, observations: Sequence[Observation], pairs: ValidationPairs, *, panels: int, strips: int
) -> dict[str, tuple[str, Callable[[], Image.Image]]]:
    """Tag → name of the pair, and function that draws: panels of the first `panels` pairs, and strips of the first `strips`."""
    out: dict[str, tuple[str, Callable[[], Image.Image]]] = {}
    for number, observation in enumerate(observations):
        tag = f"pair_{number:02d}"
        pair = pairs[observation.index]
        subtitle = f"step {evaluation.global_step}"
        if number < panels:
            figures = figures_of_pair(evaluation, number, pair)
            out[tag] = pair.name, partial(pair_panel, observation, pair, figures, subtitle)
        if number < strips:
            strips_of = level_strips(observation.maps, pair, observation.generated)
            out.update({f"{tag}/{name}": (pair.name, draw) for name, draw in strips_of.items()})
    return out


def alert_panels(
    alert: Alert, evaluation: Evaluation, observations: Sequence[Observation], pairs: ValidationPairs
) -> dict[int, Image.Image]:
    """Pair number → panel, of the pairs most to blame for an alert."""
    subtitle = f"alert at step {alert.global_step}"
    out = {}
    for number in map(evaluation.pairs.index, alert.pairs):
        pair = pairs[observations[number].index]
        out[number] = pair_panel(observations[number], pair, figures_of_pair(evaluation, number, pair), subtitle)
    return out


def figures_of_pair(evaluation: Evaluation, number: int, pair: ValidationPair) -> dict[str, str]:
    """What stands on one pair's panel: name → text."""
    out = {}
    for figure in all_figures():
        if Need.KEPT in figure.needs and pair.kept is None:
            continue  # most pairs are no edits
        title = titled(figure.title, called(pair.region_in_words))
        tag = of_copying_layer(figure.tag, evaluation.copying_layer)
        if figure.on_panel and isinstance(tag, str) and tag in evaluation.figures:
            out[title] = _short(evaluation.figures[tag][number], figure.unit).replace(f" ({pair.undefined_kept})", "")
    return out


def pair_panel(
    observation: Observation,
    pair: ValidationPair,
    figures: dict[str, str],
    subtitle: str,
    *,
    has_truth: bool = True,
    notes: Sequence[str] = (),
) -> Image.Image:
    """The composed panel of one pair; without `has_truth` its target only stands in for one that nobody knows."""
    maps, (region, reference_region, words) = observation.maps, _outlines(pair)
    g2r = maps.undefined_g2r or maps.g2r_region.unified
    return panel(
        name=pair.name,
        reference=pair.reference,
        masked_input=_cut_out(pair),
        generated=observation.generated,
        made=observation.painted or "what the model made of it",
        truth=pair.target if has_truth else None,
        r2g=maps.r2g.unified,
        g2r=g2r,
        region=region,
        reference_region=reference_region,
        figures=figures,
        subtitle=f"{subtitle} · R2G is the paper's: it can move without the picture changing (compare IMACS_g, centred)",
        outlined=words,
        drawing=_drawing(pair),
        marks=(
            None if pair.mask is None else marks_of(maps.r2g.unified, pair.mask),
            marks_of(g2r, pair.reference_mask) if _has_object(pair) else None,
        ),
        note=" ".join(filter(None, [_of_the_kept_region(pair), *(f"Note: {note}." for note in notes)])),
    )


def level_strips(
    maps: AttributionMaps, pair: ValidationPair, generated: Image.Image | None
) -> dict[str, Callable[[], Image.Image]]:
    """The strips over time, heads and layers, and the specific-reference grid, by name."""
    painted = generated or pair.target
    found, picture, what = (
        (maps.r2g, painted, "R2G on the generated picture")
        if maps.undefined_g2r is not None
        else (maps.g2r_region, pair.reference, f"what {_drawing(pair)} draws from the reference (G2R)")
        if pair.region is not None
        else (maps.g2r, pair.reference, "what the model draws from the reference (G2R)")
    )
    groups = [f"group {i}" for i in range(len(found.by_time))]
    groups[0], groups[-1] = f"{groups[0]} (noisiest)", f"{groups[-1]} (cleanest)"
    heads = [f"head {i}" for i in range(len(found.by_head))]
    side = 0 if picture is painted else 1
    *regions, words = _outlines(pair)
    note = f"Outlined: {words[side]}. {_of_the_kept_region(pair)}".rstrip() if regions[side] is not None else ""
    strip_of = partial(strip, picture=picture, region=regions[side], note=note)
    out: dict[str, Callable[[], Image.Image]] = {
        "time": partial(strip_of, title=f"{pair.name}: {what}, by time", maps=_drawable(found.by_time), labels=groups),
        "heads": partial(strip_of, title=f"{pair.name}: {what}, by head", maps=_drawable(found.by_head), labels=heads),
        "layers": partial(
            strip_of,
            title=f"{pair.name}: {what}, by layer",
            maps=list(found.by_layer.values()),
            labels=[f"{layer}  {maps.layer_information[layer]:.2f} bit" for layer in found.by_layer],
        ),
    }
    if maps.undefined_g2r is None:
        layer = max(maps.layer_information, key=lambda la: maps.layer_information[la])
        grid, rows = maps.rows.by_layer[layer]
        out["specific"] = partial(
            specific_grid,
            title=f"{pair.name}: what single patches draw from the reference, in {layer}",
            generated=painted,
            reference=pair.reference,
            rows=rows,
            generated_grid=grid,
            reference_grid=maps.rows.reference_grid,
            patches=choose_patches(pair.region, grid),
        )
    return out


def _is_kept(pair: ValidationPair) -> bool:
    return pair.mask is None and pair.kept is not None


def _has_object(pair: ValidationPair) -> bool:
    """Whether there is an object that a box could be around: what an edit keeps is none, nor is what is restored."""
    return pair.mask is not None or (pair.reference_mask is not None and pair.kept is None)


def _drawing(pair: ValidationPair) -> str:
    return called(pair.region_in_words)


def _outlines(pair: ValidationPair) -> tuple[np.ndarray | None, np.ndarray | None, tuple[str, str]]:
    """What is outlined on the generated picture and on the reference, and what it is: of an edit what changes, since a line
    around all the rest would not say on which side it is meant."""
    if pair.mask is not None or pair.kept is None:
        return pair.mask, pair.reference_mask, (HOLE, OBJECT)
    on_reference = pair.reference_region
    if pair.reference_mask is not None:
        return ~pair.kept, pair.reference_mask, (CHANGED, OBJECT)
    return ~pair.kept, None if on_reference is None else ~on_reference, (CHANGED, CHANGED)


def _of_the_kept_region(pair: ValidationPair) -> str:
    """In words for who knows only the picture."""
    if not _is_kept(pair):
        return f"No kept region: {pair.undefined_kept}." if pair.undefined_kept and pair.mask is None else ""
    how = str(pair.kept_origin).replace("target", "truth").replace("file", "given")
    (width, height), (wide, high) = pair.target.size, pair.reference.size
    if how.startswith("derived") and width * high != wide * height:
        how += f"; the reference, {wide}×{high}, was stretched to the truth's {width}×{height} for it"
    return f"Kept region: where truth and reference look alike ({how}); what is there ought to come from its own place."


def _drawable(maps: np.ndarray) -> list[Any]:
    return [m if np.isfinite(m).all() else "not looked at" for m in maps]


def _cut_out(pair: ValidationPair) -> Image.Image | None:
    if pair.mask is None:
        return None
    pixels = np.array(pair.target)
    pixels[pair.mask] = 128
    return Image.fromarray(pixels)


def _short(value: Figure, unit: str = "") -> str:
    return str(value) if isinstance(value, Undefined) else f"{value:.3f} {unit}".rstrip()
