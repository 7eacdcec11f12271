"""Editing pipelines of LongCat, Bria, OmniGen and DreamLite; Stable Diffusion 3 with an IP-Adapter; the demo's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    AutoencoderTiny,
    BriaFiboEditPipeline,
    BriaFiboTransformer2DModel,
    DreamLiteMobilePipeline,
    DreamLitePipeline,
    DreamLiteUNetModel,
    FlowMatchEulerDiscreteScheduler,
    LongCatImageEditPipeline,
    LongCatImageTransformer2DModel,
    OmniGenPipeline,
    OmniGenTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterTimeImageProjection
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit
from diffusers.pipelines.omnigen import pipeline_omnigen, processor_omnigen
from PIL import Image
from transformers import SmolLM3Config, SmolLM3ForCausalLM

from i2am_debug import ValidationPair
from i2am_debug.demo.edit.pairs import PROMPTS
from i2am_debug.demo.edit.pipeline import load_edit_pipeline
from i2am_debug.demo.inpainting.model import to_cells
from i2am_debug.demo.inpainting.pipeline import load_tiny_pipeline
from i2am_debug.demo.super_resolution.pipeline import load_super_resolution_pipeline

from .case import HEIGHT, STEPS, WIDTH, PipelineCase, pair, quiet
from .flux import shifting_scheduler
from .pictures import autoencoder, flux_autoencoder, siglip, siglip_processor
from .qwen_image import smaller
from .text import byte_tokenizer, clip_text_encoder, clip_tokenizer, t5_text_encoder, t5_tokenizer
from .vision_language import SeesAndReads, qwen2_5_vl, qwen3_vl

TEXT = 12
SMALL = dict(height=HEIGHT, width=WIDTH)


# -- LongCat -----------------------------------------------------------------------------------------------------------


@contextmanager
def small_longcat() -> Iterator[None]:
    """It brings every picture to a megapixel; here to a 64th of that."""
    module = pipeline_longcat_image_edit
    with patch.object(module, "calculate_dimensions", smaller(module.calculate_dimensions)):
        yield


def longcat() -> Any:
    own = dict(text_encoder=qwen2_5_vl(TEXT), tokenizer=byte_tokenizer(), text_processor=SeesAndReads(byte_tokenizer()))
    torch.manual_seed(0)
    transformer = LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        pooled_projection_dim=TEXT,
        axes_dims_rope=(4, 6, 6),
    )
    return quiet(
        LongCatImageEditPipeline(
            scheduler=shifting_scheduler(), vae=flux_autoencoder(16), transformer=transformer, **own
        )
    )


def encode_longcat(pipeline: Any, pair: ValidationPair) -> torch.Tensor:
    pixels = pipeline.image_processor.resize(pair.target, 128, 128)
    pixels = pipeline.image_processor.preprocess(pixels, 128, 128)
    encoded = pipeline._encode_vae_image(pixels, torch.Generator().manual_seed(0))
    return pipeline._pack_latents(encoded, *encoded.shape)


# -- Bria --------------------------------------------------------------------------------------------------------------


def bria() -> Any:
    """Its pictures are to be a JSON prompt's; the empty prompt is a token far beyond bytes."""
    torch.manual_seed(16)
    text = SmolLM3Config(
        vocab_size=128001,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    text_encoder = SmolLM3ForCausalLM(text)
    torch.manual_seed(0)
    transformer = BriaFiboTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        text_encoder_dim=8,
        axes_dims_rope=[4, 6, 6],
    )
    vae = AutoencoderKLWan(
        base_dim=3, dim_mult=[1] * 4, num_res_blocks=1, in_channels=12, out_channels=12, patch_size=2
    )
    return quiet(
        BriaFiboEditPipeline(
            transformer=transformer,
            scheduler=shifting_scheduler(),
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=byte_tokenizer(),
        )
    )


def encode_bria(pipeline: Any, pair: ValidationPair) -> torch.Tensor:
    """(1, tokens, channels): as it encodes its references."""
    how = dict(dtype=torch.float32, device=torch.device("cpu"))
    return pipeline.prepare_reference_latents(pair.target, pipeline.transformer.config.in_channels, **how)[0]


# -- OmniGen -----------------------------------------------------------------------------------------------------------


def picture_transform(steps: list[Any]) -> Any:
    """What torchvision's `Compose` of the pipeline's three steps does: crop, to (3, H, W), to [-1, 1]."""
    crop = steps[0]

    def transform(picture: Image.Image) -> torch.Tensor:
        pixels = torch.from_numpy(np.asarray(crop(picture), np.float32).transpose(2, 0, 1) / 255)
        return (pixels - 0.5) / 0.5

    return transform


