"""Image to video: Wan 2.1, SkyReels V2, and ChronoEdit, which edits a picture as a short video."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from diffusers import (
    ChronoEditPipeline,
    ChronoEditTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    SkyReelsV2ImageToVideoPipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.chronoedit import pipeline_chronoedit
from diffusers.pipelines.skyreels_v2 import pipeline_skyreels_v2_i2v
from diffusers.pipelines.wan import pipeline_wan_i2v
from transformers import UMT5Config, UMT5EncoderModel

from i2am_debug import ValidationPair

from .case import HEIGHT, WIDTH, PipelineCase, pair, picture, quiet
from .pictures import ENCODER, clip_image_encoder, clip_image_processor, video_autoencoder
from .text import t5_text_encoder, t5_tokenizer

TEXT = 12
SMALL = dict(height=HEIGHT, width=WIDTH, num_frames=9)
EDIT = dict(SMALL, num_frames=5)


@contextmanager
def without_ftfy() -> Iterator[None]:
    """They clean their prompts with ftfy, which is not among what the tests install: letters are clean."""
    as_it_is = SimpleNamespace(fix_text=lambda text: text)
    with ExitStack() as stack:
        for module in (pipeline_wan_i2v, pipeline_skyreels_v2_i2v, pipeline_chronoedit):
            stack.enter_context(patch.object(module, "ftfy", as_it_is, create=True))
        yield


def transformer(kind: type, **changes: Any) -> Any:
    torch.manual_seed(0)
    settings = dict(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16 + 4 + 16,
        out_channels=16,
        text_dim=TEXT,
        freq_dim=8,
        ffn_dim=16,
        num_layers=2,
        image_dim=ENCODER,
        added_kv_proj_dim=24,
        rope_max_seq_len=32,
    )
    return kind(**{**settings, **changes})


def video(pipeline: type, model: type, scheduler: Any, **changes: Any) -> Any:
    """The image encoder's picture is 56 pixels in patches of 14, so a grid of 4x4 after the class token."""
    return quiet(
        pipeline(
            tokenizer=t5_tokenizer(),
            text_encoder=t5_text_encoder(TEXT, UMT5EncoderModel, UMT5Config),
            vae=video_autoencoder(),
            scheduler=scheduler,
            image_processor=clip_image_processor(56),
            image_encoder=clip_image_encoder(None, side=56, patch=14),
            transformer=transformer(model, **changes),
        )
    )


def unipc(shift: float) -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, num_train_timesteps=1000
    )


def encode_video(pipeline: Any, pair: ValidationPair) -> torch.Tensor:
    """(1, 16, latent frames, height / 8, width / 8): first the reference, then the target; normalised as the pipelines do."""
    config = pipeline.vae.config
    first, then = (
        pipeline.video_processor.preprocess(p, height=HEIGHT, width=WIDTH) for p in (pair.reference, pair.target)
    )
    pixels = torch.stack([first, *[then] * (pair.extra["num_frames"] - 1)], dim=2)
    mean, spread = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (config.latents_mean, config.latents_std))
    return (pipeline.vae.encode(pixels).latent_dist.mode() - mean) * (1 / spread)


CASES = [
    PipelineCase(
        name="WanImageToVideoPipeline",
        build=lambda: video(WanImageToVideoPipeline, WanTransformer3DModel, unipc(3.0)),
        family="wan_image_to_video",
        around=without_ftfy,
        encode=encode_video,
        tolerance=1e-5,  # they multiply by 1 / spread
        pairs=lambda: [
            pair(0, extra=SMALL),
            pair(1, extra=dict(SMALL, guidance_scale=1.0)),
        ],
    ),
    PipelineCase(
        name="WanImageToVideoPipeline, first and last frame",
        build=lambda: video(WanImageToVideoPipeline, WanTransformer3DModel, unipc(16.0), pos_embed_seq_len=2 * 17),
        family="wan_image_to_video",
        around=without_ftfy,
        encode=encode_video,
        tolerance=1e-5,  # they multiply by 1 / spread
        pairs=lambda: [pair(n, extra=dict(SMALL, last_image=picture(5))) for n in range(2)],
    ),
    PipelineCase(
        name="SkyReelsV2ImageToVideoPipeline",
        build=lambda: video(SkyReelsV2ImageToVideoPipeline, SkyReelsV2Transformer3DModel, unipc(5.0)),
        family="wan_image_to_video",
        around=without_ftfy,
        encode=encode_video,
        tolerance=1e-5,  # they multiply by 1 / spread
        pairs=lambda: [pair(0, extra=SMALL), pair(1, extra=dict(SMALL, guidance_scale=1.0))],
    ),
    PipelineCase(
        name="ChronoEditPipeline",
        build=lambda: video(
            ChronoEditPipeline, ChronoEditTransformer3DModel, FlowMatchEulerDiscreteScheduler(shift=5.0)
        ),
        family="wan_image_to_video",
        around=without_ftfy,
        encode=encode_video,
        tolerance=1e-5,  # they multiply by 1 / spread
        pairs=lambda: [pair(0, extra=EDIT), pair(1, extra=dict(EDIT, guidance_scale=1.0))],
    ),
]
