"""The paper's debugging story, repeated: a flawed inpainting model and a refined one, and whether IMACS goes with quality.

The models are trained from scratch by `from_scratch`; here their figures are compared, between designs and with the quality of
sampled pictures. What is said of it is made in `inpainting_words`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from i2am_debug.figures.intervals import mean_intervals
from i2am_debug.figures.values import Undefined, figure_to_json

from .debugging_picture import draw
from .from_scratch import Checkpoint, made
from .inpainting_words import (
    CLAIMED,
    DESIGNS,
    FIGURES,
    NO_POSITIONS,
    ONE_TOKEN,
    REFINED,
    STEPS,
    Findings,
    Found,
    asked,
    cell,
    digits_of,
    in_words,
)
from .intervals import resampled
from .over_trainings import (
    Interval,
    at_equal_steps,
    at_the_end,
    correlation,
    of_all,
    share_by_chance,
    spearman,
    within_trainings,
)
from .picture_quality import QUALITIES
from .section import Section, Table
from .sizes import LONG, Sizes

PICTURE = "debugging_story.png"
WAYS: Mapping[str, tuple[Callable[[np.ndarray, np.ndarray], float], str, str]] = {
    "all": (of_all, "psnr_hole", "all checkpoints"),
    "all_ssim": (of_all, "ssim_hole", "all, SSIM"),
    "within": (within_trainings, "psnr_hole", "within a training"),
    "equal": (at_equal_steps, "psnr_hole", "at equal steps"),
    "end": (at_the_end, "psnr_hole", "at the end"),
}
"""Name → way of correlating, quality, column."""


def measure(sizes: Sizes, folder: Path) -> Section:
    """Reads the trainings in `folder`/from_scratch; makes what is missing."""
    trainings = made(sizes, folder / "from_scratch")
    columns = {design: Columns(trainings[design]) for design in DESIGNS}
    if sizes is LONG:
        _draw(columns)
    found = Findings(
        ends={design: _ends(columns[design]) for design in DESIGNS},
        refined_minus={flawed: _apart(columns[REFINED], columns[flawed]) for flawed in (ONE_TOKEN, NO_POSITIONS)},
        rho={design: _correlations(columns[design], sizes.resamples) for design in DESIGNS},
        chance=_chances(columns[REFINED], sizes.resamples),
        both_ends={
            tag: _over_ends(tag, [columns[d] for d in (NO_POSITIONS, REFINED)], sizes.resamples) for tag in FIGURES
        },
        spread=float(np.ptp(columns[REFINED].quality("psnr_hole")[:, -1])),
    )
    return Section(
        title="Inpainting: a flawed model and a refined one",
        asked=asked(sizes),
        said=in_words(found),
        tables=[_table_of_ends(found), _table_of_refined(found), _table_of_flawed(found)],
        pictures=[
            (PICTURE, "Figures against PSNR as models train, a line each: how those of one design spread at its end")
        ],
        command="python -m benchmarks.evidence inpainting",
        values={
            **{name: _plain(getattr(found, name)) for name in ("ends", "refined_minus", "chance", "both_ends")},
            "rank_correlation": _plain(found.rho),
            "course": {design: of.course() for design, of in columns.items()},
        },
    )


class Columns:
    """What one design's trainings have under each name, (T, C), the better the higher; or why they have not."""

    def __init__(self, trainings: list[list[Checkpoint]]) -> None:
        self.trainings = trainings

    @property
    def steps(self) -> list[int]:
        return [one.global_step for one in self.trainings[0]]

    def figure(self, tag: str) -> np.ndarray | Undefined:
        if tag == STEPS:
            return np.tile(self.steps, (len(self.trainings), 1))
        values = [[one.figures[tag] for one in training] for training in self.trainings]
        missing = [v.reason for row in values for v in row if isinstance(v, Undefined)]
        return Undefined(missing[0]) if missing else (-1 if tag == "loss" else 1) * np.array(values, dtype=float)

    def quality(self, name: str) -> np.ndarray:
        return np.array([[one.quality[name] for one in training] for training in self.trainings])

    def any(self, name: str) -> np.ndarray | Undefined:
        return self.quality(name) if name in QUALITIES else self.figure(name)

    def course(self) -> dict[str, Any]:
        """Means over trainings at each step, and the copying layers of each."""
        names = {name: self.any(name) for name in (*QUALITIES, *FIGURES)}
        means = {n: figure_to_json(v) if isinstance(v, Undefined) else v.mean(0).tolist() for n, v in names.items()}
        layers = [[figure_to_json(one.layer) for one in training] for training in self.trainings]
        return {STEPS: self.steps, **means, "copying_layers": layers}


def _draw(columns: Mapping[str, Columns]) -> None:
    shown = [tag for tag in CLAIMED if tag != "loss"]
    draw(
        {DESIGNS[design]: of.quality("psnr_hole") for design, of in columns.items()},
        {FIGURES[tag]: {DESIGNS[design]: of.figure(tag) for design, of in columns.items()} for tag in shown},
        PICTURE,
    )


def _mean(values_T: np.ndarray) -> Interval:
    low, high = mean_intervals(values_T[:, None])[:, 0]
    return float(values_T.mean()), float(low), float(high)


