"""The way of sampling: a pair is seen while the pipeline makes its picture. Needs no loss; takes every sampler step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..figures.observation import Observation, maps_of
from ..figures.values import Undefined

if TYPE_CHECKING:
    from .evaluator import Evaluator


def observe_by_sampling(evaluator: Evaluator, pipeline: Any, index: int) -> Observation:
    """Samples the pair of this number, capturing."""
    with evaluator.trace(pipeline, [evaluator.pairs[index]]) as t:
        generated = evaluator.sample(pipeline, index)
    maps, further = maps_of(t, 0)
    none = Undefined("no loss_fn")
    return Observation(
        index=index, maps=maps, further=further, generated=generated, loss=none, wrong_reference_loss=none
    )
