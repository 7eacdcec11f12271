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
from safetensors.torch import load_file

from ..pixel_vae import PixelVAE
from .model import CELL, GRID, LATENT_CHANNELS, ReferenceEncoder, new_scheduler, new_unet, with_places
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
        # No part to save: it holds nothing.
        self.vae, self.vae_scale_factor = PixelVAE(LATENT_CHANNELS, (3, 12, LATENT_CHANNELS)), CELL
        self.image_processor = VaeImageProcessor(vae_scale_factor=CELL, resample="bilinear")

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
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        shape = (len(tokens), LATENT_CHANNELS, GRID, GRID)
        latents = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self.unet.dtype)
        with self.progress_bar(total=num_inference_steps) as progress:
            for i, t in enumerate(self.scheduler.timesteps):
                predicted = self.unet(with_places(latents), t, tokens).sample
                latents = self.scheduler.step(predicted, t, latents).prev_sample
                if callback_on_step_end is not None:
                    names = callback_on_step_end_tensor_inputs or ["latents"]
                    changed = callback_on_step_end(self, i, t, {n: {"latents": latents}[n] for n in names})
                    latents = changed.pop("latents", latents)
                progress.update()
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
    state = load_file(weights)
    parts = {"unet": new_unet(), "reference_encoder": ReferenceEncoder()}
    for name, module in parts.items():
        own = {key.removeprefix(f"{name}."): v.float() for key, v in state.items() if key.startswith(f"{name}.")}
        module.load_state_dict(own)
        module.eval()
    return TinySuperResolutionPipeline(**parts, scheduler=new_scheduler()).to(device)
