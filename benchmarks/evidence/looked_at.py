"""Pairs of the tiny models, looked at in full: what several parts measure on."""

from __future__ import annotations

from typing import Any

from i2am_debug.capture.plan import CapturePlan
from i2am_debug.demo.demo_model import demo_model
from i2am_debug.evaluation.evaluator import Evaluator
from i2am_debug.figures.observation import Observation
from i2am_debug.pairs.collection import ValidationPairs

_AT_ONCE = 16


def held_out(model: str, count: int, seed: int) -> ValidationPairs:
    """Pairs that neither the model nor the demo's evaluations have seen."""
    if model == "inpainting":
        from i2am_debug.demo.inpainting.pairs import validation_pairs
    else:
        from i2am_debug.demo.edit.pairs import validation_pairs
    return validation_pairs(count, seed=10_000 + seed)


def look(
    model: str, pairs: ValidationPairs, pipeline: Any = None, *, make_trace: Any = None, **settings: Any
) -> tuple[Evaluator, list[Observation]]:
    """Every layer, head and noise time, by teacher forcing; of the shipped model, or of a `pipeline`."""
    pipeline = pipeline or demo_model(model).load(device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    evaluator = Evaluator(
        pairs=pairs, **{"plan": CapturePlan.full(), "batch_size": _AT_ONCE, "pictures": 0, **settings}
    )
    evaluator.check(pipeline)
    evaluator.use(evaluator.way_for(pipeline), pipeline)
    evaluator.make_trace = make_trace
    return evaluator, [seen for batch in evaluator.batches for seen in evaluator.observe(pipeline, batch)]


def copying_layer(observations: list[Observation]) -> str:
    """The layer of most attention information, mean over pairs."""
    layers = observations[0].maps.layers
    return max(layers, key=lambda la: sum(one.maps.layer_information[la] for one in observations))
