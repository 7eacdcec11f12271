"""Instruction editing: whether patches look where what they show comes from, and what the prompt changes.

Of each edit is known which patches are kept, whose source is their own place, and, of an object that is moved, from where.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.distance import jensenshannon

from i2am_debug.demo.edit.pairs import EditBatch, make_batch
from i2am_debug.demo.edit.pipeline import TinyEditPipeline, load_edit_pipeline

from .edited_patches import (
    ALL,
    KEPT,
    MOVED,
    PATCHES,
    at,
    near,
    object_shares,
    other_prompts,
    patches_of_each_kind,
    rows_at,
    share_of,
    sources,
)
from .editing_told import (
    FIGURES,
    PROMPT,
    REFERENCE,
    REGIONS,
    RIGHT,
    SAMPLER_STEPS,
    figures_of,
    kept_regions_derived,
    made,
    superiority,
    variants,
)
from .intervals import resampled
from .looked_at import held_out
from .section import Section, Table, with_interval
from .sizes import Sizes

NOISE_SHARES = (1.0, 0.8, 0.6, 0.4, 0.2, 0.02)
"""The first is pure noise."""
NOISE = "another noise"
_CHANCE = 0.5

Interval = tuple[float, float, float]
Figures = dict[str, Interval]
Seen = dict[str, list[tuple[dict[str, np.ndarray], torch.Tensor]]]
"""`RIGHT`, `REFERENCE`, `PROMPT` or `NOISE` → by noise share: rows by layer, and the predicted picture."""


def measure(sizes: Sizes, _runs: Path) -> Section:
    pipeline = load_edit_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    pairs = held_out("edit", sizes.pairs, seed=0)
    batch = make_batch(sizes.pairs, torch.Generator().manual_seed(10_000))  # the same ones, with what is known of them
    seen = _seen(pipeline, batch)
    layers = list(seen[RIGHT][0][0])
    places = {layer: _places(*(_over_times(seen, way, layer) for way in _WAYS), batch, sizes) for layer in layers}
    layer = max((la for la in layers if la != ALL), key=lambda la: places[la]["kept"][0] + places[la]["moved"][0])
    by_noise = {
        str(share): _places(*(seen[way][time][0][layer] for way in _WAYS), batch, sizes)
        for time, share in enumerate(NOISE_SHARES)
    }
    kinds = {
        kind: _of_kind(_over_times(seen, RIGHT, layer), counted, batch, sizes)
        for kind, counted in patches_of_each_kind(batch).items()
    }
    changed = {way: _changed(seen, way, batch, sizes) for way in (PROMPT, REFERENCE, NOISE)}
    derived = {way: kept_regions_derived(each) for way, each in variants(list(pairs), batch).items()}
    told = _told(figures_of(pipeline, pairs, batch), sizes)
    quality = {
        name: {region: mean(values, sizes) for region, values in one.items()}
        for name, one in made(pipeline, pairs, batch).items()
    }
    return Section(
        title="Instruction editing",
        asked=f"{sizes.pairs} held-out edits of the joint-attention model (one object is recoloured, moved, replaced "
        f"or removed, "
        f"all else is kept), teacher forced with {', '.join(map(str, NOISE_SHARES))} of noise. Of {PATCHES} patches a "
        f"*kept* one, "
        "without a pixel of the object's old or new place, shows its own place; one at least half on a *moved* object "
        "what is two "
        f"patches away, its source. Hit rate: share whose row (SRAM, all heads) has its maximum there; chance "
        f"{1 / PATCHES:.3f}. "
        "As controls another pair's reference, and another pair's prompt. Intervals are over pairs.",
        said=_in_words(places, by_noise, kinds, changed, told, quality, derived, layer),
        tables=[
            _places_table(places, by_noise, layer),
            _kinds_table(kinds, patches_of_each_kind(batch), layer),
            _changed_table(changed),
            _told_table(told),
            Table(
                title=f"Made with {SAMPLER_STEPS} sampler steps, PSNR in dB:",
                columns=("from", "what is kept", "the object's old and new place"),
                rows=[
                    [name, *(_cell(one[region], 1) if region in one else "exact" for region in REGIONS)]
                    for name, one in quality.items()
                ],
            ),
        ],
        command="python -m benchmarks.evidence editing",
        values={
            "by_layer": places,
            "by_noise": by_noise,
            "by_kind": kinds,
            "changed_by": changed,
            "told_apart": told,
            "psnr": quality,
            "kept_regions_derived": derived,
            "sharpest_layer": layer,
        },
    )


_WAYS = (RIGHT, REFERENCE, PROMPT)


def _seen(pipeline: TinyEditPipeline, batch: EditBatch) -> Seen:
    ways: dict[str, dict] = {
        RIGHT: {},
        REFERENCE: {"reference_B3SS": batch.reference_B3SS.roll(1, 0)},
        PROMPT: {"prompts": other_prompts(batch.prompts)},
        NOISE: {"noise_seed": 1},
    }
    return {way: [rows_at(pipeline, batch, share, **with_) for share in NOISE_SHARES] for way, with_ in ways.items()}


def _over_times(seen: Seen, way: str, layer: str) -> np.ndarray:
    return np.mean([rows[layer] for rows, _ in seen[way]], 0)


def mean(values: np.ndarray, sizes: Sizes) -> Interval:
    """Of the pairs that have a value; NaN where none has."""
    present = values[~np.isnan(values)]
    if not len(present):
        return (float("nan"),) * 3
    return resampled(lambda chosen: float(present[chosen].mean()), len(present), sizes.resamples)


def _places(right: np.ndarray, reference: np.ndarray, prompt: np.ndarray, batch: EditBatch, sizes: Sizes) -> Figures:
    kinds, source, own = patches_of_each_kind(batch), sources(batch), _own(batch)
    found = {
        "kept": at(right, own, kinds[KEPT]),
        "kept_near": near(right, own, kinds[KEPT]),
        "kept_reference": at(reference, own, kinds[KEPT]),
        "moved": at(right, source, kinds[MOVED]),
        "moved_near": near(right, source, kinds[MOVED]),
        "moved_own": at(right, own, kinds[MOVED]),
        "moved_reference": at(reference, source, kinds[MOVED]),
        "moved_prompt": at(prompt, source, kinds[MOVED]),
    }
    return {name: mean(values, sizes) for name, values in found.items()}


def _own(batch: EditBatch) -> np.ndarray:
    return np.broadcast_to(np.arange(PATCHES), (len(batch), PATCHES))


def _of_kind(rows: np.ndarray, counted: np.ndarray, batch: EditBatch, sizes: Sizes) -> Figures:
    on_object = object_shares(batch.reference_object_B1SS)
    found = {
        "own": at(rows, _own(batch), counted),
        "near": near(rows, _own(batch), counted),
        "object": share_of(np.take_along_axis(on_object, rows.argmax(2), 1) >= 0.5, counted),
        "weight": share_of(np.einsum("bgr,br->bg", rows / rows.sum(2, keepdims=True), on_object), counted),
    }
    return {name: mean(values, sizes) for name, values in found.items()}


def _changed(seen: Seen, way: str, batch: EditBatch, sizes: Sizes) -> Figures:
    """How far rows and predicted picture move, from the right pair's, in what is kept and in what is edited."""
    rows = np.mean([jensenshannon(a[ALL], b[ALL], 2, axis=2) for (a, _), (b, _) in _both(seen, way)], 0)
    change = np.mean([(a - b).abs().mean(2).numpy() for (_, a), (_, b) in _both(seen, way)], 0)
    kept = patches_of_each_kind(batch)[KEPT]
    return {
        f"{what}_{region}": mean(share_of(values, counted), sizes)
        for what, values in (("rows", rows), ("picture", change))
        for region, counted in (("kept", kept), ("edited", ~kept))
    }


