"""The same model evaluated again and again with other noise seeds: how much of a figure's movement is chance alone."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from .errors import NotComparable
from .evaluation import Evaluator
from .pairs import ValidationPairs
from .record import Evaluation, differences


def load_pipeline(folder: str | Path) -> Any:
    """A pipeline saved with `save_pretrained`, by its own class.

    Raises:
        ValueError: the folder has no model_index.json, or one that is broken.
    """
    index = Path(folder) / "model_index.json"
    if not index.is_file():
        raise ValueError(
            f"{folder} is no pipeline folder: it has no model_index.json (pipeline.save_pretrained writes one)"
        )
    try:
        own_class = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is none that save_pretrained writes: {error!r}") from None
    tiny = own_class == "TinyExamplePipeline"
    home = importlib.import_module("i2am_debug.demo.pipeline" if tiny else "diffusers")
    pipeline_class = home.TinyExamplePipeline if tiny else home.DiffusionPipeline  # the latter finds the saved class
    return pipeline_class.from_pretrained(folder)


def evaluate_repeatedly(
    pipeline: str | Path,
    pairs: str | Path,
    *,
    repeats: int,
    steps: int | None = None,
    baseline: Evaluation | None = None,
) -> list[Evaluation]:
    """Samples all pairs `repeats` times, each time with another seed.

    Args:
        baseline: what the margins are for; everything but the seed must be as in it.

    Raises:
        NotComparable: something else differs from the baseline.
        ValueError, I2AMError: the pipeline or the pairs can't be used.
    """
    loaded = load_pipeline(pipeline)
    if hasattr(loaded, "set_progress_bar_config"):
        loaded.set_progress_bar_config(disable=True)
    evaluator = Evaluator(pairs=ValidationPairs.from_folder(pairs), num_inference_steps=steps)
    evaluator.check(loaded)
    out = []
    for seed in range(repeats):
        evaluator = replace(evaluator, seed=seed)
        evaluator.pilot(loaded)
        looks = [look for batch in evaluator.batches for look in evaluator.look(loaded, batch)]
        evaluation = evaluator.score(looks, global_step=0, pipeline=loaded, baseline=None)
        unlike = {} if baseline is None else differences(evaluation, baseline)
        unlike.pop("seed", None)
        if unlike:
            raise NotComparable(unlike)
        out.append(evaluation)
    return out
