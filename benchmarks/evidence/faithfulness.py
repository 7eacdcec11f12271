"""Faithfulness: what the maps call important, taken away; the model's own change is the truth that they are held to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .curve_picture import draw
from .deletion import BEST, RANDOM, Figures, area, of_generated_tokens, of_reference_tokens
from .forced import Forced, forced
from .intervals import resampled
from .looked_at import held_out
from .section import Section, Table, with_interval
from .sizes import LONG, Sizes
from .token_maps import Looks, look_at

MODELS = {"inpainting": "inpainting", "edit": "editing"}
PICTURE = "faithfulness.png"
_AREAS = {"deletion": "deletion", "insertion": "insertion", "inverse": "against the inverse order"}
_G2R = {**_AREAS, "rho_blank": "rank correlation, blank", "rho_other": "rank correlation, another picture's"}
_R2G = {**_AREAS, "rho": "rank correlation", "rho_inside": "within the region"}
_ROWS = {"rho": "rank correlation", "same": "strongest at the same token"}
_KINDS = {
    "g2r": ("G2R, reference tokens deleted", _G2R),
    "rows": ("Rows of G2R (SRAM), one generated token each", _ROWS),
    "r2g": ("R2G, the reference withheld from generated tokens", _R2G),
}
Values = dict[str, dict[str, dict[str, tuple[float, float, float]]]]
"""Kind of map → its name → figure → value and interval."""


def measure(sizes: Sizes, folder: Path) -> Section:
    values: dict[str, Values] = {}
    tables, points = [], {}
    for model, title in MODELS.items():
        each, layer = _of_pairs(model, sizes, folder / "faithfulness")
        values[model] = {kind: _summary([one[kind] for one in each], _KINDS[kind][1], sizes) for kind in _KINDS}
        points[model] = [one["g2r"] for one in each]
        for kind, (what, columns) in _KINDS.items():
            rows = [
                [name, *(with_interval(*one[column]) if column in one else "" for column in columns)]
                for name, one in values[model][kind].items()
            ]
            tables.append(
                Table(
                    title=f"{what}; the {title} model, {len(each)} pairs, copying layer `{layer}`:",
                    columns=("map", *columns.values()),
                    rows=rows,
                )
            )
    if sizes is LONG:
        draw(points, PICTURE)
    return Section(
        title="Faithfulness",
        asked="Held-out pairs, teacher forced at fixed noise; what is measured is the change of the predicted clean picture, in "
        "the hole (of edits: in what is kept), or for R2G anywhere. *Deletion*: reference tokens are replaced by those of a grey "
        "picture, the map's strongest first; the area between this curve and that of random orders, as a share of the change "
        "without any reference token. *Insertion*: the other way round, from grey tokens. Positive: the map tells the truth "
        "better than chance. *Against the inverse order*: both together. For R2G it is from generated tokens that the reference is "
        "withheld. *Rank correlation*: of the map with the change when each reference token alone is replaced, by grey or by the "
        "same place of another pair's; of R2G with the change of each generated token when all are grey. Value norms: weights "
        "times |W_o v|, head by head.",
        said=_in_words(values),
        tables=tables,
        pictures=[(PICTURE, "How the picture changes as reference tokens go, by the order in which they go")],
        command="python -m benchmarks.evidence faithfulness",
        values=values,
    )


def _of_pairs(model: str, sizes: Sizes, kept: Path) -> tuple[list[dict[str, Figures]], str]:
    """Of each pair what was found, kept in a file so that an interrupted measurement goes on; and the copying layer."""
    pairs = forced(model, held_out(model, sizes.pairs, seed=0))
    looks = look_at(pairs, sizes.noise_times)
    setting = f"{'_'.join(map(str, sizes.noise_times))}_{sizes.random_orders}_{looks.copying_layer}"
    each = []
    for index in tqdm(range(min(sizes.deleted_pairs, len(pairs.pairs))), desc=model):
        file = kept / f"{model}_{setting}" / f"{index}.json"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.with_suffix(".part").write_text(json.dumps(_of_pair(pairs, looks, index, sizes)))
            file.with_suffix(".part").rename(file)
        each.append(json.loads(file.read_text()))
    return each, looks.copying_layer


def _of_pair(pairs: Forced, looks: Looks, index: int, sizes: Sizes) -> dict[str, Figures]:
    g2r, rows = of_reference_tokens(pairs, looks, index, sizes)
    return {"g2r": g2r, "rows": rows, "r2g": of_generated_tokens(pairs, looks, index, sizes)}


def _summary(
    each: list[Figures], columns: dict[str, str], sizes: Sizes
) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Name of a map → figure → mean over pairs and its interval."""
    found = {}
    for name in (name for name in each[0] if name != RANDOM):
        figures = [_with_areas(one[name], one[RANDOM]) if RANDOM in one else one[name] for one in each]
        present = {column: np.array([one[column] for one in figures]) for column in columns if column in figures[0]}
        found[name] = {
            column: resampled(lambda chosen, v=v: float(np.nanmean(v[chosen])), len(v), sizes.resamples)
            for column, v in present.items()
        }
    return found


