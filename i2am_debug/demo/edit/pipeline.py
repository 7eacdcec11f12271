"""`TinyEditPipeline`: Flux Kontext's own pipeline around the tiny editing model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import is_transformers_available

from ...errors import UnsupportedModel
from ..pixel_vae import PixelVAE
from ..shipped_weights import load_weights
from .model import InstructionEncoder, new_scheduler, new_transformer, pooled
from .pairs import SIZE

WEIGHTS = Path(__file__).with_name("tiny_edit.safetensors")
"""The shipped weights, float16; recipe, seed and figures stand in the file's metadata."""


class _OneSize(VaeImageProcessor):
    """Takes every picture for one of 32x32, to which the pipeline then brings it."""

    def get_default_height_width(self, *_: Any, **__: Any) -> tuple[int, int]:
        return SIZE, SIZE


class TinyEditPipeline(FluxKontextPipeline):
    """Edits a picture as a prompt says; called as `FluxKontextPipeline` is, whose code runs.

    Components: `transformer`, `vae`, `instruction_encoder` (in place of two text encoders), `scheduler`. Pictures are 32x32;
    others are resized. The prompts are those of `pairs.PROMPTS`.
    """

    model_cpu_offload_seq = "instruction_encoder->transformer->vae"
    _optional_components: ClassVar[list[str]] = []

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: PixelVAE,
        instruction_encoder: InstructionEncoder,
        transformer: FluxTransformer2DModel,
    ) -> None:
        DiffusionPipeline.__init__(self)  # Kontext's own asks for its text encoders
        self.register_modules(
            scheduler=scheduler, vae=vae, instruction_encoder=instruction_encoder, transformer=transformer
        )
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.latent_channels = vae.config.latent_channels
        self.image_processor = _OneSize(vae_scale_factor=2 * self.vae_scale_factor)
        self.default_sample_size = SIZE // self.vae_scale_factor

    def __call__(
        self,
        image: Any = None,
        prompt: str | list[str] | None = None,
        *,
        height: int = SIZE,
        width: int = SIZE,
        num_inference_steps: int = 10,
        max_area: int = SIZE * SIZE,
        _auto_resize: bool = False,
        **further: Any,
    ) -> Any:
        """As Kontext's, but for pictures of 32x32 instead of a megapixel; `further` goes on to it."""
        return super().__call__(
            image,
            prompt,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            max_area=max_area,
            _auto_resize=_auto_resize,
            **further,
        )

    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        max_sequence_length: int = 512,
        lora_scale: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens (B, 2, width), pooled (B, 2 width) and text positions (2, 3), as Kontext's.

        Raises:
            ValueError: the model does not know the prompt.
        """
        if prompt_embeds is None or pooled_prompt_embeds is None:
            prompts = [prompt or ""] if not isinstance(prompt, list) else prompt
            prompt_embeds = self.instruction_encoder(prompts).repeat_interleave(num_images_per_prompt, 0)
            pooled_prompt_embeds = pooled(prompt_embeds)
        return prompt_embeds, pooled_prompt_embeds, prompt_embeds.new_zeros(prompt_embeds.shape[1], 3)


def load_edit_pipeline(weights: Path = WEIGHTS, *, device: str | torch.device = "cpu") -> TinyEditPipeline:
    """The pipeline with the shipped weights, in float32 and evaluation mode.

    Raises:
        UnsupportedModel: transformers is missing, without which diffusers has no Kontext pipeline.
    """
    if not is_transformers_available():
        raise UnsupportedModel(
            "the editing demo runs FluxKontextPipeline, which needs transformers: pip install transformers"
        )
    modules = load_weights({"transformer": new_transformer(), "instruction_encoder": InstructionEncoder()}, weights)
    return TinyEditPipeline(scheduler=new_scheduler(), vae=PixelVAE().eval(), **modules).to(device)
