"""Which figure to trust: how each goes with picture quality, and whether it falls before a clean validation loss rises.

Read off the fine-tunes of `benchmarks.alerts` (healthy ones and those with a planted fault), each figure as it was at every
evaluation, beside the quality of pictures sampled then.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from .intervals import resampled
from .section import Section, Table, with_interval
from .sizes import Sizes

MODELS = {"inpainting": "inpainting", "edit": "editing"}
FIGURES = {
    "loss": "loss",
    "reference_gap": "reference gap",
    "blank_gap": "gap to no reference",
    "attention_information": "attention information",
    "copying_layer": "IMACS_r of the copying layer, hole's queries",
    "imacs_r": "IMACS_r, as in the paper",
    "imacs_r_hole": "IMACS_r, hole's queries",
    "imacs_g": "IMACS_g, as in the paper",
    "imacs_g_centred": "IMACS_g, centred",
    "imacs_g_object_mass": "IMACS_g, object's mass",
    "energy_r_hole": "energy on the object",
    "reference_mass": "reference mass",
    "kept_place": "kept place",
    "edited_mass": "edited mass",
}
_LOWER_IS_BETTER = ("loss",)
_COSTS = 1.0  # dB from which on a fault is one


@dataclass(frozen=True)
class Run:
    """A fine-tune: at each evaluation the figures' changes since the first, the better the higher; and the quality's, dB."""

    kind: str
    fault_at: int | None
    changes: dict[int, dict[str, float]]
    quality: dict[int, float]

    @property
    def last(self) -> int:
        return max(step for step in self.quality if step in self.changes)


def measure(sizes: Sizes, folder: Path) -> Section:
    """Raises:
    SystemExit: `folder` holds no fine-tunes; says how they are made.
    """
    tables, values = [], {}
    for model, title in MODELS.items():
        runs = list(runs_in(folder / model, model))
        if not runs:
            raise SystemExit(
                f"no fine-tunes in {folder / model}; make them: python -m benchmarks.alerts --long --folder {folder}"
            )
        found = {tag: _of_figure(tag, runs, sizes) for tag in FIGURES if any(tag in r.changes[r.last] for r in runs)}
        values[model] = found
        harmed = [r for r in runs if r.fault_at is not None and r.quality[r.last] <= -_COSTS]
        rows = [
            [
                FIGURES[tag],
                with_interval(*one["rho"]),
                with_interval(*one["rho_of_faults"]),
                f"{one['seen']} of {len(harmed)}",
                f"{one['before_loss']}",
                f"{one['after_loss']}",
            ]
            for tag, one in sorted(found.items(), key=lambda item: -item[1]["rho"][0])
        ]
        tables.append(
            Table(
                title=f"The {title} model, {len(runs)} fine-tunes, {len(harmed)} of them lost at least 1 dB by a fault:",
                columns=(
                    "figure",
                    "rank correlation with quality, all runs",
                    "faulty runs only",
                    "falls beyond every healthy run",
                    "sooner than the loss",
                    "later, or not",
                ),
                rows=rows,
            )
        )
    return Section(
        title="Which figure to trust",
        asked="Changes since the first evaluation, at the last one of each fine-tune: Spearman's rank correlation with the "
        "change of PSNR of sampled pictures, intervals by resampling runs. Then, for runs that lost at least 1 dB: whether the "
        "figure got worse than at any evaluation of any healthy run, and whether it did so at an earlier evaluation than the "
        "loss on the same clean pairs.",
        said=_in_words(values),
        tables=tables,
        command="python -m benchmarks.evidence trust --runs FOLDER",
        values=values,
    )


def runs_in(folder: Path, model: str) -> Iterator[Run]:
    from benchmarks.alert_runs import HARMLESS, Plan

    for done in sorted(folder.glob("*/done.json")):
        kind, _, seed = done.parent.name.rpartition("_")
        if kind in HARMLESS or kind.startswith("stale") or kind.endswith("-from-0"):
            continue  # no change of the model's after the first evaluation, or none of what it makes
        plan = Plan(model=model, kind=kind, seed=int(seed))
        quality = {int(step): value for step, value in json.loads(done.read_text())["psnr"].items()}
        (index,) = done.parent.glob("plugins/i2am_debug/index.jsonl")
        at = {row["global_step"]: _figures(row) for row in map(json.loads, index.read_text().splitlines())}
        changes = {
            step: {t: v - at[0][t] for t, v in each.items() if t in at[0]} for step, each in at.items() if step > 0
        }
        change = {step: value - quality[0] for step, value in quality.items() if step > 0}
        yield Run(kind, plan.sabotage_step, changes, change)


def _figures(row: dict[str, Any]) -> dict[str, float]:
    """Tag → mean, the better the higher."""
    means = {tag: one[0] for tag, one in row["means"].items() if isinstance(one, list)}
    layer = f"layer/{row['watched_layer']}/imacs_r_hole"
    if layer in means:
        means["copying_layer"] = means[layer]
    return {tag: (-1 if tag in _LOWER_IS_BETTER else 1) * means[tag] for tag in FIGURES if tag in means}


def _of_figure(tag: str, runs: list[Run], sizes: Sizes) -> dict[str, Any]:
    faulty = [r for r in runs if r.fault_at is not None]
    harmed = [r for r in faulty if r.quality[r.last] <= -_COSTS]
    seen, loss = ({id(r): _seen_at(name, r, runs) for r in harmed} for name in (tag, "loss"))
    sooner = sum(seen[id(r)] < loss[id(r)] for r in harmed)
    return {
        "rho": _correlation(tag, runs, sizes.resamples),
        "rho_of_faults": _correlation(tag, faulty, sizes.resamples),
        "seen": sum(step < np.inf for step in seen.values()),
        "before_loss": sooner,
        "after_loss": sum(seen[id(r)] > loss[id(r)] for r in harmed),
    }


def _correlation(tag: str, runs: list[Run], resamples: int) -> tuple[float, float, float]:
    pairs = np.array([(r.changes[r.last][tag], r.quality[r.last]) for r in runs if tag in r.changes[r.last]])

    def spearman(chosen: np.ndarray) -> float:
        a, b = (rankdata(column) for column in pairs[chosen].T)
        return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else float("nan")

    return resampled(spearman, len(pairs), resamples)


def _seen_at(tag: str, run: Run, runs: list[Run]) -> float:
    """The first evaluation after the fault at which the figure is worse than at any of a healthy run; infinite: none."""
    healthy = min(each[tag] for r in runs if r.fault_at is None for each in r.changes.values() if tag in each)
    after = [s for s, each in run.changes.items() if s > (run.fault_at or 0) and each.get(tag, 0.0) < healthy]
    return min(after, default=np.inf)


def _in_words(values: dict[str, Any]) -> str:
    sentences = []
    for model, title in MODELS.items():
        by_rho = sorted(values[model].items(), key=lambda item: -item[1]["rho"][0])
        best = [FIGURES[tag] for tag, one in by_rho if one["rho"][1] > 0.5]
        nothing = [FIGURES[tag] for tag, one in by_rho if one["rho"][1] <= 0]
        sentences.append(
            f"{title.capitalize()}: {_listed(best)} go{'es' if len(best) == 1 else ''} with quality (the interval lies above "
            f"0.5); of {_listed(nothing)} nothing can be said (it holds 0 or less)."
        )
    return " ".join(sentences)


def _listed(names: list[str]) -> str:
    return ", ".join(names) if names else "none"
