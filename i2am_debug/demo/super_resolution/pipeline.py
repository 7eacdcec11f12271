"""`TinySuperResolutionPipeline`: restores a picture from one of half its resolution, called as diffusers' upscalers are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, ImagePipelineOutput, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from ..pixel_vae import LATENT_CHANNELS, PIXELS_PER_CELL, PixelVAE
from ..shipped_weights import load_weights
from ..tiny_unet import denoise
from .model import GRID, ReferenceEncoder, new_scheduler, new_unet, with_places
from .pairs import LOW_SIZE

WEIGHTS = Path(__file__).with_name("tiny_super_resolution.safetensors")
"""The shipped weights, float16; recipe, seed and figures stand in the file's metadata."""


class TinySuperResolutionPipeline(DiffusionPipeline):
    """Makes a 32x32 picture of the 16x16 picture `image`; others are resized.

    Components: `unet`, `reference_encoder`, `scheduler`.
    """

    model_cpu_offload_seq = "reference_encoder->unet"
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self, unet: UNet2DConditionModel, reference_encoder: ReferenceEncoder, scheduler: DDIMScheduler
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, reference_encoder=reference_encoder, scheduler=scheduler)
        self.vae, self.vae_scale_factor = PixelVAE(), PIXELS_PER_CELL  # no part to save: it holds nothing
        self.image_processor = VaeImageProcessor(vae_scale_factor=PIXELS_PER_CELL, resample="bilinear")

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image | list[Image.Image],
        num_inference_steps: int = 20,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Samples with DDIM.

        `image` is a low-resolution picture or a list of them.
        `output_type` is "pil", "np" (B, 32, 32, 3 in [0, 1]) or "pt" (B, 3, 32, 32 in [0, 1]).
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f'output_type must be "pil", "np" or "pt", got {output_type!r}')
        tokens = self.reference_encoder(self.prepare(image))
        shape = (len(tokens), LATENT_CHANNELS, GRID, GRID)
        latents = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self.unet.dtype)
        latents = denoise(
            self,
            latents,
            tokens,
            with_places,
            num_inference_steps,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        picture = self.vae.decode(latents).sample.clamp(-1, 1)
        images = self.image_processor.postprocess(picture, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def prepare(self, image: Image.Image | list[Image.Image]) -> torch.Tensor:
        """The low-resolution pictures, (B, 3, 16, 16) in [-1, 1]."""
        pictures = [one.convert("RGB") for one in (image if isinstance(image, list) else [image])]
        side = (LOW_SIZE, LOW_SIZE)
        resized = [one if one.size == side else one.resize(side, Image.Resampling.BILINEAR) for one in pictures]
        arrays = np.stack([np.asarray(one, dtype=np.float32) for one in resized])
        tensor = torch.from_numpy(arrays).permute(0, 3, 1, 2) / 127.5 - 1
        return tensor.to(device=self._execution_device, dtype=self.unet.dtype)


def load_super_resolution_pipeline(
    weights: Path = WEIGHTS, *, device: str | torch.device = "cpu"
) -> TinySuperResolutionPipeline:
    """The pipeline with the shipped weights, in float32 and evaluation mode."""
    modules = load_weights({"unet": new_unet(), "reference_encoder": ReferenceEncoder()}, weights)
    return TinySuperResolutionPipeline(**modules, scheduler=new_scheduler()).to(device)
