"""One pair, one picture: the panel without a training loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from ..capture.plan import CapturePlan
from ..evaluation.evaluator import Evaluator
from ..pairs.collection import ValidationPairs
from ..pairs.pair import ValidationPair
from .pictures import figures_of_pair, pair_panel

Picture: TypeAlias = str | Path | Image.Image
"""A file, or a picture."""


def explain(
    pipeline: Any,
    *,
    reference: Picture,
    image: Picture,
    mask: Picture,
    reference_mask: Picture | None = None,
    name: str | None = None,
    num_inference_steps: int | None = None,
    seed: int = 0,
) -> Image.Image:
    """Samples one pair, looking at every step, layer and head, and draws its panel.

    Raises:
        I2AMError: a picture can't be used, or the pipeline has no reference tokens.
    """
    name = name or (Path(image).stem if isinstance(image, (str, Path)) else "pair")
    pair = ValidationPair(name=name, target=image, reference=reference, mask=mask, reference_mask=reference_mask)
    evaluator = Evaluator(
        pairs=ValidationPairs([pair]), plan=CapturePlan.full(), num_inference_steps=num_inference_steps, seed=seed
    )
    evaluator.check(pipeline)
    observations = evaluator.observe(pipeline, [0])
    evaluation = evaluator.score(observations, global_step=0, pipeline=pipeline, baseline=None)
    return pair_panel(observations[0], pair, figures_of_pair(evaluation, 0), type(pipeline).__name__)
