"""The decoders of Kandinsky 2.1 and 2.2 and of UnCLIP, which read a picture's embedding."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    KandinskyPipeline,
    KandinskyV22Img2ImgPipeline,
    KandinskyV22InpaintPipeline,
    KandinskyV22Pipeline,
    UnCLIPImageVariationPipeline,
    UnCLIPScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
from transformers import XLMRobertaTokenizer

from i2am_debug import ValidationPair

from .case import STEPS, PipelineCase, pair, quiet
from .pictures import ENCODER, clip_image_encoder, clip_image_processor
from .text import LETTERS, clip_text_encoder, clip_tokenizer

WIDTH, HEIGHT = 128, 64  # they make multiples of 64
CROSS = 12


def decoder(**changes: Any) -> UNet2DConditionModel:
    """As the decoders' own configurations: no attention at full size, resnets that sample down, a learned variance."""
    torch.manual_seed(0)
    settings = dict(
        sample_size=None,
        in_channels=4,
        out_channels=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        cross_attention_dim=CROSS,
        attention_head_dim=4,
        norm_num_groups=4,
        resnet_time_scale_shift="scale_shift",
    )
    return UNet2DConditionModel(**{**settings, **changes})


def movq() -> VQModel:
    """A picture of 8x8 pixels is one latent pixel, as in theirs."""
    torch.manual_seed(25)
    return VQModel(
        block_out_channels=(32,) * 4,  # of which spatial norms make 32 groups
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=1,
        latent_channels=4,
        vq_embed_dim=4,
        num_vq_embeddings=16,
        norm_num_groups=1,
        norm_type="spatial",
    )


def ddpm() -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        thresholding=True,
        sample_max_value=2.0,
        variance_type="learned_range",
    )


def kandinsky22(pipeline: type) -> Any:
    kind = dict(encoder_hid_dim=ENCODER, encoder_hid_dim_type="image_proj", addition_embed_type="image")
    in_channels = 9 if pipeline is KandinskyV22InpaintPipeline else 4
    return quiet(pipeline(unet=decoder(in_channels=in_channels, **kind), scheduler=ddpm(), movq=movq()))


def kandinsky21() -> Any:
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in LETTERS] + [(f"▁{letter}", -3.5) for letter in LETTERS]
    torch.manual_seed(15)
    config = MCLIPConfig(
        transformerDimSize=ENCODER,
        imageDimSize=CROSS,
        vocab_size=64,
        hidden_size=ENCODER,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
    )
    kind = dict(encoder_hid_dim=ENCODER, encoder_hid_dim_type="text_image_proj", addition_embed_type="text_image")
    return quiet(
        KandinskyPipeline(
            text_encoder=MultilingualCLIP(config),
            tokenizer=XLMRobertaTokenizer(vocab=pieces),
            unet=decoder(**kind),
            scheduler=DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                clip_sample=False,
                thresholding=True,
                sample_max_value=2.0,
                steps_offset=1,
                set_alpha_to_one=False,
            ),
            movq=movq(),
        )
    )


def with_embeddings(width: int) -> Any:
    """As users do it: the picture's embedding, and that of nothing, instead of what a prior makes of the prompt."""
    eyes, processor = clip_image_encoder(width).eval(), clip_image_processor()

    def embedding(picture: Any) -> torch.Tensor:
        with torch.no_grad():
            return eyes(processor(picture, return_tensors="pt").pixel_values).image_embeds

    def call(pipeline: Any, pair: ValidationPair, generator: torch.Generator) -> Any:
        seen = embedding(pair.reference)
        width, height = pair.target.size
        embeds = dict(image_embeds=seen, negative_image_embeds=torch.zeros_like(seen))
        arguments = dict(**embeds, height=height, width=width, **pair.extra)
        if isinstance(pipeline, KandinskyPipeline):
            arguments["prompt"] = pair.prompt
        if isinstance(pipeline, KandinskyV22Img2ImgPipeline | KandinskyV22InpaintPipeline):
            arguments["image"] = pair.target
        if isinstance(pipeline, KandinskyV22Img2ImgPipeline):
            arguments["strength"] = 1.0
        if pair.mask is not None:
            arguments["mask_image"] = pair.mask_image
        return pipeline(**arguments, num_inference_steps=STEPS, generator=generator)

    return call


def unclip() -> Any:
    """Pixels, not latents: the decoder's, then those of two models that enlarge the picture."""
    torch.manual_seed(4)
    text_proj = UnCLIPTextProjModel(
        clip_embeddings_dim=ENCODER, time_embed_dim=32, cross_attention_dim=CROSS, clip_extra_context_tokens=4
    )
    enlarging = dict(
        sample_size=32,
        in_channels=6,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D",) * 2,
        up_block_types=("ResnetUpsampleBlock2D",) * 2,
        norm_num_groups=4,
    )
    return quiet(
        UnCLIPImageVariationPipeline(
            decoder=decoder(sample_size=16, in_channels=3, out_channels=6, class_embed_type="identity"),
            text_encoder=clip_text_encoder(ENCODER, projection=ENCODER),
            tokenizer=clip_tokenizer(),
            text_proj=text_proj,
            feature_extractor=clip_image_processor(),
            image_encoder=clip_image_encoder(ENCODER),
            super_res_first=UNet2DModel(**enlarging),
            super_res_last=UNet2DModel(**enlarging),
            decoder_scheduler=UnCLIPScheduler(variance_type="learned_range"),
            super_res_scheduler=UnCLIPScheduler(variance_type="fixed_small_log"),
        )
    )


def encode_target(pipeline: Any, pair: ValidationPair) -> torch.Tensor:
    """(1, 4, height / 8, width / 8); neither scaled nor quantised."""
    return pipeline.movq.encode(VaeImageProcessor().preprocess(pair.target)).latents


def encode_small(pipeline: Any, pair: ValidationPair) -> torch.Tensor:
    """(1, 3, side, side): what the decoder makes is the picture itself, in [-1, 1]."""
    side = pipeline.decoder.config.sample_size
    return VaeImageProcessor().preprocess(pair.target, side, side)


def guided_and_not(**changes: Any) -> list[ValidationPair]:
    own = dict(reference=(48, 48), **changes)
    return [pair(0, **own), pair(1, extra=dict(guidance_scale=1.0), **own)]


def kandinsky(
    pipeline: type,
    build: Any = None,
    *,
    width: int = ENCODER,
    masked: bool = False,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> PipelineCase:
    return PipelineCase(
        name=pipeline.__name__,
        build=build or (lambda: kandinsky22(pipeline)),
        family="added_key_value",
        call=lambda: with_embeddings(width),
        pairs=lambda: guided_and_not(masked=masked, size=size),
        size=size,
        encode=encode_target,
    )


CASES = [
    kandinsky(KandinskyV22Pipeline),
    kandinsky(KandinskyV22Img2ImgPipeline, size=(64, 64)),  # it takes the width for the height
    kandinsky(KandinskyV22InpaintPipeline, masked=True),
    kandinsky(KandinskyPipeline, kandinsky21, width=CROSS),
    PipelineCase(
        name="UnCLIPImageVariationPipeline",
        build=unclip,
        family="added_key_value",
        pairs=lambda: [
            pair(n, extra=dict(decoder_num_inference_steps=STEPS, super_res_num_inference_steps=2)) for n in range(2)
        ],
        size=(32, 32),
        encode=encode_small,
        falls_back="UnCLIPImageVariationPipeline has no vae; say how a target becomes its latents with encode=",
    ),
]
