"""Stable Diffusion 1.5 and XL with an IP-Adapter, and those of its offspring that read a picture by themselves."""

from __future__ import annotations

from typing import Any

import torch
from builders.ip_adapter import adapter
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    PaintByExamplePipeline,
    PNDMScheduler,
    StableDiffusionImageVariationPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.deprecated.paint_by_example import PaintByExampleImageEncoder
from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline  # without sentencepiece no other way in
from diffusers.pipelines.kolors.pipeline_kolors_img2img import KolorsImg2ImgPipeline
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
from transformers import BatchFeature, CLIPVisionConfig

from i2am_debug import ValidationPair

from .case import HEIGHT, WIDTH, PipelineCase, pair, quiet
from .pictures import ENCODER, autoencoder, clip_image_encoder, clip_image_processor
from .text import byte_tokenizer, clip_text_encoder, clip_tokenizer

TEXT = 12
SMALL = dict(height=HEIGHT, width=WIDTH)
KOLORS_TEXT = 10
XL_TEXT = (4, 8)
"""Channels of SDXL's two text encoders, together those of the UNet's cross-attention."""


def unet(in_channels: int = 4, **changes: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    settings = dict(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=TEXT,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return UNet2DConditionModel(**{**settings, **changes})


def noise_table() -> dict[str, Any]:
    """As all of them ship with it."""
    return dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def pndm() -> PNDMScheduler:
    return PNDMScheduler(**noise_table(), skip_prk_steps=True, steps_offset=1)


def euler() -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(**noise_table(), steps_offset=1, timestep_spacing="leading")


def paint_by_example() -> Any:
    torch.manual_seed(3)
    config = CLIPVisionConfig(
        hidden_size=ENCODER,
        intermediate_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=12,
        patch_size=4,
        projection_dim=TEXT,
    )
    return quiet(
        PaintByExamplePipeline(
            vae=autoencoder(),
            image_encoder=PaintByExampleImageEncoder(config, proj_size=TEXT),
            unet=unet(9),
            scheduler=pndm(),
            safety_checker=None,
            feature_extractor=clip_image_processor(),
            requires_safety_checker=False,
        )
    )


def image_variation() -> Any:
    return quiet(
        StableDiffusionImageVariationPipeline(
            vae=autoencoder(),
            image_encoder=clip_image_encoder(TEXT),
            unet=unet(),
            scheduler=pndm(),
            safety_checker=None,
            feature_extractor=clip_image_processor(),
            requires_safety_checker=False,
        )
    )


def load_ip_adapter(pipeline: Any, kind: str = "base") -> Any:
    torch.manual_seed(1)
    pipeline.load_ip_adapter(adapter(pipeline.unet, kind), subfolder="", weight_name="", low_cpu_mem_usage=False)
    pipeline.set_ip_adapter_scale(0.6)
    return quiet(pipeline)


def sd(pipeline: type, in_channels: int = 4, kind: str = "base", scheduler: Any = None, **changes: Any) -> Any:
    made = pipeline(
        vae=autoencoder(),
        text_encoder=clip_text_encoder(TEXT),
        tokenizer=clip_tokenizer(),
        unet=unet(in_channels, **changes),
        scheduler=scheduler or pndm(),
        safety_checker=None,
        feature_extractor=clip_image_processor(),
        image_encoder=clip_image_encoder(),
        requires_safety_checker=False,
    )
    return load_ip_adapter(made, kind)


def sdxl(pipeline: type, in_channels: int = 4, kind: str = "base") -> Any:
    first, second = XL_TEXT
    size_embedding = dict(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + second,
    )
    made = pipeline(
        vae=autoencoder(scaling_factor=0.13025),
        text_encoder=clip_text_encoder(first),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text_encoder(second, projection=second),
        tokenizer_2=clip_tokenizer(),
        unet=unet(in_channels, use_linear_projection=True, **size_embedding),
        scheduler=euler(),
        feature_extractor=clip_image_processor(),
        image_encoder=clip_image_encoder(),
    )
    return load_ip_adapter(made, kind)


class PositionedTokenizer:
    """In place of ChatGLMTokenizer, which needs sentencepiece: bytes, and where each stands."""

    def __init__(self) -> None:
        self.bytes = byte_tokenizer()

    def __call__(self, text: list[str], **settings: Any) -> BatchFeature:
        read = self.bytes(text, **settings)
        where = torch.arange(read["input_ids"].shape[1]).expand_as(read["input_ids"])
        return BatchFeature({**read, "position_ids": where})


def chatglm() -> ChatGLMModel:
    torch.manual_seed(16)
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=272,
        hidden_size=KOLORS_TEXT,
        ffn_hidden_size=16,
        kv_channels=8,
        num_attention_heads=2,
        multi_query_attention=True,
        multi_query_group_num=1,
        add_qkv_bias=True,
        original_rope=True,
        num_hidden_layers=2,
    )
    model = ChatGLMModel(config, empty_init=False)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.5)
    return model