def _with_areas(one: dict[str, Any], random: dict[str, Any]) -> dict[str, Any]:
    deletion, inverse, chance = area(np.array([one["deletion"], one["inverse"], random["deletion"]]))
    areas = {"deletion": deletion - chance, "insertion": chance - inverse, "inverse": deletion - inverse}
    return one | {name: float(value) for name, value in areas.items()}


def _in_words(values: dict[str, Values]) -> str:
    return " ".join(
        f"{title.capitalize()}: {_of_g2r(values[model]['g2r'])} {_of_rows(values[model]['rows'])} "
        f"{_of_r2g(values[model]['r2g'])}"
        for model, title in MODELS.items()
    )


def _of_g2r(found: dict[str, dict[str, tuple[float, float, float]]]) -> str:
    maps = {name: one for name, one in found.items() if name != BEST}
    true = [name for name, one in maps.items() if one["deletion"][1] > 0 and one["insertion"][1] > 0]
    by_area, by_effect = (max(maps, key=lambda name: maps[name][key][0]) for key in ("inverse", "rho_blank"))
    plain, valued, by_norm = (
        maps[name]
        for name in ("region, unified", "region × value norms, unified", "region × value norms, layers by norm")
    )
    paper = maps["all queries, unified"]
    return (
        f"{len(true)} of {len(maps)} G2R maps beat random orders both ways ({', '.join(n for n in maps if n not in true) or 'no map'} "
        f"does not); most by {by_area} ({maps[by_area]['inverse'][0]:.2f} between the order and its inverse; the paper's "
        f"{paper['inverse'][0]:.2f}). What each token alone does goes best with {by_effect} "
        f"({maps[by_effect]['rho_blank'][0]:.2f}; the paper's {paper['rho_blank'][0]:.2f}). Value norms move the unified map of the "
        f"region's queries from {plain['inverse'][0]:.2f} to {valued['inverse'][0]:.2f} ({by_norm['inverse'][0]:.2f} with layers by "
        f"norm), and its correlation from {plain['rho_blank'][0]:.2f} to {valued['rho_blank'][0]:.2f}."
    )


def _of_rows(found: dict[str, dict[str, tuple[float, float, float]]]) -> str:
    rho, same = (", ".join(f"{one[key][0]:.2f} {name}" for name, one in found.items()) for key in ("rho", "same"))
    return f"Row by row the correlation is {rho}; row and effect are strongest at the same token in {same} of cases."


def _of_r2g(found: dict[str, dict[str, tuple[float, float, float]]]) -> str:
    maps = {name: one for name, one in found.items() if name != BEST}
    true = [name for name, one in maps.items() if one["deletion"][1] > 0 and one["insertion"][1] > 0]
    inside = [name for name, one in maps.items() if one["rho_inside"][1] > 0]
    return (
        f"R2G beats random orders both ways: {', '.join(true) or 'none'}; it says something of where inside the region the "
        f"reference matters: {', '.join(inside) or 'none'}."
    )
