"""How a validation pair becomes a pipeline call, by what the pipeline's own `__call__` takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from .errors import InvalidPair, UnsupportedModel
from .pairs import ValidationPair

PipelineCall = Callable[[Any, ValidationPair, torch.Generator], Any]
"""`call(pipeline, pair, generator)` → the pipeline's output, or the picture itself."""

_REFERENCE_PARAMETERS = ("example_image", "ip_adapter_image", "reference_image")


def default_call(pipeline: Any, num_inference_steps: int | None = None) -> PipelineCall:
    """The call for a pipeline's class.

    The reference goes to `example_image`, `ip_adapter_image` or `reference_image`; where the pipeline has only an `image`
    and no mask, that is the reference (image variation). The target goes to `image`, the hole to `mask_image`.

    Raises:
        UnsupportedModel: the pipeline takes no reference that is recognised.
    """
    parameters = inspect.signature(type(pipeline).__call__).parameters
    takes_reference = next((name for name in _REFERENCE_PARAMETERS if name in parameters), None)
    variation = takes_reference is None and "image" in parameters and not {"mask_image", "prompt"} & set(parameters)
    if takes_reference is None and not variation:
        raise UnsupportedModel(
            f"{type(pipeline).__name__} takes no {', '.join(_REFERENCE_PARAMETERS)}; say how a pair becomes a call with "
            "call=lambda pipeline, pair, generator: pipeline(image=pair.target, …, generator=generator)"
        )

    def call(pipeline: Any, pair: ValidationPair, generator: torch.Generator) -> Any:
        arguments: dict[str, Any] = dict(pair.extra)
        if takes_reference is None:
            arguments["image"] = pair.reference
        else:
            arguments[takes_reference] = pair.reference
            if "image" in parameters:
                arguments["image"] = pair.target
        if "mask_image" in parameters:
            if pair.mask is None:
                raise InvalidPair(f"pair {pair.name!r} has no mask, and {type(pipeline).__name__} needs a mask_image")
            arguments["mask_image"] = pair.mask_image
        if "prompt" in parameters and pair.prompt is not None:
            arguments["prompt"] = pair.prompt
        if num_inference_steps is not None and "num_inference_steps" in parameters:
            arguments.setdefault("num_inference_steps", num_inference_steps)
        unknown = sorted(set(arguments) - set(parameters))
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            raise InvalidPair(
                f"pair {pair.name!r} has {', '.join(unknown)}, which {type(pipeline).__name__} does not take; "
                "leave the key out of metadata.jsonl or pass call="
            )
        return pipeline(**arguments, generator=generator)

    return call


def picture_of(output: Any) -> Image.Image:
    """The first picture of a pipeline's output: a PIL image, a list of them, or an object with `images`.

    Raises:
        UnsupportedModel: it is none of these.
    """
    images = getattr(output, "images", output)
    first = images[0] if isinstance(images, (list, tuple)) and images else images
    if not isinstance(first, Image.Image):
        raise UnsupportedModel(
            f"the pipeline returned a {type(first).__name__}; the call must return pictures (output_type='pil')"
        )
    return first
