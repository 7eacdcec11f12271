"""`TinyExamplePipeline`: inpainting by example with the tiny model, called as diffusers' inpainting pipelines are."""

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

from ..pixel_vae import PixelVAE, to_pixels
from ..shipped_weights import load_weights
from ..tiny_unet import denoise
from .model import ReferenceEncoder, inpainting_condition, new_scheduler, new_unet
from .pairs import SIZE

WEIGHTS = Path(__file__).with_name("tiny_example.safetensors")
"""The shipped weights, float16; recipe, seed and figures stand in the file's metadata."""


class TinyExamplePipeline(DiffusionPipeline):
    """Paints the object of `example_image` into the hole of `image`.

    Components: `unet`, `reference_encoder`, `scheduler`. Pictures are 32x32; others are resized.
    """

    model_cpu_offload_seq = "reference_encoder->unet"
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self, unet: UNet2DConditionModel, reference_encoder: ReferenceEncoder, scheduler: DDIMScheduler
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, reference_encoder=reference_encoder, scheduler=scheduler)
        self.vae, self.vae_scale_factor = PixelVAE(), 2  # no part to save: it holds nothing
        self.image_processor = VaeImageProcessor(vae_scale_factor=2, resample="bilinear")

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image | list[Image.Image],
        mask_image: Image.Image | list[Image.Image],
        example_image: Image.Image | list[Image.Image],
        num_inference_steps: int = 20,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Samples with DDIM.

        `image`, `mask_image` (white = hole) and `example_image` are a picture or a list of equally many.
        `output_type` is "pil", "np" (B, 32, 32, 3 in [0, 1]) or "pt" (B, 3, 32, 32 in [0, 1]).
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f'output_type must be "pil", "np" or "pt", got {output_type!r}')
        picture, hole, example = self.prepare(image, mask_image, example_image)
        tokens = self.reference_encoder(example)
        condition = inpainting_condition(picture, hole)
        shape = (len(picture), self.unet.config.out_channels, *condition.shape[-2:])
        latents = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self.unet.dtype)
        latents = denoise(
            self,
            latents,
            tokens,
            lambda noisy: torch.cat([noisy, condition], 1),
            num_inference_steps,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        painted = to_pixels(latents).clamp(-1, 1)
        merged = painted * hole + picture * (1 - hole)
        images = self.image_processor.postprocess(merged, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def prepare(self, image: Any, mask_image: Any, example_image: Any) -> tuple[torch.Tensor, ...]:
        """Pictures (B, 3, 32, 32) in [-1, 1], holes (B, 1, 32, 32) in {0, 1} and examples like the pictures."""
        pictures, masks, examples = (x if isinstance(x, list) else [x] for x in (image, mask_image, example_image))
        if not len(pictures) == len(masks) == len(examples):
            raise ValueError(
                "image, mask_image and example_image must be equally many, "
                f"got {len(pictures)}, {len(masks)} and {len(examples)}"
            )
        place = dict(device=self._execution_device, dtype=self.unet.dtype)
        hole = torch.stack([_to_tensor(m.convert("L"), Image.Resampling.NEAREST) for m in masks])
        return (
            torch.stack([_to_tensor(p.convert("RGB")) * 2 - 1 for p in pictures]).to(**place),
            (hole > 0.5).to(**place),
            torch.stack([_to_tensor(e.convert("RGB")) * 2 - 1 for e in examples]).to(**place),
        )


def load_tiny_pipeline(weights: Path = WEIGHTS, *, device: str | torch.device = "cpu") -> TinyExamplePipeline:
    """The pipeline with the shipped weights, in float32 and evaluation mode."""
    modules = load_weights({"unet": new_unet(), "reference_encoder": ReferenceEncoder()}, weights)
    return TinyExamplePipeline(**modules, scheduler=new_scheduler()).to(device)


def _to_tensor(image: Image.Image, resample: Image.Resampling = Image.Resampling.BILINEAR) -> torch.Tensor:
    """(C, 32, 32) in [0, 1]."""
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), resample)
    array = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())
