"""Flux 2 and its Klein models."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinInpaintPipeline,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)

from i2am_debug import ValidationPair
from i2am_debug.families.flux2 import Flux2

from .case import HEIGHT, WIDTH, PipelineCase, pair, quiet
from .pictures import flux2_autoencoder
from .text import byte_tokenizer, mistral3, qwen3

TEXT = 4
"""Channels of one layer's tokens; the transformer reads those of three layers together."""
SHORT = dict(max_sequence_length=32)
SMALL = dict(SHORT, height=HEIGHT, width=WIDTH)


def flux2(kind: type, **settings: Any) -> Any:
    own = dict(text_encoder=qwen3(TEXT), tokenizer=byte_tokenizer())
    if kind is Flux2Pipeline:
        own = dict(text_encoder=mistral3(TEXT), tokenizer=byte_tokenizer())
    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * TEXT,
        timestep_guidance_channels=8,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=kind is Flux2Pipeline,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    return quiet(kind(scheduler=scheduler, vae=flux2_autoencoder(), transformer=transformer, **own, **settings))


def encode_target(pipeline: Any, pair: ValidationPair) -> torch.Tensor:
    """(1, tokens, channels)."""
    width, height = pair.target.size
    pixels = pipeline.image_processor.preprocess(pair.target, height=height, width=width, resize_mode="crop")
    encoded = pipeline._encode_vae_image(pixels, torch.Generator().manual_seed(0))
    return pipeline._pack_latents(encoded)


CASES = [
    PipelineCase(
        name="Flux2KleinPipeline",
        build=lambda: flux2(Flux2KleinPipeline),
        family="flux2",
        pairs=lambda: [
            pair(0, extra=SHORT),
            pair(1, reference=(80, 64), extra=SMALL),
            pair(2, further=1, extra=dict(SMALL, guidance_scale=1.0)),
        ],
        encode=encode_target,
    ),
    PipelineCase(
        name="Flux2KleinPipeline, distilled",
        build=lambda: flux2(Flux2KleinPipeline, is_distilled=True),
        family="flux2",
        pairs=lambda: [pair(n, extra=SHORT) for n in range(2)],
        encode=encode_target,
    ),
    PipelineCase(
        name="Flux2Pipeline",
        build=lambda: flux2(Flux2Pipeline),
        family="flux2",
        pairs=lambda: [pair(0, extra=SHORT), pair(1, further=1, reference=(80, 64), extra=SMALL)],
        encode=encode_target,
    ),
    PipelineCase(
        name="Flux2KleinKVPipeline",
        build=lambda: flux2(Flux2KleinKVPipeline),
        family="flux2",
        pairs=lambda: [pair(0, extra=SHORT), pair(1, further=1, reference=(80, 64), extra=SMALL)],
        encode=encode_target,
    ),
    PipelineCase(
        name="Flux2KleinInpaintPipeline",
        build=lambda: flux2(Flux2KleinInpaintPipeline),
        family="flux2",
        asked_for=Flux2(order=(20, 10)),
        pairs=lambda: [pair(0, masked=True, extra=SHORT), pair(1, masked=True, reference=(80, 64), extra=SMALL)],
        encode=encode_target,
    ),
]
