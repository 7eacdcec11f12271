"""Models whose picture never becomes tokens that attention could read: it comes in with the latent's channels, as a class
label, or through a second network. This is no family; `reason` says why there can be none.
"""

from __future__ import annotations

from typing import Any

from torch import nn

_CHANNELS = "the picture is concatenated to the channels of the noisy latent, so every token mixes both"
_LABEL = "the picture's embedding is a class label, which is added to that of the noise time, the same for all tokens"
_FEATURES = "a second network adds the control picture's features to those of the denoiser"
_INPAINTING = "the picture outside the mask is concatenated to the channels of the noisy latent, or blended into it"

_WAYS = {
    "StableDiffusionInstructPix2PixPipeline": _CHANNELS,
    "StableDiffusionXLInstructPix2PixPipeline": _CHANNELS,
    "StableDiffusionUpscalePipeline": _CHANNELS,
    "StableDiffusionLatentUpscalePipeline": _CHANNELS,
    "StableDiffusionDepth2ImgPipeline": _CHANNELS,
    "LDMSuperResolutionPipeline": _CHANNELS,
    "FluxFillPipeline": _CHANNELS,
    "FluxControlPipeline": _CHANNELS,
    "FluxControlImg2ImgPipeline": _CHANNELS,
    "FluxControlInpaintPipeline": _CHANNELS,
    "CogView4ControlPipeline": _CHANNELS,
    "StableUnCLIPPipeline": _LABEL,
    "StableUnCLIPImg2ImgPipeline": _LABEL,
    "StableDiffusionAdapterPipeline": _FEATURES,
    "StableDiffusionXLAdapterPipeline": _FEATURES,
    "StableDiffusionInpaintPipeline": _INPAINTING,
    "StableDiffusionXLInpaintPipeline": _INPAINTING,
    "StableDiffusionPAGInpaintPipeline": _INPAINTING,
    "StableDiffusionXLPAGInpaintPipeline": _INPAINTING,
}


def reason(pipeline: Any, denoiser: nn.Module) -> str | None:
    """Why no attribution map can exist for this pipeline of diffusers, or None for all that may have reference tokens.

    A pipeline with a call of its own is not known here, nor is a denoiser without its pipeline, whose arguments may hold
    anything. An IP-Adapter brings reference tokens.
    """
    known = next((c for c in type(pipeline).__mro__ if "__call__" in vars(c)), type(pipeline))
    way = _way(known.__name__) if known.__module__.startswith("diffusers.") else None
    if way is None or any("IPAdapter" in type(getattr(m, "processor", None)).__name__ for m in denoiser.modules()):
        return None
    return (
        f"{type(pipeline).__name__} has no reference tokens: {way}. No attention reads the picture by itself, so there is no "
        "attribution map of it. Whether it is used at all shows without attention: in the denoising loss with another pair's "
        "picture minus that with the right one, under the same noise. If a reference reaches the attention in another way "
        "(tokens of Flux Redux in prompt_embeds, attention processors of your own), pass family= with one that knows it."
    )


def _way(name: str) -> str | None:
    """How the picture comes into pipelines of this name, if it can't be attended to."""
    if name == "BlipDiffusionControlNetPipeline":
        return None  # its subject's tokens are among the prompt's
    return _FEATURES if "ControlNet" in name else _WAYS.get(name)
