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
Summary = dict[str, dict[str, tuple[float, float, float]]]
"""Name of a map → figure → value and interval."""
Values = dict[str, Summary]
"""By kind of map."""


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
        asked="Held-out pairs, teacher forced at fixed noise; what is measured is the change of the predicted clean picture: "
        "in the hole, of edits in what is kept, for R2G anywhere. *Deletion*: reference tokens are replaced by those of a "
        "grey picture, the map's strongest first; the area between this curve and that of random orders, in shares of the "
        "change without any reference token. *Insertion*: the other way round, from grey tokens. Above 0: the map tells the "
        "truth better than chance. *Against the inverse order*: both together. For R2G the reference is withheld from "
        "generated tokens. *Rank correlation*: of the map with the change when each reference token alone is replaced, by "
        "grey or by what is there in another pair's; of R2G with the change of each generated token when all are grey. Value "
        "norms: weights times |W_o v|, head by head.",
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
    for index in tqdm(range(min(sizes.deleted_pairs[model], len(pairs.pairs))), desc=model):
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


def _summary(each: list[Figures], columns: dict[str, str], sizes: Sizes) -> Summary:
    """Means over pairs."""
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
        f"**{title.capitalize()}.** {_of_g2r(found['g2r'])} {_of_values(found['g2r'])} {_of_rows(found['rows'])} "
        f"{_of_r2g(found['r2g'])}"
        for title, found in ((title, values[model]) for model, title in MODELS.items())
    )


def _of_g2r(found: Summary) -> str:
    best, paper = _best(found, "inverse"), found["all queries, unified"]
    nearest = _best(found, "rho_blank")
    return (
        f"G2R maps that beat random orders both ways: {_beating(found)}. Most by *{best}*, "
        f"{found[best]['inverse'][0]:.2f} between the order and its inverse (the paper's {paper['inverse'][0]:.2f}; the "
        f"order of what each token does alone {found[BEST]['inverse'][0]:.2f}). With what each token does alone *{nearest}* "
        f"goes best, {found[nearest]['rho_blank'][0]:.2f} (the paper's {paper['rho_blank'][0]:.2f}), or "
        f"{found[nearest]['rho_other'][0]:.2f} where another picture's token is put."
    )


def _of_values(found: Summary) -> str:
    changes = []
    for column, what in (
        ("inverse", "the area between the order and its inverse"),
        ("rho_blank", "the correlation with grey tokens"),
        ("rho_other", "that with another picture's"),
    ):
        plain, valued = (found[f"region{how}, unified"][column][0] for how in ("", " × value norms"))
        changes.append(f"{what} from {plain:.2f} to {valued:.2f}")
    return f"Value norms bring the unified map of the region's queries, {', '.join(changes)}."


def _of_rows(found: Summary) -> str:
    rho, same = (" and ".join(f"{one[key][0]:.2f} ({name})" for name, one in found.items()) for key in _ROWS)
    return f"Row by row the correlation is {rho}, and both are strongest at the same token in {same} of the rows."


def _of_r2g(found: Summary) -> str:
    inside = [f"*{name}* {one['rho_inside'][0]:.2f}" for name, one in found.items() if name != BEST]
    return (
        f"R2G maps that beat random orders both ways: {_beating(found)}. Inside the region their correlation with where the "
        f"reference matters is {', '.join(inside)}."
    )


def _beating(found: Summary) -> str:
    """Of the maps those whose intervals lie above 0 in deletion and in insertion."""
    maps = [name for name in found if name != BEST]
    beating = [name for name in maps if min(found[name][way][1] for way in ("deletion", "insertion")) > 0]
    missing = [f"*{name}*" for name in maps if name not in beating]
    if len(beating) <= len(missing):
        return (
            f"of {len(maps)} only {', '.join(f'*{name}*' for name in beating)}" if beating else f"none of {len(maps)}"
        )
    return " but ".join([f"all {len(maps)}", *([", ".join(missing)] if missing else [])])


def _best(found: Summary, column: str) -> str:
    return max((name for name in found if name != BEST), key=lambda name: found[name][column][0])