def _both(seen: Seen, way: str) -> zip:
    return zip(seen[RIGHT], seen[way], strict=True)


def _told(figures: Mapping[str, Mapping[str, np.ndarray]], sizes: Sizes) -> dict[str, Figures]:
    """Figure → its means, how well it tells by `superiority`, and the share of pairs with more than their own wrong one."""
    found: dict[str, Figures] = {}
    for tag in FIGURES:
        right = figures[RIGHT][tag]
        one = {RIGHT: mean(right, sizes)}
        for way in (REFERENCE, PROMPT):
            wrong = figures[way][tag]
            one[way] = mean(wrong, sizes)
            one[f"told from {way}"] = resampled(
                lambda chosen, r=right, w=wrong: superiority(r[chosen], w[chosen]), len(right), sizes.resamples
            )
            one[f"within a pair, {way}"] = mean((right > wrong) + 0.5 * (right == wrong), sizes)
        found[tag] = one
    return found


def _cell(value: Interval, digits: int = 2) -> str:
    if np.isnan(value[0]):
        return "no such pair"
    return with_interval(*value, digits=digits)


def _places_table(places: Mapping[str, Figures], by_noise: Mapping[str, Figures], layer: str) -> Table:
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
        rows=[[name, *(_cell(one[column]) for column in columns)] for name, one in named.items()],
    )


