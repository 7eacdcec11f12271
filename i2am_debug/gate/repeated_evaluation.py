"""The same model evaluated again and again with other noise seeds: how much of a figure's movement is chance alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..errors import NotComparable
from ..evaluation.evaluator import Evaluator
from ..evaluation.load_pipeline import load_pipeline
from ..evaluation.pilot import Choice
from ..figures.record import Evaluation, cure, differences
from ..pairs.collection import ValidationPairs


def evaluate_repeatedly(
    pipeline: str | Path,
    pairs: str | Path,
    *,
    repeats: int,
    steps: int | None = None,
    baseline: Evaluation | None = None,
    allow_outside: bool = False,
) -> list[Evaluation]:
    """Looks at all pairs `repeats` times, each time with another seed: by sampling where `steps` are given or the baseline was
    made so, else as a run without a `loss_fn` does.

    Args:
        baseline: what the margins are for, whose heads are looked at; everything but the seed must be as in it.
        allow_outside: whether the pairs' files may lie outside their folder.

    Raises:
        NotComparable: something else differs from the baseline.
        ValueError, I2AMError: the pipeline or the pairs can't be used.
    """
    loaded = load_pipeline(pipeline)
    if hasattr(loaded, "set_progress_bar_config"):
        loaded.set_progress_bar_config(disable=True)
    way = None if baseline is None else baseline.fingerprint.get("way")
    evaluator = Evaluator(
        pairs=ValidationPairs.from_folder(pairs, allow_outside=allow_outside),
        way="sampling" if way == "sampling" or (way is None and steps is not None) else None,
        num_inference_steps=steps,
        choice=None if baseline is None else Choice.of(baseline),
    )
    evaluator.check(loaded)
    out = []
    for seed in range(repeats):
        evaluator = replace(evaluator, seed=seed)
        evaluator.prepare(loaded)
        observations = [observation for batch in evaluator.batches for observation in evaluator.observe(loaded, batch)]
        evaluation = evaluator.score(observations, global_step=0, pipeline=loaded, baseline=None)
        unlike = {} if baseline is None else differences(evaluation, baseline)
        unlike.pop("seed", None)
        if unlike:
            raise NotComparable(unlike, cure(unlike))
        out.append(evaluation)
    return out