def kolors(pipeline: type) -> Any:
    size_embedding = dict(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + KOLORS_TEXT,
        encoder_hid_dim=KOLORS_TEXT,
        encoder_hid_dim_type="text_proj",
    )
    made = pipeline(
        vae=autoencoder(scaling_factor=0.13025),
        text_encoder=chatglm(),
        tokenizer=PositionedTokenizer(),
        unet=unet(use_linear_projection=True, **size_embedding),
        scheduler=euler(),
        feature_extractor=clip_image_processor(),
        image_encoder=clip_image_encoder(),
    )
    return load_ip_adapter(made, "plus")


def encode_target(pipeline: Any, pair: ValidationPair) -> torch.Tensor:
    """(1, 4, height / 8, width / 8): the mean of the autoencoder's distribution."""
    width, height = pair.target.size
    pixels = pipeline.image_processor.preprocess(pair.target, height, width)
    return pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor


def adapted(pipeline: type, build: Any = sd, *, note: str = "", masked: bool = False, **how: Any) -> PipelineCase:
    """The pipeline class with an IP-Adapter: the first pair under guidance, as is the default, the second without."""
    plain = dict(strength=0.9) if "Img2Img" in pipeline.__name__ else SMALL  # by default few of three steps are left
    return PipelineCase(
        name=f"{pipeline.__name__}, IP-Adapter{note}",
        build=lambda: build(pipeline, **how),
        family="ip_adapter",
        pairs=lambda: [
            pair(0, reference=(48, 48), masked=masked, extra=plain),
            pair(1, reference=(48, 48), masked=masked, extra=dict(plain, guidance_scale=1.0)),
        ],
        encode=encode_target,
    )


CASES = [
    PipelineCase(
        name="PaintByExamplePipeline",
        build=paint_by_example,
        family="unet_cross_attention",
        pairs=lambda: [
            pair(0, reference=(48, 48), masked=True),
            pair(1, reference=(48, 48), masked=True, extra=dict(guidance_scale=1.0)),
        ],
        encode=encode_target,
    ),
    PipelineCase(
        name="StableDiffusionImageVariationPipeline",
        build=image_variation,
        family="unet_cross_attention",
        pairs=lambda: [
            pair(0, reference=(48, 48), extra=SMALL),
            pair(1, reference=(48, 48), extra=dict(SMALL, guidance_scale=1.0)),
        ],
        encode=encode_target,
    ),
    adapted(StableDiffusionPipeline),
    adapted(StableDiffusionPipeline, note=" full", kind="full"),
    adapted(
        StableDiffusionPipeline,
        note=", v-prediction",
        scheduler=DDIMScheduler(**noise_table(), prediction_type="v_prediction", clip_sample=False, steps_offset=1),
    ),
    adapted(StableDiffusionImg2ImgPipeline),
    adapted(StableDiffusionInpaintPipeline, masked=True),
    adapted(StableDiffusionInpaintPipeline, note=", 9 channels", masked=True, in_channels=9),
    adapted(StableDiffusionXLPipeline, sdxl),
    adapted(StableDiffusionXLImg2ImgPipeline, sdxl),
    adapted(StableDiffusionXLInpaintPipeline, sdxl, masked=True),
    adapted(StableDiffusionXLInpaintPipeline, sdxl, note=", 9 channels", masked=True, in_channels=9),
    adapted(KolorsPipeline, kolors),
    adapted(KolorsImg2ImgPipeline, kolors),
]