def _kinds_table(kinds: Mapping[str, Figures], counted: Mapping[str, np.ndarray], layer: str) -> Table:
    return Table(
        title=f"Where rows of `{layer}` look, by what becomes of their patch:",
        columns=("patches", "pairs", "at their own place", "within one patch", "on the object", "weight on the object"),
        rows=[
            [kind, str(counted[kind].any(1).sum()), *(_cell(one[name]) for name in ("own", "near", "object", "weight"))]
            for kind, one in kinds.items()
        ],
    )


def _changed_table(changed: Mapping[str, Figures]) -> Table:
    columns = ("rows_kept", "rows_edited", "picture_kept", "picture_edited")
    return Table(
        title="How far rows (JS distance, all layers) and the predicted picture (of a range of 2) move:",
        columns=("with", "rows, kept", "rows, edited", "picture, kept", "picture, edited"),
        rows=[[way, *(_cell(one[column], 3) for column in columns)] for way, one in changed.items()],
    )


def _told_table(told: Mapping[str, Figures]) -> Table:
    means, apart = _WAYS, [f"told from {way}" for way in (REFERENCE, PROMPT)]
    return Table(
        title="The package's figures, given the true kept region; *told*: how likely a right pair has more than a "
        "wrong one (chance "
        "0.5):",
        columns=("figure", *means, *apart),
        rows=[
            [FIGURES[tag], *(_cell(one[way], 3) for way in means), *(_cell(one[way]) for way in apart)]
            for tag, one in told.items()
        ],
    )


def _in_words(
    places: Mapping[str, Figures],
    by_noise: Mapping[str, Figures],
    kinds: Mapping[str, Figures],
    changed: Mapping[str, Figures],
    told: Mapping[str, Figures],
    quality: Mapping[str, Figures],
    derived: Mapping[str, int],
    layer: str,
) -> str:
    best, every, noise = places[layer], places[ALL], by_noise[str(NOISE_SHARES[0])]
    looking = ", ".join(
        f"{kind} {one['object'][0]:.0%}" for kind, one in kinds.items() if not np.isnan(one["object"][0])
    )
    prompt, right = changed[PROMPT], quality[RIGHT]
    by_place = best["kept_reference"][0] > best["kept"][0] / 2
    return (
        f"**Rows.** In `{layer}` {best['kept'][0]:.0%} of the kept patches look at their own place and "
        f"{best['moved'][0]:.0%} of "
        f"a moved object's at its source; over all layers {every['kept'][0]:.0%} and {every['moved'][0]:.0%}. With "
        f"another pair's "
        f"reference these are {best['kept_reference'][0]:.0%} and {best['moved_reference'][0]:.0%}"
        + (": that a kept patch looks at its place says little of what is found there. " if by_place else ". ")
        + f"With another's prompt a moved object's source is hit by {best['moved_prompt'][0]:.0%}; in pure noise, "
        f"where the prompt "
        f"alone says where to, by {noise['moved_prompt'][0]:.0%} instead of {noise['moved'][0]:.0%}. Maxima on the reference's "
        f"object: {looking}. **Prompt.** Another one moves the rows of what is edited by "
        f"{prompt['rows_edited'][0]:.2f}, of what "
        f"is kept by {prompt['rows_kept'][0]:.2f}, the picture by {prompt['picture_edited'][0]:.2f} and "
        f"{prompt['picture_kept'][0]:.2f}. **Figures.** {_of_told(told, REFERENCE)} {_of_told(told, PROMPT)} A kept "
        f"region can be "
        f"derived in {derived[RIGHT]} right pairs and in {derived[REFERENCE]} with another's reference, where the figures of "
        f"kept and edited regions are undefined then. **Pictures.** {right['kept'][0]:.1f} dB in what is kept and "
        f"{right['edited'][0]:.1f} in what is edited; from another's reference {quality[REFERENCE]['kept'][0]:.1f} and "
        f"{quality[REFERENCE]['edited'][0]:.1f}, with another's prompt {quality[PROMPT]['kept'][0]:.1f} and "
        f"{quality[PROMPT]['edited'][0]:.1f}."
    )


def _of_told(told: Mapping[str, Figures], way: str) -> str:
    """Which figures tell, by their intervals."""

    def named(tags: Sequence[str]) -> str:
        return ", ".join(f"{FIGURES[tag]} ({told[tag][f'told from {way}'][0]:.2f})" for tag in tags) or "none"

    ends = {tag: one[f"told from {way}"] for tag, one in told.items()}
    telling = [tag for tag, (_, low, _) in ends.items() if low > _CHANCE]
    against = [tag for tag, (_, _, high) in ends.items() if high < _CHANCE]
    rest = [tag for tag in ends if tag not in telling and tag not in against]
    backwards = f", the wrong way round by {named(against)}" if against else ""
    return f"{way.capitalize()} is told by {named(telling)}{backwards}; not by {named(rest)}."
