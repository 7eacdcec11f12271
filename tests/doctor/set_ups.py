"""Set-ups as users name them, MODULE:FACTORY: broken ones, and each with its cure followed."""

from __future__ import annotations

from typing import Any

import torch
from builders.ip_adapter import adapter
from diffusers import (
    StableDiffusionImageVariationPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
)
from diffusers.models.attention_processor import IPAdapterAttnProcessor
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from pipelines.case import quiet
from pipelines.pictures import autoencoder, clip_image_encoder, clip_image_processor
from pipelines.stable_diffusion import TEXT, image_variation, pndm, unet
from pipelines.text import clip_text_encoder, clip_tokenizer

from i2am_debug import CapturePlan
from i2am_debug.demo.edit.pipeline import load_edit_pipeline


def with_adapter(pipeline: Any) -> Any:
    torch.manual_seed(1)
    pipeline.load_ip_adapter(adapter(pipeline.unet, "full"), subfolder="", weight_name="", low_cpu_mem_usage=False)
    return quiet(pipeline)


def stable_diffusion(kind: type, in_channels: int = 4, **changes: Any) -> Any:
    own = dict(image_encoder=clip_image_encoder(), safety_checker=None, requires_safety_checker=False)
    own |= dict(feature_extractor=clip_image_processor(), text_encoder=clip_text_encoder(TEXT))
    return quiet(kind(**{**own, **changes}, **parts(in_channels)))


def parts(in_channels: int) -> dict[str, Any]:
    return dict(vae=autoencoder(), tokenizer=clip_tokenizer(), unet=unet(in_channels), scheduler=pndm())


def no_adapter() -> Any:
    return stable_diffusion(StableDiffusionPipeline)


def no_adapter_cured() -> Any:
    return with_adapter(no_adapter())


def channel_concatenation() -> Any:
    return stable_diffusion(StableDiffusionInpaintPipeline, in_channels=9)


def channel_concatenation_cured() -> Any:
    return with_adapter(channel_concatenation())


def nothing_but_channels() -> Any:
    """No adapter can be loaded into it."""
    own = dict(low_res_scheduler=pndm(), text_encoder=clip_text_encoder(TEXT))
    return quiet(StableDiffusionUpscalePipeline(**own, **parts(7)))


def one_token() -> Any:
    return image_variation()


class ReadsPatches(StableDiffusionImageVariationPipeline):
    """Its cross-attention reads the image encoder's patch tokens."""

    def _encode_image(self, image: Any, device: Any, images: int, guided: bool) -> torch.Tensor:
        pixels = self.feature_extractor(images=image, return_tensors="pt").pixel_values
        tokens = self.image_encoder(pixels).last_hidden_state
        return torch.cat([torch.zeros_like(tokens), tokens]) if guided else tokens


def one_token_cured() -> Any:
    return quiet(
        ReadsPatches(
            **(image_variation().components | dict(image_encoder=clip_image_encoder(TEXT, TEXT))),
            requires_safety_checker=False,
        )
    )


class Materialising(FluxAttnProcessor):
    """Attends by code of its own, as flash attention's does."""

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return (
            hidden_states
            if kwargs.get("encoder_hidden_states") is None
            else (hidden_states, *args[:0], kwargs["encoder_hidden_states"])
        )


def custom_attention() -> Any:
    pipeline = quiet(load_edit_pipeline())
    pipeline.transformer.single_transformer_blocks[1].attn.set_processor(Materialising())
    return pipeline


def custom_attention_cured() -> Any:
    pipeline = custom_attention()
    pipeline.transformer.single_transformer_blocks[1].attn.set_processor(FluxAttnProcessor())
    return pipeline


def custom_attention_left_out() -> dict[str, Any]:
    return {"pipeline": custom_attention, "plan": CapturePlan(exclude=("single_transformer_blocks.1",))}


def custom_adapter() -> Any:
    """The adapter's older processor, by matrix products."""
    pipeline = no_adapter_cured()
    for name, module in pipeline.unet.named_modules():
        if name.endswith("attn2"):
            new = IPAdapterAttnProcessor(module.to_q.out_features, TEXT, num_tokens=module.processor.num_tokens)
            new.load_state_dict(module.processor.state_dict())
            module.set_processor(new)
    return pipeline


# -- Mistakes ----------------------------------------------------------------------------------------------------------


def needs_an_argument(folder: str) -> Any:
    return folder


def raises() -> Any:
    raise RuntimeError("no weights there\nsecond line")


def gives_a_number() -> int:
    return 3


def gives_an_unknown_setting() -> dict[str, Any]:
    return {"pipeline": no_adapter, "sampler": 3, "every_n_steps": 5}


def gives_no_pipeline() -> dict[str, Any]:
    return {"pipeline": None}


def fails_when_called() -> Any:
    pipeline = load_edit_pipeline()
    pipeline.vae = None
    return pipeline


A_NUMBER = 3


class OfItsOwn:
    """A pipeline that nobody knows."""

    def __init__(self, denoiser: torch.nn.Module) -> None:
        self.unet = denoiser

    def __call__(self, picture: Any) -> Any:
        return picture


def unknown_family() -> Any:
    return OfItsOwn(torch.nn.Linear(2, 2))


def unknown_call() -> Any:
    return OfItsOwn(no_adapter_cured().unet)


def unknown_call_cured() -> dict[str, Any]:
    """Its call is said; the pictures are made by somebody else."""
    pipeline = no_adapter_cured()
    made = OfItsOwn(pipeline.unet)

    def call(own: OfItsOwn, pair: Any, generator: torch.Generator) -> Any:
        return pipeline(
            pair.prompt,
            ip_adapter_image=pair.reference,
            height=32,
            width=32,
            generator=generator,
            num_inference_steps=2,
        )

    return {"pipeline": made, "call": call, "way": "sampling"}
