"""How what was found of instruction editing is said: tables, and sentences made of the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .edited_patches import ALL, KEPT
from .editing_told import FIGURES, NO_REFERENCE, PROMPT, REFERENCE, REGIONS, RIGHT, SAMPLER_STEPS
from .section import Table, with_interval

WAYS = (RIGHT, REFERENCE, PROMPT)
_CHANCE = 0.5

Interval = tuple[float, float, float]
Figures = dict[str, Interval]


def cell(value: Interval, digits: int = 2) -> str:
    if np.isnan(value[0]):
        return "no such pair"
    return with_interval(*value, digits=digits)


def places_table(places: Mapping[str, Figures], by_noise: Mapping[str, Figures], layer: str) -> Table:
    columns = {
        "kept": "kept: hit rate",
        "kept_near": "within one patch",
        "kept_reference": "another's reference",
        "moved": "moved: hit rate",
        "moved_near": "within one patch",
        "moved_own": "at the own place instead",
        "moved_reference": "hit rate, another's reference",
        "moved_prompt": "hit rate, another's prompt",
    }
    named = {name if name == ALL else f"`{name}`": one for name, one in places.items()}
    named |= {f"noise {share}": one for share, one in by_noise.items()}
    return Table(
        title=f"Hit rates, by layer over all noise, and of `{layer}` by noise:",
        columns=("", *columns.values()),
        rows=[[name, *(cell(one[column]) for column in columns)] for name, one in named.items()],
    )


def kinds_table(kinds: Mapping[str, Figures], counted: Mapping[str, np.ndarray], layer: str) -> Table:
    return Table(
        title=f"Where rows of `{layer}` look, by what becomes of their patch:",
        columns=("patches", "pairs", "at their own place", "within one patch", "on the object", "weight on the object"),
        rows=[
            [kind, str(counted[kind].any(1).sum()), *(cell(one[name]) for name in ("own", "near", "object", "weight"))]
            for kind, one in kinds.items()
        ],
    )


def changed_table(changed: Mapping[str, Figures]) -> Table:
    columns = ("rows_kept", "rows_edited", "picture_kept", "picture_edited")
    return Table(
        title="How far rows (JS distance, all layers) and the predicted picture (of a range of 2) move:",
        columns=("with", "rows, kept", "rows, edited", "picture, kept", "picture, edited"),
        rows=[[way, *(cell(one[column], 3) for column in columns)] for way, one in changed.items()],
    )


def told_table(told: Mapping[str, Figures]) -> Table:
    means, apart = WAYS, [f"told from {way}" for way in (REFERENCE, PROMPT)]
    return Table(
        title="The package's figures, given the true kept region; *told*: how likely a right pair has more than a "
        "wrong one (chance "
        "0.5):",
        columns=("figure", *means, *apart),
        rows=[
            [FIGURES[tag], *(cell(one[way], 3) for way in means), *(cell(one[way]) for way in apart)]
            for tag, one in told.items()
        ],
    )


def quality_table(quality: Mapping[str, Figures]) -> Table:
    return Table(
        title=f"Made with {SAMPLER_STEPS} sampler steps, PSNR in dB:",
        columns=("from", *REGIONS.values()),
        rows=[
            [name, *(cell(one[region], 1) if region in one else "exact" for region in REGIONS)]
            for name, one in quality.items()
        ],
    )


def in_words(
    places: Mapping[str, Figures],
    noise: Figures,
    kinds: Mapping[str, Figures],
    changed: Mapping[str, Figures],
    told: Mapping[str, Figures],
    quality: Mapping[str, Figures],
    derived: Mapping[str, int],
    layer: str,
) -> str:
    """`noise`: the sharpest layer's in pure noise."""
    return " ".join(
        (
            f"**Rows.** {_of_rows(places[layer], places[ALL], noise, layer)} {_of_objects(kinds)}",
            f"**Prompt.** {_of_prompt(changed)}",
            f"**Figures.** In brackets how likely a right pair has more than a wrong one, then than itself gone wrong. "
            f"{_of_told(told, REFERENCE)} {_of_told(told, PROMPT)} A kept region can be derived in "
            f"{derived[RIGHT]} right pairs and in {derived[REFERENCE]} with another's reference; in the others whatever needs "
            "one is undefined.",
            f"**Pictures.** {_of_pictures(quality)}",
        )
    )


def _of_rows(best: Figures, every: Figures, noise: Figures, layer: str) -> str:
    little = best["kept_reference"][0] > best["kept"][0] / 2
    return (
        f"In `{layer}` {best['kept'][0]:.0%} of the kept patches look at their own place, {best['moved'][0]:.0%} of a moved "
        f"object's at its source (all layers: {every['kept'][0]:.0%}, {every['moved'][0]:.0%}); with another pair's reference "
        f"{best['kept_reference'][0]:.0%} and {best['moved_reference'][0]:.0%}"
        + (", so that the first says little of what is found there. " if little else ". ")
        + f"With another's prompt {best['moved_prompt'][0]:.0%} of a moved object's find its source; in pure noise, where only "
        f"the prompt says where to, {noise['moved_prompt'][0]:.0%} instead of {noise['moved'][0]:.0%}."
    )


def _of_objects(kinds: Mapping[str, Figures]) -> str:
    """Where the edited patches look."""
    known = {kind: one["object"][0] for kind, one in kinds.items() if not np.isnan(one["object"][0]) and kind != KEPT}
    return f"At the object look {', '.join(f'{value:.0%} of *{kind}*' for kind, value in known.items())}."


def _of_prompt(changed: Mapping[str, Figures]) -> str:
    prompt = changed[PROMPT]
    return (
        f"Another's moves the rows of what is edited by {prompt['rows_edited'][0]:.2f} and of what is kept by "
        f"{prompt['rows_kept'][0]:.2f}, the picture by {prompt['picture_edited'][0]:.2f} and {prompt['picture_kept'][0]:.2f}."
    )


def _of_pictures(quality: Mapping[str, Figures]) -> str:
    def decibels(name: str) -> str:
        return ", ".join(f"{quality[name][region][0]:.1f}" for region in REGIONS)

    return (
        f"In what is kept, in recoloured objects and in other edits {decibels(RIGHT)} dB; with another's reference "
        f"{decibels(REFERENCE)}, with another's prompt {decibels(PROMPT)}, with no reference tokens {decibels(NO_REFERENCE)}"
        + (
            " (the prompt names the colour)."
            if quality[NO_REFERENCE]["recoloured"][0] > quality[RIGHT]["recoloured"][0]
            else "."
        )
    )


def _of_told(told: Mapping[str, Figures], way: str) -> str:
    """Which figures tell, by their intervals."""

    def named(tags: Sequence[str]) -> str:
        return ", ".join(f"{FIGURES[tag]} ({both(told[tag])})" for tag in tags) or "none"

    def both(one: Figures) -> str:
        return ", ".join(f"{one[f'{how} {way}'][0]:.2f}" for how in ("told from", "within a pair,"))

    ends = {tag: one[f"told from {way}"] for tag, one in told.items()}
    telling = [tag for tag, (_, low, _) in ends.items() if low > _CHANCE]
    against = [tag for tag, (_, _, high) in ends.items() if high < _CHANCE]
    rest = [tag for tag in ends if tag not in telling and tag not in against]
    backwards = f", the wrong way round by {named(against)}" if against else ""
    return f"{way.capitalize()} is told by {named(telling)}{backwards}; not by {named(rest)}."
