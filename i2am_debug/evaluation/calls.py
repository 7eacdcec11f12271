"""How a validation pair becomes a pipeline call, by what the pipeline's own `__call__` takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import InvalidPair, UnsupportedModel
from ..pairs.pair import ValidationPair
from .call_arguments import Size, joined, plain_denoising, scaled_reference, size_and_steps

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


_TAKES_BATCHES = (
    "FluxKontextPipeline",
    "PaintByExamplePipeline",
    "StableDiffusionImageVariationPipeline",
    "TinyExamplePipeline",
    "TinySuperResolutionPipeline",
)
"""Pipelines whose pictures and prompts may be lists, one of each an image."""


_REPEATS_ITS_REFERENCE = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
)
"""The same, but for the reference of their one IP-Adapter, which they would repeat for every image."""


@dataclass(frozen=True, kw_only=True)
class DefaultCall:
    """A call as the pipeline's class wants it; made by `default_call`."""

    reference_parameter: str
    num_inference_steps: int | None
    size: Size | None
    plain: bool

    def __call__(self, pipeline: Any, pair: ValidationPair, generator: torch.Generator) -> Any:
        return pipeline(**self._arguments(pipeline, pair), generator=generator)

    def batch(self, pipeline: Any, pairs: Sequence[ValidationPair], generators: Sequence[torch.Generator]) -> Any:
        """One call for several pairs; each has its own noise, whatever the others are."""
        if len(pairs) == 1:
            return self(pipeline, pairs[0], generators[0])
        calls = [self._arguments(pipeline, pair) for pair in pairs]
        pictures = [call.pop("ip_adapter_image", None) for call in calls]
        together = joined(calls, [pair.name for pair in pairs])
        if pictures[0] is None:
            return pipeline(**together, generator=list(generators))
        with _each_its_own_reference(pipeline, pictures):
            return pipeline(**together, ip_adapter_image=pictures[0], generator=list(generators))

    def _arguments(self, pipeline: Any, pair: ValidationPair) -> dict[str, Any]:
        parameters = inspect.signature(type(pipeline).__call__).parameters
        given = size_and_steps(pipeline, parameters, pair, self.size, self.num_inference_steps)
        arguments: dict[str, Any] = {**given, **pair.extra}
        arguments[self.reference_parameter] = references_of(pipeline, scaled_reference(pair, self.size))
        if self.reference_parameter != "image" and "image" in parameters:
            arguments["image"] = pair.target
        if "mask_image" in parameters:
            if pair.mask is None:
                raise InvalidPair(f"pair {pair.name!r} has no mask, and {type(pipeline).__name__} needs a mask_image")
            arguments["mask_image"] = pair.mask_image
        if "prompt" in parameters and arguments.get("prompt_embeds") is None:
            arguments["prompt"] = pair.prompt or ""
        if self.plain:
            arguments.update(plain_denoising(parameters, denoiser_of(pipeline)))
        unknown = sorted(set(arguments) - set(parameters))
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            text = (
                "; the words go under prompt" if "prompt" in parameters and {"text", "caption"} & set(unknown) else ""
            )
            raise InvalidPair(
                f"pair {pair.name!r} has {', '.join(unknown)}, which {type(pipeline).__name__} does not take; "
                f"leave the key out of metadata.jsonl or pass call={text}"
            )
        return arguments


def default_call(
    pipeline: Any, num_inference_steps: int | None = None, *, size: Size | None = None, plain: bool = False
) -> DefaultCall:
    """The call for a pipeline's class.

    The reference goes to `image` of the pipelines that edit it, else to the first of `example_image`, `image_reference`,
    `reference_image` and `ip_adapter_image` that the pipeline takes; where it takes only an `image` and neither mask nor
    prompt, that is the reference (image variation). Further references go with the first, as a list where the pipeline
    takes one, else one to each IP-Adapter or all to the only one. The target goes to `image`, the hole to `mask_image`; a
    pair without a prompt is called with an empty one. Where the pipeline can be told the size of its picture, that is the
    target's, rounded to what the model takes; what a pair has in `extra` goes before.

    Args:
        size: (width, height) of the pictures in place of the targets' own; references are scaled as the targets are.
        plain: nothing but denoising, from pure noise: without classifier-free guidance and with strength 1.

    Raises:
        UnsupportedModel: the pipeline takes no reference that is recognised, or has no IP-Adapter loaded to read it.
    """
    parameters = inspect.signature(type(pipeline).__call__).parameters
    return DefaultCall(
        reference_parameter=_reference_parameter(pipeline, parameters),
        num_inference_steps=num_inference_steps,
        size=size,
        plain=plain,
    )


def takes_batches(pipeline: Any) -> bool:
    """Whether `DefaultCall.batch` can put several pairs into one call of it."""
    encoded = _is_one_of(pipeline, _REPEATS_ITS_REFERENCE) and len(_adapters(pipeline)) == 1
    return encoded or _is_one_of(pipeline, _TAKES_BATCHES)


def _adapters(pipeline: Any) -> Any:
    """What projects the pictures' embeddings, one for each IP-Adapter."""
    return getattr(getattr(denoiser_of(pipeline), "encoder_hid_proj", None), "image_projection_layers", ())


@contextmanager
def _each_its_own_reference(pipeline: Any, references: Sequence[Any]) -> Iterator[None]:
    """Within it the pipeline encodes no picture, but gets the embeddings of each image's reference, or references: its own
    way is to repeat what it is given for every image. For calls without guidance."""
    device = pipeline._execution_device
    each = [pipeline.prepare_ip_adapter_image_embeds([one], None, device, 1, False)[0] for one in references]
    pipeline.prepare_ip_adapter_image_embeds = lambda *args, **kwargs: [torch.cat(each)]
    try:
        yield
    finally:
        del pipeline.prepare_ip_adapter_image_embeds


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
    denoiser = denoiser_of(pipeline)
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
        adapters = len(_adapters(pipeline))
    if adapters == 1:
        return [pictures]
    if adapters == len(pictures):
        return pictures
    takes = f"has {adapters} IP-Adapters" if adapters else "takes one"
    raise InvalidPair(
        f"pair {pair.name!r} has {len(pictures)} references, and {name} {takes}; say how they become a call with "
        "call=lambda pipeline, pair, generator: …"
    )


def denoiser_of(pipeline: Any) -> Any:
    """The pipeline's `unet` or `transformer`, or None."""
    unet = getattr(pipeline, "unet", None)  # no `or`: one that is compiled has no truth value
    return unet if unet is not None else getattr(pipeline, "transformer", None)


def picture_of(output: Any, row: int = 0) -> Image.Image:
    """One picture of a pipeline's output: a PIL image, a list of them, or an object with `images`; of a video
    (`frames`) the last frame.

    Raises:
        UnsupportedModel: it is none of these.
    """
    images = getattr(output, "images", output)
    first = images[row] if isinstance(images, (list, tuple)) and len(images) > row else images
    if hasattr(output, "frames"):
        first = output.frames[row][-1]
    if isinstance(first, np.ndarray) and first.dtype.kind == "f" and first.ndim == 3:
        first = Image.fromarray((first.clip(0, 1) * 255).round().astype(np.uint8))
    if not isinstance(first, Image.Image):
        raise UnsupportedModel(
            f"the pipeline returned a {type(first).__name__}; the call must return pictures (output_type='pil')"
        )
    return first
