"""Which pictures are drawn of which maps of an evaluation: panels, strips and the panels of an alert."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from ..alerts.alert import Alert
from ..capture.maps import AttributionMaps
from ..figures.observation import Observation
from ..figures.record import Evaluation
from ..figures.registry import all_figures, of_copying_layer
from ..figures.values import Figure, Undefined
from ..pairs.collection import ValidationPairs
from ..pairs.pair import ValidationPair
from .render import choose_patches, panel, specific_grid, strip


def pictures_of(
    evaluation: Evaluation, observations: Sequence[Observation], pairs: ValidationPairs, *, panels: int, strips: int
) -> dict[str, Callable[[], Image.Image]]:
    """Tag → function that draws: a panel for each of the first `panels` pairs, and strips for the first `strips`."""
    out: dict[str, Callable[[], Image.Image]] = {}
    for number, observation in enumerate(observations):
        tag = f"pair_{number:02d}"
        pair = pairs[observation.index]
        subtitle = f"step {evaluation.global_step}"
        if number < panels:
            out[tag] = partial(pair_panel, observation, pair, figures_of_pair(evaluation, number), subtitle)
        if number < strips:
            out.update(
                {
                    f"{tag}/{name}": draw
                    for name, draw in level_strips(observation.maps, pair, observation.generated).items()
                }
            )
    return out


def alert_panels(
    alert: Alert, evaluation: Evaluation, observations: Sequence[Observation], pairs: ValidationPairs
) -> dict[int, Image.Image]:
    """Pair number → panel, of the pairs most to blame for an alert."""
    subtitle = f"alert at step {alert.global_step}"
    return {
        number: pair_panel(
            observations[number], pairs[observations[number].index], figures_of_pair(evaluation, number), subtitle
        )
        for number in map(evaluation.pairs.index, alert.pairs)
    }


def figures_of_pair(evaluation: Evaluation, number: int) -> dict[str, str]:
    """What stands on one pair's panel: name → text."""
    out = {}
    for figure in all_figures():
        tag = of_copying_layer(figure.tag, evaluation.copying_layer)
        if figure.on_panel and isinstance(tag, str) and tag in evaluation.figures:
            out[figure.title] = _short(evaluation.figures[tag][number], figure.unit)
    return out


def pair_panel(observation: Observation, pair: ValidationPair, figures: dict[str, str], subtitle: str) -> Image.Image:
    """The composed panel of one pair."""
    maps = observation.maps
    return panel(
        name=pair.name,
        reference=pair.reference,
        masked_input=_cut_out(pair),
        generated=observation.generated,
        truth=pair.target,
        r2g=maps.r2g.unified,
        g2r=maps.undefined_g2r or maps.g2r_region.unified,
        hole=pair.mask,
        reference_object=pair.reference_mask,
        figures=figures,
        subtitle=f"{subtitle} · R2G is the paper's, which shifts of a token's logits can move (see imacs_g_centred)",
    )


def level_strips(
    maps: AttributionMaps, pair: ValidationPair, generated: Image.Image | None
) -> dict[str, Callable[[], Image.Image]]:
    """The strips over time, heads and layers, and the specific-reference grid, by name."""
    painted = generated or pair.target
    found, picture, what = (
        (maps.r2g, painted, "R2G on the generated picture")
        if maps.undefined_g2r is not None
        else (maps.g2r_region, pair.reference, "what the hole draws from the reference (G2R)")
        if pair.mask is not None
        else (maps.g2r, pair.reference, "what the model draws from the reference (G2R)")
    )
    groups = [f"group {i}" for i in range(len(found.by_time))]
    groups[0], groups[-1] = f"{groups[0]} (noisiest)", f"{groups[-1]} (cleanest)"
    heads = [f"head {i}" for i in range(len(found.by_head))]
    out: dict[str, Callable[[], Image.Image]] = {
        "time": partial(
            strip, title=f"{pair.name}: {what}, by time", picture=picture, maps=_drawable(found.by_time), labels=groups
        ),
        "heads": partial(
            strip, title=f"{pair.name}: {what}, by head", picture=picture, maps=_drawable(found.by_head), labels=heads
        ),
        "layers": partial(
            strip,
            title=f"{pair.name}: {what}, by layer",
            picture=picture,
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
            patches=choose_patches(pair.mask, grid),
        )
    return out


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
