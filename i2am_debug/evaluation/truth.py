"""The truth of a pair as a pipeline's latents: what a teacher-forced call is scored against.

Where generated picture and reference come in as one sequence, it is what the pipeline makes of the truth when that is given
as the reference. Elsewhere it is the VAE's mean, scaled and packed as the pipeline does it. Or the user says it, `encode=`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import VQModel
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from ..capture.trace import find_denoiser
from ..errors import CannotForce
from ..families.family import Family
from ..pairs.pair import ValidationPair
from .call_arguments import Size, scale_factor
from .forced_scheduler import Finished

Encode = Callable[[Any, ValidationPair], torch.Tensor]
"""`encode(pipeline, pair)` → (1, …): the pair's target in the layout of the pipeline's latents."""


def read_off_the_reference(pipeline: Any, family: Family, call: Callable[[], Any]) -> torch.Tensor | None:
    """(1, tokens, channels): the reference's latents in the first denoiser input of `call`, which ends there.

    None where the family knows no place of them.
    """
    reference_latents = getattr(family, "reference_latents", None)
    if reference_latents is None:
        return None
    found: list[torch.Tensor | None] = []

    def read(module: Any, args: tuple, kwargs: dict) -> None:
        arguments = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
        found.append(reference_latents({**arguments.pop("kwargs", {}), **arguments}))
        raise Finished

    handle = find_denoiser(pipeline).register_forward_pre_hook(read, with_kwargs=True, prepend=True)
    try:
        call()
    except Finished:
        pass
    finally:
        handle.remove()
    return None if not found or found[0] is None else found[0].clone()


def encoded(pipeline: Any, pair: ValidationPair, size: Size, sample: torch.Tensor) -> torch.Tensor:
    """The pair's target through the pipeline's VAE, in the layout of `sample`, (1, …).

    Args:
        size: (width, height) of the generated picture in pixels.
        sample: latents of the pipeline: (B, channels, height, width), (B, tokens, channels) or (B, channels, frames, h, w).

    Raises:
        CannotForce: the pipeline has no VAE, or its latents are of no known layout.
    """
    vae = getattr(pipeline, "vae", None)  # no `or`: one that is compiled has no truth value
    vae = vae if vae is not None else getattr(pipeline, "movq", None)
    if vae is None or not hasattr(vae, "encode"):
        raise CannotForce(
            f"{type(pipeline).__name__} has no vae; say how a target becomes its latents with encode=lambda pipeline, pair: …"
        )
    if (vae.config.get("input_channels") or 3) != 3:
        raise CannotForce(
            f"{type(pipeline).__name__} makes pictures of {vae.config['input_channels']} channels, a target has 3; pass encode="
        )
    if sample.ndim > 3:  # exactly as large as the latents are, whatever the pipeline resizes to
        size = sample.shape[-1] * scale_factor(pipeline), sample.shape[-2] * scale_factor(pipeline)
    with _exact(vae):
        pixels = _pixels(pipeline, pair.target, size).to(vae.device, vae.dtype)
        if sample.ndim == 3:
            return _packed(pipeline, vae, pixels)
        if sample.ndim == 5:
            pixels = _video(pipeline, pair, size, pixels, frames=sample.shape[2])
        return _scaled(vae, _mean(vae.encode(pixels)))


def _pixels(pipeline: Any, picture: Image.Image, size: Size) -> torch.Tensor:
    """(1, 3, height, width) in [-1, 1]."""
    # In image to video the image processor is that of the image encoder.
    own = getattr(pipeline, "video_processor", None) or getattr(pipeline, "image_processor", None)
    width, height = size
    return (own or VaeImageProcessor()).preprocess(picture, height=height, width=width)


def _video(pipeline: Any, pair: ValidationPair, size: Size, pixels: torch.Tensor, frames: int) -> torch.Tensor:
    """(1, 3, frames, h, w) of so many latent frames: the reference, which is being animated, then the truth to the end."""
    if frames == 1:
        return pixels[:, :, None]
    begin = _pixels(pipeline, pair.reference, size).to(pixels)
    step = int(getattr(pipeline, "vae_scale_factor_temporal", 4))
    return torch.stack([begin, *[pixels] * (step * (frames - 1))], dim=2)


def _packed(pipeline: Any, vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    pack = getattr(pipeline, "_pack_latents", None)
    if pack is None:
        raise CannotForce(f"{type(pipeline).__name__} has latents in a sequence and no _pack_latents; pass encode=")
    own = getattr(pipeline, "_encode_vae_image", None)
    if own is None:
        latents = _scaled(vae, _mean(vae.encode(pixels)))
    else:
        deep = vae.config.get("latents_mean") is not None  # a video's VAE, which takes one frame
        latents = own(image=pixels[:, :, None] if deep else pixels, generator=torch.Generator().manual_seed(0))
    if len(inspect.signature(pack).parameters) == 1:
        return pack(latents)
    batch, channels, height, width = (latents.shape[i] for i in (0, 1, -2, -1))
    return pack(latents, batch, channels, height, width)


def _mean(output: Any) -> torch.Tensor:
    """Of an encoder's distribution; some encoders give latents as they are."""
    return output.latent_dist.mode() if hasattr(output, "latent_dist") else output.latents


def _scaled(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    config = vae.config
    if isinstance(vae, VQModel):
        return latents  # Kandinsky uses them as they are, whatever factor the configuration names
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        latents = latents - (config.get("shift_factor") or 0.0)
    else:
        shape = (1, -1, *[1] * (latents.ndim - 2))
        latents = (latents - torch.tensor(mean).view(shape).to(latents)) / torch.tensor(std).view(shape).to(latents)
    return latents * (config.get("scaling_factor") or 1.0)


@contextmanager
def _exact(vae: Any) -> Iterator[None]:
    """In float32 where half precision overflows (SDXL's); going there and back changes no weight."""
    half = vae.dtype == torch.float16 and bool(vae.config.get("force_upcast"))
    if half:
        vae.to(torch.float32)
    try:
        yield
    finally:
        if half:
            vae.to(torch.float16)
