"""One pair, one picture: the panel without a training loop."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from ..capture.plan import CapturePlan
from ..errors import I2AMError, InvalidPair
from ..evaluation.calls import edits_its_reference
from ..evaluation.evaluator import Evaluator
from ..pairs.collection import ValidationPairs
from ..pairs.pair import ValidationPair
from .pictures import figures_of_pair, pair_panel

Picture: TypeAlias = str | Path | Image.Image
"""A file, or a picture."""


def explain(
    pipeline: Any,
    *,
    reference: Picture | Sequence[Picture],
    image: Picture | None = None,
    mask: Picture | None = None,
    reference_mask: Picture | None = None,
    kept: Picture | None = None,
    prompt: str | None = None,
    size: tuple[int, int] | None = None,
    name: str | None = None,
    num_inference_steps: int | None = None,
    seed: int = 0,
) -> Image.Image:
    """Samples one pair, looking at every step, layer and head, and draws its panel.

    Args:
        reference: the reference; a list where the pipeline takes several.
        image: the picture to paint into; for a pipeline that edits its reference the truth, if there is one: where both agree
            is the kept region.
        mask: the hole, white = generate.
        reference_mask: the object in the reference.
        kept: the kept region, white = kept, in place of what the two pictures say; of the size of `image`, else of the
            reference.
        size: (width, height) to generate; by default the pipeline's own.

    Raises:
        I2AMError: a picture can't be used or is missing, the pipeline has no reference tokens or refuses the call.
    """
    first, *further = [reference] if isinstance(reference, (str, Path, Image.Image)) else reference
    _refuse_what_does_not_fit(pipeline, image=image, mask=mask, prompt=prompt)
    target = first if image is None else image
    pair = ValidationPair(
        name=name or (Path(target).stem if isinstance(target, (str, Path)) else "pair"),
        target=target,
        reference=first,
        mask=mask,
        reference_mask=reference_mask,
        kept=kept,
        undefined_kept=None if image is not None else "there is no truth to compare the reference with",
        further_references=further,
        prompt=prompt,
        extra={} if size is None else _size_arguments(pipeline, size),
    )
    if image is not None and edits_its_reference(pipeline):
        pair = pair.with_kept_region()
    evaluator = Evaluator(
        pairs=ValidationPairs([pair]),
        plan=CapturePlan.full(),
        way="sampling",
        num_inference_steps=num_inference_steps,
        seed=seed,
    )
    evaluator.check(pipeline)
    try:
        observations = evaluator.observe(pipeline, [0])
    except I2AMError:
        raise
    except ValueError as error:  # how pipelines say that they can't do with a size, a prompt or a picture
        raise InvalidPair(f"{type(pipeline).__name__} refused the call: {error}") from error
    evaluation = evaluator.score(observations, global_step=0, pipeline=pipeline, baseline=None)
    figures = figures_of_pair(evaluation, 0, pair)
    seen, title = observations[0], type(pipeline).__name__
    return pair_panel(seen, pair, figures, title, has_truth=image is not None, notes=seen.maps.notes)


def _refuse_what_does_not_fit(pipeline: Any, *, image: Any, mask: Any, prompt: str | None) -> None:
    takes, name = set(inspect.signature(type(pipeline).__call__).parameters), type(pipeline).__name__
    if mask is None and "mask_image" in takes:
        raise InvalidPair(f"{name} paints into a hole: a mask is needed, white where to generate (--mask)")
    if mask is not None and "mask_image" not in takes:
        raise InvalidPair(
            f"{name} takes no mask: leave it out (--mask); what an edit keeps is another one (--kept-mask)"
        )
    if prompt is not None and "prompt" not in takes:
        raise InvalidPair(f"{name} takes no prompt: leave it out (--prompt)")
    only_picture = "image" in takes and not {"mask_image", "prompt"} & takes  # image variation
    if image is None and "image" in takes and not only_picture and not edits_its_reference(pipeline):
        raise InvalidPair(f"{name} starts from a picture beside its reference: an image is needed (--image)")


def _size_arguments(pipeline: Any, size: tuple[int, int]) -> dict[str, int]:
    takes = inspect.signature(type(pipeline).__call__).parameters
    if not {"width", "height"} <= set(takes):
        raise InvalidPair(f"{type(pipeline).__name__} takes no size: leave size (--size) out")
    width, height = size
    area = (
        {"max_area": width * height} if "max_area" in takes else {}
    )  # Kontext keeps the shape, but takes its own area
    return {"width": width, "height": height, **area}
