"""Models that are looked at right after their weights broke, as after a checkpoint that did not load.

In a fine-tune of `benchmarks.alert_runs` some steps come between, and a model that trains on after such a fault soon looks
otherwise: it learns to do without its reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from i2am_debug.demo.demo_model import MODELS, demo_model
from i2am_debug.evaluation.evaluator import Evaluator
from i2am_debug.figures.record import Evaluation
from i2am_debug.figures.scoring import with_probes
from i2am_debug.store.packing import unified_maps


def broken_at_once() -> Iterator[tuple[str, str, Evaluation, Evaluation]]:
    """Model, fault, the evaluation before and the one after it, of each fault of the weights that a shipped model can have."""
    torch.set_num_threads(1)
    for name in MODELS:
        model = demo_model(name)
        pairs = model.validation_pairs()
        evaluator = Evaluator(pairs=pairs, batch_size=len(pairs))
        baseline, maps = _evaluated(evaluator, _loaded(model), 0, {})
        for fault, sabotage in model.sabotages.items():
            if sabotage.break_weights is not None:
                pipeline = _loaded(model)
                sabotage.break_weights(pipeline)
                yield name, fault, baseline, _evaluated(evaluator, pipeline, 1, maps)[0]


def _loaded(model: Any) -> Any:
    pipeline = model.load(device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _evaluated(
    evaluator: Evaluator, pipeline: Any, step: int, maps: dict[str, Any]
) -> tuple[Evaluation, dict[str, Any]]:
    evaluator.check(pipeline)
    seen = [one for batch in evaluator.batches for one in evaluator.observe(pipeline, batch)]
    probes = {n: losses for batch in evaluator.probed for n, losses in evaluator.probe(pipeline, batch).items()}
    scored = evaluator.score(seen, global_step=step, pipeline=pipeline, baseline=maps)
    return with_probes(scored, probes), unified_maps(seen)