@contextmanager
def without_torchvision() -> Iterator[None]:
    stand_in = SimpleNamespace(
        Compose=picture_transform, Lambda=lambda step: step, ToTensor=lambda: None, Normalize=lambda **_: None
    )
    processor = processor_omnigen.OmniGenMultiModalProcessor
    with (
        patch.object(processor_omnigen, "transforms", stand_in, create=True),
        patch.object(pipeline_omnigen, "OmniGenMultiModalProcessor", processor, create=True),
    ):
        yield


def omnigen() -> Any:
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    transformer = OmniGenTransformer2DModel(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=32,
        num_layers=2,
        pad_token_id=tokenizer.pad_token_id,
        vocab_size=len(tokenizer),
        rope_scaling={"short_factor": [1.0] * 4, "long_factor": [1.0] * 4},
        pos_embed_max_size=16,
        time_step_dim=16,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1)
    return quiet(OmniGenPipeline(transformer=transformer, scheduler=scheduler, vae=autoencoder(), tokenizer=tokenizer))


def with_input_images() -> Any:
    """The prompt names the pictures that it speaks of; these are encoded with noise that no generator can be given for."""

    def call(pipeline: Any, pair: ValidationPair, generator: torch.Generator) -> Any:
        pictures = [pair.reference, *pair.further_references]
        names = "".join(f"<img><|image_{number}|></img>" for number in range(1, 1 + len(pictures)))
        with torch.random.fork_rng([]):
            torch.manual_seed(generator.initial_seed())
            return pipeline(
                f"{pair.prompt} {names}",
                input_images=pictures,
                **pair.extra,
                num_inference_steps=STEPS,
                generator=generator,
            )

    return call


def encode_latents(pipeline: Any, pair: ValidationPair) -> torch.Tensor:
    """(1, 4, height / 8, width / 8): the mean of the autoencoder's distribution."""
    width, height = pair.target.size
    config = pipeline.vae.config
    encoded = pipeline.vae.encode(pipeline.image_processor.preprocess(pair.target, height, width)).latent_dist.mode()
    return (encoded - (config.shift_factor or 0)) * config.scaling_factor


# -- DreamLite ---------------------------------------------------------------------------------------------------------


def dreamlite(kind: type) -> Any:
    own = dict(text_encoder=qwen3_vl(TEXT), tokenizer=byte_tokenizer(), processor=SeesAndReads(byte_tokenizer(), 16))
    torch.manual_seed(0)
    unet = DreamLiteUNetModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
        up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteCrossAttnNoSelfAttnUpBlock2D"),
        cross_attention_dim=TEXT,
        attention_head_dim=(2, 4),
        norm_num_groups=4,
        use_linear_projection=True,
        ff_mult=2,
    )
    vae = AutoencoderTiny(
        encoder_block_out_channels=(4,) * 4,
        decoder_block_out_channels=(4,) * 4,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
    )
    return quiet(kind(vae=vae, unet=unet, scheduler=shifting_scheduler(), **own))


def encode_dreamlite(pipeline: Any, pair: ValidationPair) -> torch.Tensor:
    """(1, 4, height / 8, width / 8): as it encodes its reference."""
    pixels = pipeline.image_processor.preprocess(pair.target, height=HEIGHT, width=WIDTH)
    return pipeline.prepare_image_latents(pixels, dtype=torch.float32, device=torch.device("cpu"))


# -- Stable Diffusion 3 ------------------------------------------------------------------------------------------------


def stable_diffusion_3() -> Any:
    clip, other, joint = 4, 6, 12
    texts = dict(
        text_encoder=clip_text_encoder(clip, projection=clip),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text_encoder(other, projection=other),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_text_encoder(joint),
        tokenizer_3=t5_tokenizer(),
    )
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=joint,
        caption_projection_dim=32,
        pooled_projection_dim=clip + other,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),  # as 3.5 medium has them
        qk_norm="rms_norm",
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=flux_autoencoder(),
        image_encoder=siglip(),
        feature_extractor=siglip_processor(),
        **texts,
    )
    torch.manual_seed(1)
    adapter = {}
    for i, _ in enumerate(transformer.attn_processors):
        fresh = SD3IPAdapterJointAttnProcessor2_0(32, 32, head_dim=8, timesteps_emb_dim=64)
        adapter |= {f"{i}.{name}": value for name, value in fresh.state_dict().items()}
    resampler = IPAdapterTimeImageProjection(
        embed_dim=siglip().config.hidden_size, output_dim=32, hidden_dim=64, heads=1, num_queries=5, timestep_in_dim=16
    )
    pipeline.load_ip_adapter({"ip_adapter": adapter, "image_proj": resampler.state_dict()}, weight_name="")
    pipeline.set_ip_adapter_scale(0.6)
    return quiet(pipeline)


