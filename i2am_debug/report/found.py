"""What the first evaluation of a run found, in words: so that a person sees at once what is looked at, and what it costs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from ..capture.maps import AttributionMaps
from ..evaluation.ways import Way
from ..figures.declaration import Need
from ..figures.declared import ATTENTION_INFORMATION, PROBES
from ..figures.observation import Observation
from ..figures.record import Evaluation
from ..figures.registry import all_figures
from ..figures.values import Undefined

WAYS = {
    "loss_fn": "your loss_fn",
    "teacher_forcing": "the pipeline's own call on the noised truth (teacher forcing)",
    "sampling": "sampling every pair with two references",
}


def what_was_found(
    evaluation: Evaluation, observations: Sequence[Observation], way: Way, *, seconds: float, memory: int, cost: str
) -> str:
    """Some lines: way, family, layers, heads, grids, regions, figures and why others don't exist, probes, time and memory.

    Args:
        seconds: all that the evaluation took, drawing included.
        memory: bytes by which the peak grew.
        cost: what the evaluation's seconds mean for the run.
    """
    maps = observations[0].maps
    noise_times = (
        f", {len(maps.steps)} noise times" if way.name != "sampling" else f", {len(maps.steps)} steps looked at"
    )
    heads = sum(len(numbers) for numbers in maps.heads.values())
    of_all = "all" if evaluation.heads is None else "the strongest and a sample of the others"
    probes = [f.title.removeprefix("loss with ") for f in PROBES if not isinstance(evaluation.mean(f.tag), Undefined)]
    there, missing = figures_found(evaluation)
    copying = evaluation.copying_layer
    lines = [
        f"first look at {len(observations)} pairs took {seconds:.3g} s and {memory / 2**20:.0f} MiB; {cost}",
        f"way: {WAYS[way.name]}{noise_times}" + (f"; not by teacher forcing: {way.instead}" if way.instead else ""),
        f"family: {evaluation.fingerprint['family']}, {len(evaluation.layers)} layers, {heads} heads ({of_all})",
        *([f"plan: {evaluation.chosen}"] if evaluation.chosen else []),
        f"tokens: {grids_in_words(maps)}",
        f"regions: {counted_regions(evaluation.fingerprint.get('regions', ()))}",
        *(f"note: {note}" for note in maps.notes),
        f"copying layer: {copying if isinstance(copying, Undefined) else f'{copying}, {_bits(evaluation)} bit'}",
        f"figures: {'; '.join(there)}",
        f"probes, the loss with: {'; '.join(probes) or 'none could be tried'}",
        *(f"undefined, {reason}: {'; '.join(titles)}" for reason, titles in missing.items()),
    ]
    return "\n  ".join(lines)


def figures_found(evaluation: Evaluation) -> tuple[list[str], dict[str, list[str]]]:
    """Titles of the figures that have a value, and of those that have none by the reason why; without those that need a
    baseline or probes, which a first evaluation has not."""
    known = [f for f in all_figures() if f.compute is not None and not {Need.BASELINE, Need.PROBES} & set(f.needs)]
    there: list[str] = []
    missing: dict[str, list[str]] = {}
    for figure in known:
        mean = evaluation.mean(figure.tag)
        (missing.setdefault(mean.reason, []) if isinstance(mean, Undefined) else there).append(figure.title)
    return there, missing


def grids_in_words(maps: AttributionMaps) -> str:
    """The grids of generated and reference tokens, or why the latter have none."""
    reference = "undefined: " + maps.undefined_g2r if maps.undefined_g2r else _grid(maps.g2r.unified)
    return f"generated {_grid(maps.r2g.unified)}, reference {reference}"


def _grid(map_of: np.ndarray) -> str:
    return "×".join(map(str, map_of.shape))


def counted_regions(words: Iterable[str]) -> str:
    """ "hole of 14 pairs, none of 2"; what differs from pair to pair behind a comma is left out."""
    kinds = Counter(word.split(",")[0] for word in words)
    return ", ".join(f"{kind} of {count}" for kind, count in kinds.items()) + (" pairs" if kinds else "none")


def _bits(evaluation: Evaluation) -> str:
    mean = evaluation.mean(ATTENTION_INFORMATION.tag)
    return str(mean) if isinstance(mean, Undefined) or not math.isfinite(mean) else f"{mean:.2f}"
