"""What every default call sets beside pictures and prompt: size, sampler steps, guidance; and several pairs in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from PIL import Image

from ..errors import InvalidPair
from ..pairs.pair import ValidationPair

Size: TypeAlias = tuple[int, int]
"""(width, height) in pixels."""

_GUIDANCE = ("guidance_scale", "true_cfg_scale", "img_guidance_scale", "image_guidance_scale", "decoder_guidance_scale")


def scale_factor(pipeline: Any) -> int:
    """How many pixels of a side one latent stands for."""
    names = ("vae_scale_factor_spatial", "vae_scale_factor", "movq_scale_factor")
    return int(next((f for f in (getattr(pipeline, n, None) for n in names) if f), 8))


def picture_size(pipeline: Any, pair: ValidationPair, size: Size | None) -> Size:
    """(width, height) of the pair's generated picture: `size` or the target's own, rounded to what the model takes."""
    # Transformers read patches of 2x2 latents; a UNet takes any whole number of them.
    step = scale_factor(pipeline) * (2 if getattr(pipeline, "transformer", None) is not None else 1)
    width, height = (max(1, round(side / step)) * step for side in size or pair.target.size)
    return width, height


def size_and_steps(
    pipeline: Any, parameters: Mapping[str, Any], pair: ValidationPair, size: Size | None, steps: int | None
) -> dict[str, Any]:
    """Those of the pipeline's arguments that say how large its picture is and how it is sampled."""
    given: dict[str, Any] = {}
    if {"height", "width"} <= parameters.keys():
        given["width"], given["height"] = picture_size(pipeline, pair, size)
    if "_auto_resize" in parameters:  # Kontext brings every picture to a million pixels otherwise
        given["_auto_resize"] = False
    if "max_area" in parameters:
        width, height = picture_size(pipeline, pair, size)
        given["max_area"] = pair.extra.get("width", width) * pair.extra.get("height", height)
    if "num_frames" in parameters:  # the reference and one latent frame behind it: what the pair knows the truth of
        given["num_frames"] = 1 + int(getattr(pipeline, "vae_scale_factor_temporal", 4))
    if steps is not None and "num_inference_steps" in parameters:
        given["num_inference_steps"] = steps
    return given


def plain_denoising(parameters: Mapping[str, Any], denoiser: Any) -> dict[str, Any]:
    """Arguments for a call that begins at pure noise and has no classifier-free guidance. A model that is told the guidance
    as a number keeps it."""
    told = bool(getattr(getattr(denoiser, "config", None), "guidance_embeds", False))
    # A scale that is None by default (Qwen-Image's) is one that only a model reads that is told it.
    names = [n for n in _GUIDANCE if n in parameters and getattr(parameters[n], "default", 1.0) is not None]
    off: dict[str, Any] = {n: 1.0 for n in names if not (told and n == "guidance_scale")}
    if "pag_scale" in parameters:
        off["pag_scale"] = 0.0
    if "strength" in parameters:
        off["strength"] = 1.0
    return off


def scaled_reference(pair: ValidationPair, size: Size | None) -> ValidationPair:
    """The pair with its references scaled as `size` scales its target."""
    if size is None or size == pair.target.size:
        return pair
    factor = (size[0] * size[1] / (pair.target.width * pair.target.height)) ** 0.5

    def scaled(picture: Image.Image) -> Image.Image:
        sides = tuple(max(1, round(side * factor)) for side in picture.size)
        return picture.resize(sides, Image.Resampling.LANCZOS)

    return replace(
        pair,
        reference=scaled(pair.reference),
        reference_mask=None,
        further_references=[scaled(one) for one in pair.further_references],
    )


def joined(calls: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """The arguments of one call for all: pictures and texts as lists, tensors one behind the other, the rest as it is.

    Raises:
        InvalidPair: the calls differ in something that one call has only once.
    """
    together: dict[str, Any] = {}
    for key in dict.fromkeys(key for call in calls for key in call):
        values = [call.get(key) for call in calls]
        if all(isinstance(v, (Image.Image, str)) for v in values):
            together[key] = values
        elif all(isinstance(v, torch.Tensor) for v in values):
            together[key] = torch.cat(values)
        elif any(v != values[0] for v in values):
            raise InvalidPair(
                f"pairs {', '.join(names)} can't be in one call, their {key} differs ({values[0]!r}, …); use batch_size=1"
            )
        else:
            together[key] = values[0]
    return together
