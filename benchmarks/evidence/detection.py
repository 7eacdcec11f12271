"""Object detection, the paper's second task: the box around the strongest part of a map against the object's own.

The object lies among distractors in the reference (G2R of the hole's queries) and is painted into a hole of the generated
picture (R2G). Against the paper's baselines, the whole picture and a random box, and against the best box that a grid of tokens
allows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from i2am_debug.figures.boxes import Box, boxes
from i2am_debug.figures.observation import Observation
from i2am_debug.figures.scores import energy, pointing
from i2am_debug.grids import Grid

from .intervals import resampled
from .looked_at import copying_layer, held_out, look
from .section import Section, Table, with_interval
from .sizes import Sizes

_AREA = (0.3, 0.5)  # of the random box, in shares of the picture
_PERCENTILES = (65.0, 80.0)


def measure(sizes: Sizes, _runs: Path) -> Section:
    pairs = held_out("inpainting", sizes.pairs, seed=0)
    _, seen = look("inpainting", pairs)
    layer = copying_layer(seen)
    in_reference: dict[str, Callable[[Observation], np.ndarray]] = {
        "G2R of the hole, copying layer": lambda one: one.maps.g2r_region.by_layer[layer],
        "G2R of the hole, all layers": lambda one: one.maps.g2r_region.unified,
        "G2R of all queries, all layers (the paper's)": lambda one: one.maps.g2r.unified,
    }
    in_picture: dict[str, Callable[[Observation], np.ndarray]] = {
        "R2G, object's mass": lambda one: one.maps.r2g_object_mass.unified,
        "R2G, centred": lambda one: one.maps.r2g_centred.unified,
        "R2G, as in the paper": lambda one: one.maps.r2g.unified,
    }
    values = {}
    tables = []
    for where, maps, masks in (
        ("the object in the reference", in_reference, [p.reference_mask for p in pairs]),
        ("the hole in the generated picture", in_picture, [p.mask for p in pairs]),
    ):
        found = _of_maps(maps, seen, masks, sizes)
        found |= _baselines(masks, next(iter(maps.values()))(seen[0]).shape, sizes)
        values[where] = found
        rows = [[name, *(with_interval(*one[c]) if c in one else "" for c in _COLUMNS)] for name, one in found.items()]
        tables.append(
            Table(title=f"Finding {where}, {len(pairs)} pairs:", columns=("map", *_COLUMNS.values()), rows=rows)
        )
    return Section(
        title="Object detection",
        asked="Mean over held-out pairs of the inpainting model, teacher forced, every layer, head and noise time: IoU of the "
        "box around the heaviest connected part above a percentile of the map with the object's own box; whether the maximum "
        "lies on it; how much of the map does. The best box is the best of all that have their edges between tokens.",
        said=_in_words(values, layer),
        tables=tables,
        command="python -m benchmarks.evidence detection",
        values=values,
    )


_COLUMNS = {
    **{f"iou_{p:.0f}": f"IoU, {p:.0f}th percentile" for p in _PERCENTILES},
    "pointing": "pointing",
    "energy": "energy",
}


def _of_maps(
    maps: dict[str, Callable[[Observation], np.ndarray]], seen: list[Observation], masks: list[np.ndarray], sizes: Sizes
) -> dict[str, dict[str, tuple[float, float, float]]]:
    found = {}
    for name, of in maps.items():
        columns: dict[str, list[float]] = {c: [] for c in _COLUMNS}
        for one, mask in zip(seen, masks, strict=True):
            for percentile in _PERCENTILES:
                columns[f"iou_{percentile:.0f}"].append(boxes(of(one), percentile=percentile)[0].iou(Box.around(mask)))
            columns["pointing"].append(float(pointing(of(one), mask)))
            columns["energy"].append(energy(of(one), mask))
        found[name] = {c: _mean(values, sizes) for c, values in columns.items()}
    return found


def _baselines(masks: list[np.ndarray], grid: Grid, sizes: Sizes) -> dict[str, dict[str, tuple[float, float, float]]]:
    rng, true = np.random.default_rng(0), [Box.around(mask) for mask in masks]
    whole = Box(top=0, left=0, bottom=1, right=1)
    ways: dict[str, Callable[[Box], float]] = {
        "the whole picture": whole.iou,
        "a random box of 30 to 50 % of the picture": lambda box: float(
            np.mean([_random(rng).iou(box) for _ in range(50)])
        ),
        f"the best box of {grid[0]}×{grid[1]} tokens": lambda box: max(one.iou(box) for one in _on_grid(grid)),
    }
    chance = _mean([float(mask.mean()) for mask in masks], sizes)
    found = {name: {"iou_65": _mean([way(box) for box in true], sizes)} for name, way in ways.items()}
    found["the whole picture"] |= {"pointing": chance, "energy": chance}
    return found


def _random(rng: np.random.Generator) -> Box:
    area = rng.uniform(*_AREA)
    height = rng.uniform(area, 1)  # as wide as it must then be, at most the whole
    top, left = rng.uniform(0, 1 - height), rng.uniform(0, 1 - area / height)
    return Box(top=top, left=left, bottom=min(1.0, top + height), right=min(1.0, left + area / height))


def _on_grid(grid: Grid) -> Iterator[Box]:
    rows, columns = (list(itertools.combinations(np.arange(n + 1) / n, 2)) for n in grid)
    for (top, bottom), (left, right) in itertools.product(rows, columns):
        yield Box(top=float(top), left=float(left), bottom=float(bottom), right=float(right))


def _mean(values: list[float], sizes: Sizes) -> tuple[float, float, float]:
    array = np.array(values)
    return resampled(lambda chosen: float(array[chosen].mean()), len(array), sizes.resamples)


def _in_words(values: dict[str, dict[str, dict[str, tuple[float, float, float]]]], layer: str) -> str:
    sentences = []
    for where, found in values.items():
        maps = {name: one for name, one in found.items() if "pointing" in one and name != "the whole picture"}
        best = max(maps, key=lambda name: max(maps[name][f"iou_{p:.0f}"][0] for p in _PERCENTILES))
        reached = max(maps[best][f"iou_{p:.0f}"][0] for p in _PERCENTILES)
        (limit,) = (one["iou_65"][0] for name, one in found.items() if name.startswith("the best box"))
        (drawn,) = (one["iou_65"][0] for name, one in found.items() if name.startswith("a random box"))
        sentences.append(
            f"Of {where}, {best} gives {reached:.2f}: a random box {drawn:.2f}, the best that tokens allow {limit:.2f}."
        )
    return f"{' '.join(sentences)} The copying layer is `{layer}`."
