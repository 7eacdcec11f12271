"""Instruction editing: whether patches look where what they show comes from, and what the prompt changes.

Of each edit is known which patches are kept, whose source is their own place, and, of an object that is moved, from where.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    RIGHT,
    figures_of,
    kept_regions_derived,
    made,
    superiority,
    variants,
)
from .editing_words import (
    WAYS,
    Figures,
    Interval,
    changed_table,
    in_words,
    kinds_table,
    places_table,
    quality_table,
    told_table,
)
from .intervals import resampled
from .looked_at import held_out
from .section import Section
from .sizes import Sizes

NOISE_SHARES = (1.0, 0.8, 0.6, 0.4, 0.2, 0.02)
"""The first is pure noise."""
NOISE = "another noise"

Seen = dict[str, list[tuple[dict[str, np.ndarray], torch.Tensor]]]
"""`RIGHT`, `REFERENCE`, `PROMPT` or `NOISE` → by noise share: rows by layer, and the predicted picture."""


def measure(sizes: Sizes, _runs: Path) -> Section:
    pipeline = load_edit_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    pairs = held_out("edit", sizes.pairs, seed=0)
    batch = make_batch(sizes.pairs, torch.Generator().manual_seed(10_000))  # the same ones, with what is known of them
    seen = _seen(pipeline, batch)
    layers = list(seen[RIGHT][0][0])
    places = {layer: _places(*(_over_times(seen, way, layer) for way in WAYS), batch, sizes) for layer in layers}
    layer = max((la for la in layers if la != ALL), key=lambda la: places[la]["kept"][0] + places[la]["moved"][0])
    by_noise = {
        str(share): _places(*(seen[way][time][0][layer] for way in WAYS), batch, sizes)
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
        asked=f"{sizes.pairs} held-out edits of the joint-attention model (one object is recoloured, moved, replaced or "
        f"removed, all else is kept), teacher forced with {', '.join(map(str, NOISE_SHARES))} of noise. Of {PATCHES} patches "
        "a *kept* one, without a pixel of the object's old or new place, shows its own place; one at least half on a *moved* "
        "object shows what is two patches away, its source. Hit rate: share whose row (SRAM, all heads) has its maximum "
        f"there; chance {1 / PATCHES:.3f}. As controls another pair's reference, and another pair's prompt. Intervals are "
        "over pairs.",
        said=in_words(places, by_noise[str(NOISE_SHARES[0])], kinds, changed, told, quality, derived, layer),
        tables=[
            places_table(places, by_noise, layer),
            kinds_table(kinds, patches_of_each_kind(batch), layer),
            changed_table(changed),
            told_table(told),
            quality_table(quality),
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
