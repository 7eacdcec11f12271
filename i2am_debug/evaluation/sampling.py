"""The way of sampling: a pair is seen while the pipeline makes its picture. The dearest way; needs no noise table.

There is no loss here. In its place stands how far the picture is from the truth in the hole, in what an edit changes, or where
a pair has neither, in the whole picture; with the pair's own reference and with another one, the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..figures.observation import Observation, maps_of
from ..figures.values import Figure, Undefined
from ..pairs.pair import ValidationPair
from .probes import What, probe
from .references import with_reference, wrong_references

if TYPE_CHECKING:
    from .evaluator import Evaluator


def observe_by_sampling(evaluator: Evaluator, pipeline: Any, batch: Sequence[int]) -> list[Observation]:
    """Samples the pairs of these numbers, capturing, and each with another pair's reference."""
    return [_observe(evaluator, pipeline, index) for index in batch]


def _observe(evaluator: Evaluator, pipeline: Any, index: int) -> Observation:
    pair = evaluator.pairs[index]
    with evaluator.trace(pipeline, [pair]) as t:
        generated = evaluator.sample(pipeline, index)
    maps, further = maps_of(t, 0)
    (other,) = wrong_references(evaluator.pairs, [index])
    wrong: Figure
    if isinstance(other, Undefined):
        wrong = other
    else:
        wrong = distance(evaluator.sample(pipeline, index, with_reference(pair, other)), pair)
    return Observation(
        index=index,
        maps=maps,
        further=further,
        generated=generated,
        loss=distance(generated, pair),
        loss_map=_apart(generated, pair),
        wrong_reference_loss=wrong,
        no_reference_loss=Undefined("not measured by sampling"),
    )


def probe_by_sampling(evaluator: Evaluator, pipeline: Any, batch: Sequence[int]) -> list[dict[str, Figure]]:
    """How far the pictures made of changed pairs are from their truth, of the pairs of these numbers."""

    def losses(changed: list[ValidationPair], what: What) -> list[Figure]:
        return [distance(evaluator.sample(pipeline, i, pair), pair) for i, pair in zip(batch, changed, strict=True)]

    return probe(evaluator.pairs, batch, losses)


def distance(picture: Image.Image, pair: ValidationPair) -> float:
    """Mean absolute difference of a picture and the pair's truth in [0, 1], over what is to be generated anew."""
    apart = _apart(picture, pair)
    anew = pair.mask if pair.mask is not None else None if pair.kept is None else ~pair.kept
    return float(apart.mean() if anew is None else apart[anew].mean())


def _apart(picture: Image.Image, pair: ValidationPair) -> np.ndarray:
    """(H, W) of the target, mean over the colours."""
    made = picture.convert("RGB").resize(pair.target.size, Image.Resampling.BILINEAR)
    apart = np.abs(np.asarray(made, dtype=np.float32) - np.asarray(pair.target, dtype=np.float32)) / 255
    return apart.mean(2)