def _ends(columns: Columns) -> dict[str, Found]:
    found = {name: columns.any(name) for name in (*QUALITIES, *FIGURES)}
    return {name: v if isinstance(v, Undefined) else _mean(v[:, -1]) for name, v in found.items()}


def _apart(refined: Columns, custom: Columns) -> dict[str, Found]:
    """Refined minus custom at the end, training by training of the same seed."""
    out: dict[str, Found] = {}
    for name in (*QUALITIES, *FIGURES):
        new, old = refined.any(name), custom.any(name)
        undefined = next((v for v in (new, old) if isinstance(v, Undefined)), None)
        out[name] = undefined or _mean(new[:, -1] - old[:, -1])
    return out


def _correlations(columns: Columns, resamples: int) -> dict[str, dict[str, Found]]:
    out: dict[str, dict[str, Found]] = {}
    for tag in (*FIGURES, STEPS):
        figure = columns.figure(tag)
        out[tag] = {
            way: figure
            if isinstance(figure, Undefined)
            else correlation(of, figure, columns.quality(quality), resamples)
            for way, (of, quality, _) in WAYS.items()
        }
    return out


def _chances(columns: Columns, resamples: int) -> dict[str, float | Undefined]:
    out: dict[str, float | Undefined] = {}
    for tag in FIGURES:
        figure, quality = columns.figure(tag), columns.quality("psnr_hole")
        out[tag] = (
            figure if isinstance(figure, Undefined) else share_by_chance(at_equal_steps, figure, quality, resamples)
        )
    return out


def _over_ends(tag: str, designs: list[Columns], resamples: int) -> Found:
    """Over the ends of all trainings of these designs; draws take a seed's trainings together."""
    values = [columns.figure(tag) for columns in designs]
    undefined = next((v for v in values if isinstance(v, Undefined)), None)
    if undefined is not None:
        return undefined
    qualities = [columns.quality("psnr_hole") for columns in designs]
    figure, quality = (np.stack([v[:, -1] for v in each], 1) for each in (values, qualities))
    if not np.ptp(figure):
        return Undefined("the same everywhere")
    return resampled(lambda t: spearman(figure[t].ravel(), quality[t].ravel()), len(figure), resamples)


def _plain(found: Any) -> Any:
    if isinstance(found, Mapping):
        return {name: _plain(one) for name, one in found.items()}
    if isinstance(found, Undefined):
        return figure_to_json(found)
    return found if isinstance(found, float) else list(found)


def _table_of_ends(found: Findings) -> Table:
    def row(name: str, words: str) -> list[str]:
        apart = [of[name] for of in found.refined_minus.values()]
        differences = ["" if isinstance(one, Undefined) else cell(one, digits_of(name)) for one in apart]
        return [words, *(cell(of[name], digits_of(name)) for of in found.ends.values()), *differences]

    return Table(
        title="At the end of training, mean over trainings; the differences are between trainings of the same seed:",
        columns=(
            "",
            *(f"{'refined' if design == REFINED else 'custom'}: {words}" for design, words in DESIGNS.items()),
            *(f"refined − {DESIGNS[flawed]}" for flawed in found.refined_minus),
        ),
        rows=[row(name, words) for name, words in {**QUALITIES, **FIGURES}.items()],
    )


def _ranked(found: Findings) -> dict[str, str]:
    """Figures and the number of steps, those that go most with quality over all checkpoints of the refined design first."""

    def rank(tag: str) -> float:
        rho = found.rho[REFINED][tag]["all"]
        return 2.0 if isinstance(rho, Undefined) else -rho[0]

    names = {**FIGURES, STEPS: "(the number of steps alone)"}
    return {tag: names[tag] for tag in sorted(names, key=rank)}


def _or_blank(found: Found) -> str:
    return "" if isinstance(found, Undefined) else cell(found)


def _table_of_refined(found: Findings) -> Table:
    def row(tag: str) -> list[str]:
        rho, chance = found.rho[REFINED][tag], found.chance.get(tag)
        end = rho["end"]
        return [
            *(_or_blank(rho[way]) for way in WAYS if way != "end"),
            f"{chance:.3f}" if isinstance(chance, float) else "",
            "" if isinstance(end, Undefined) else f"{end[0]:.1f}",
        ]

    return Table(
        title="Rank correlation with PSNR in the hole (in one column with SSIM there), refined design; at the end there are as "
        "many points as trainings, too few for an interval:",
        columns=(
            "figure",
            *(words for way, (_, _, words) in WAYS.items() if way != "end"),
            "by chance",
            WAYS["end"][2],
        ),
        rows=[[words, *row(tag)] for tag, words in _ranked(found).items()],
    )


def _table_of_flawed(found: Findings) -> Table:
    ways = [(design, way) for design in (NO_POSITIONS, ONE_TOKEN) for way in ("all", "equal")]
    return Table(
        title="The same of the flawed designs, and over the ends of all trainings of no positions and patch tokens together; "
        "blank where undefined:",
        columns=("figure", *(f"{DESIGNS[design]}, {WAYS[way][2]}" for design, way in ways), "ends of two designs"),
        rows=[
            [
                words,
                *(_or_blank(found.rho[design][tag][way]) for design, way in ways),
                _or_blank(found.both_ends.get(tag, Undefined("the same everywhere"))),
            ]
            for tag, words in _ranked(found).items()
        ],
    )
