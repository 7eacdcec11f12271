"""One pair, one picture: the panel without a training loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from .evaluation import Evaluator
from .pairs import ValidationPair, ValidationPairs
from .plan import CapturePlan
from .report import pair_panel


def explain(
    pipeline: Any,
    *,
    reference: str | Path,
    image: str | Path,
    mask: str | Path,
    reference_mask: str | Path | None = None,
    num_inference_steps: int | None = None,
    seed: int = 0,
) -> Image.Image:
    """Samples one pair, looking at every step, layer and head, and draws its panel.

    Raises:
        I2AMError: a picture can't be used, or the pipeline has no reference tokens.
    """
    pair = ValidationPair(
        name=Path(image).stem, target=image, reference=reference, mask=mask, reference_mask=reference_mask
    )
    evaluator = Evaluator(
        pairs=ValidationPairs([pair]), plan=CapturePlan.full(), num_inference_steps=num_inference_steps, seed=seed
    )
    evaluator.check(pipeline)
    looks = evaluator.look(pipeline, [0])
    evaluation = evaluator.score(looks, global_step=0, pipeline=pipeline, baseline=None)
    titles = {"IMACS_g": "imacs_g", "IMACS_r": "imacs_r", "attention information": "attention_information"}
    figures = {title: evaluation.figures[tag][0] for title, tag in titles.items()}
    return pair_panel(looks[0].maps, pair, looks[0].generated, figures, type(pipeline).__name__)