# -- The demo's own ----------------------------------------------------------------------------------------------------


def encode_tiny(pipeline: Any, pair: ValidationPair) -> torch.Tensor:
    """(1, 12, 16, 16): pixels in [-1, 1], those of a square of 2x2 as channels."""
    pixels, _, _ = pipeline.prepare(pair.target, pair.mask_image, pair.reference)
    return to_cells(pixels)


def encode_tiny_edit(pipeline: Any, pair: ValidationPair) -> torch.Tensor:
    """(1, tokens, channels)."""
    pixels = pipeline.image_processor.preprocess(pair.target, 32, 32)
    encoded = pipeline._encode_vae_image(pixels, torch.Generator().manual_seed(0))
    return pipeline._pack_latents(encoded, *encoded.shape)


def encode_tiny_super_resolution(pipeline: Any, pair: ValidationPair) -> torch.Tensor:
    """(1, 12, 16, 16): pixels in [-1, 1], those of a square of 2x2 as channels."""
    return to_cells(pipeline.image_processor.preprocess(pair.target))


def square(number: int, **changes: Any) -> ValidationPair:
    return pair(number, size=(96, 96), **changes)


CASES = [
    PipelineCase(
        name="LongCatImageEditPipeline",
        build=longcat,
        family="longcat_edit",
        pairs=lambda: [square(0), square(1, extra=dict(guidance_scale=1.0))],
        around=small_longcat,
        size=(128, 128),
        encode=encode_longcat,
    ),
    PipelineCase(
        name="BriaFiboEditPipeline",
        build=bria,
        family="bria_fibo_edit",
        pairs=lambda: [
            pair(0, prompt='{"edit_instruction": "a red cat"}', extra=dict(SMALL, _auto_resize=False)),
            pair(
                1,
                prompt='{"edit_instruction": "a red cat"}',
                extra=dict(SMALL, _auto_resize=False, guidance_scale=1.0),
            ),
        ],
        encode=encode_bria,
    ),
    PipelineCase(
        name="OmniGenPipeline",
        build=omnigen,
        family="omnigen",
        call=with_input_images,
        around=without_torchvision,
        pairs=lambda: [pair(0, extra=SMALL), pair(1, further=1, extra=SMALL)],
        encode=encode_latents,
    ),
    *(
        PipelineCase(
            name=kind.__name__,
            build=lambda kind=kind: dreamlite(kind),
            family="spatial_concatenation",
            pairs=lambda: [pair(n, extra=SMALL) for n in range(2)],
            encode=encode_dreamlite,
        )
        for kind in (DreamLitePipeline, DreamLiteMobilePipeline)
    ),
    PipelineCase(
        name="StableDiffusion3Pipeline, IP-Adapter",
        build=stable_diffusion_3,
        family="sd3_ip_adapter",
        pairs=lambda: [
            pair(0, reference=(48, 48), extra=dict(SMALL, max_sequence_length=16)),
            pair(1, reference=(48, 48), extra=dict(SMALL, max_sequence_length=16, guidance_scale=1.0)),
        ],
        encode=encode_latents,
    ),
    PipelineCase(
        name="TinyExamplePipeline",
        build=lambda: quiet(load_tiny_pipeline()),
        family="unet_cross_attention",
        pairs=lambda: [pair(n, size=(32, 32), masked=True, prompt=None) for n in range(2)],
        size=(32, 32),
        encode=encode_tiny,
    ),
    PipelineCase(
        name="TinyEditPipeline",
        build=lambda: quiet(load_edit_pipeline()),
        family="flux_kontext",
        pairs=lambda: [pair(n, size=(32, 32), prompt=PROMPTS[n]) for n in range(2)],
        size=(32, 32),
        encode=encode_tiny_edit,
    ),
    PipelineCase(
        name="TinySuperResolutionPipeline",
        build=lambda: quiet(load_super_resolution_pipeline()),
        family="unet_cross_attention",
        pairs=lambda: [pair(n, size=(32, 32), reference=(16, 16), prompt=None) for n in range(2)],
        size=(32, 32),
        encode=encode_tiny_super_resolution,
    ),
]
