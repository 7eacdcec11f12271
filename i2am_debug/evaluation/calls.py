"""How a validation pair becomes a pipeline call, by what the pipeline's own `__call__` takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import InvalidPair, UnsupportedModel
from ..pairs.pair import ValidationPair

PipelineCall = Callable[[Any, ValidationPair, torch.Generator], Any]
"""`call(pipeline, pair, generator)` → the pipeline's output, or the picture itself."""

_IMAGE_IS_THE_REFERENCE = (
    "BriaFiboEditPipeline",
    "ChronoEditPipeline",
    "DreamLiteMobilePipeline",
    "DreamLitePipeline",
    "FluxKontextPipeline",
    "Flux2Pipeline",
    "Flux2KleinPipeline",
    "Flux2KleinKVPipeline",
    "LongCatImageEditPipeline",
    "QwenImageEditPipeline",
    "QwenImageEditPlusPipeline",
    "SkyReelsV2ImageToVideoPipeline",
    "WanImageToVideoPipeline",
)
"""Pipelines that edit or animate the picture they get: it is the reference, and there is no other."""

_TAKES_SEVERAL = ("Flux2Pipeline", "Flux2KleinPipeline", "Flux2KleinKVPipeline", "QwenImageEditPlusPipeline")
"""Pipelines whose `image` may be a list of references."""

_REFERENCE_PARAMETERS = ("example_image", "image_reference", "reference_image", "ip_adapter_image")


def default_call(pipeline: Any, num_inference_steps: int | None = None) -> PipelineCall:
    """The call for a pipeline's class.

    The reference goes to `image` of the pipelines that edit it, else to the first of `example_image`, `image_reference`,
    `reference_image` and `ip_adapter_image` that the pipeline takes; where it takes only an `image` and neither mask nor
    prompt, that is the reference (image variation). Further references go with the first, as a list where the pipeline
    takes one, else one to each IP-Adapter or all to the only one. The target goes to `image`, the hole to `mask_image`; a
    pair without a prompt is called with an empty one.

    Raises:
        UnsupportedModel: the pipeline takes no reference that is recognised, or has no IP-Adapter loaded to read it.
    """
    parameters = inspect.signature(type(pipeline).__call__).parameters
    takes_reference = _reference_parameter(pipeline, parameters)

    def call(pipeline: Any, pair: ValidationPair, generator: torch.Generator) -> Any:
        arguments: dict[str, Any] = dict(pair.extra)
        arguments[takes_reference] = references_of(pipeline, pair)
        if takes_reference != "image" and "image" in parameters:
            arguments["image"] = pair.target
        if "mask_image" in parameters:
            if pair.mask is None:
                raise InvalidPair(f"pair {pair.name!r} has no mask, and {type(pipeline).__name__} needs a mask_image")
            arguments["mask_image"] = pair.mask_image
        if "prompt" in parameters and arguments.get("prompt_embeds") is None:
            arguments["prompt"] = pair.prompt or ""
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


def edits_its_reference(pipeline: Any) -> bool:
    """Whether the pipeline edits or animates the picture it gets, so that this is the reference, and there is no other."""
    return _is_one_of(pipeline, _IMAGE_IS_THE_REFERENCE)


def _is_one_of(pipeline: Any, names: tuple[str, ...]) -> bool:
    """Whether its class, or one that it is derived from, has one of these names."""
    return any(c.__name__ in names for c in type(pipeline).__mro__)


def _reference_parameter(pipeline: Any, parameters: Mapping[str, Any]) -> str:
    name = type(pipeline).__name__
    if edits_its_reference(pipeline):
        return "image"
    found = next((p for p in _REFERENCE_PARAMETERS if p in parameters), None)
    if found is None and "image" in parameters and not {"mask_image", "prompt"} & set(parameters):
        return "image"
    how = (
        "say how a pair becomes a call with call=lambda pipeline, pair, generator: "
        "pipeline(image=pair.target, …, generator=generator)"
    )
    if found is None:
        raise UnsupportedModel(f"{name} takes no {', '.join(_REFERENCE_PARAMETERS)}; {how}")
    denoiser = _denoiser(pipeline)
    loaded = any(getattr(denoiser, part, None) is not None for part in ("encoder_hid_proj", "image_proj"))
    kind = getattr(getattr(denoiser, "config", None), "encoder_hid_dim_type", None)
    loaded = loaded and kind in (None, "ip_image_proj")  # Kolors has a projection of its text under the same name
    if found == "ip_adapter_image" and not loaded:
        raise UnsupportedModel(
            f"{name} would take its reference as ip_adapter_image, but no IP-Adapter is loaded: "
            f"pipeline.load_ip_adapter(…), or {how}"
        )
    return found


def references_of(pipeline: Any, pair: ValidationPair) -> Any:
    """The pair's references as `default_call` gives them to the pipeline: a picture, or a list of them.

    Raises:
        InvalidPair: the pipeline takes fewer.
    """
    pictures = [pair.reference, *pair.further_references]
    if len(pictures) == 1:
        return pair.reference
    name = type(pipeline).__name__
    parameter = _reference_parameter(pipeline, inspect.signature(type(pipeline).__call__).parameters)
    if parameter == "image" and _is_one_of(pipeline, _TAKES_SEVERAL):
        return pictures
    adapters = 0
    if parameter == "ip_adapter_image":
        projection = getattr(_denoiser(pipeline), "encoder_hid_proj", None)
        adapters = len(getattr(projection, "image_projection_layers", ()))
    if adapters == 1:
        return [pictures]
    if adapters == len(pictures):
        return pictures
    takes = f"has {adapters} IP-Adapters" if adapters else "takes one"
    raise InvalidPair(
        f"pair {pair.name!r} has {len(pictures)} references, and {name} {takes}; say how they become a call with "
        "call=lambda pipeline, pair, generator: …"
    )


def _denoiser(pipeline: Any) -> Any:
    return getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)


def picture_of(output: Any) -> Image.Image:
    """The first picture of a pipeline's output: a PIL image, a list of them, or an object with `images`; of a video
    (`frames`) the last frame.

    Raises:
        UnsupportedModel: it is none of these.
    """
    images = getattr(output, "images", output)
    first = images[0] if isinstance(images, (list, tuple)) and images else images
    if hasattr(output, "frames"):
        first = output.frames[0][-1]
    if isinstance(first, np.ndarray) and first.dtype.kind == "f" and first.ndim == 3:
        first = Image.fromarray((first.clip(0, 1) * 255).round().astype(np.uint8))
    if not isinstance(first, Image.Image):
        raise UnsupportedModel(
            f"the pipeline returned a {type(first).__name__}; the call must return pictures (output_type='pil')"
        )
    return first
