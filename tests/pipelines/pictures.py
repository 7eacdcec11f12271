"""Tiny autoencoders and image encoders."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLQwenImage, AutoencoderKLWan
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

ENCODER = 10
"""Channels of the image encoders' tokens."""


def autoencoder(latent_channels: int = 4, levels: int = 4, **changes: Any) -> AutoencoderKL:
    """A picture of 8x8 pixels (with four levels) is one latent pixel."""
    torch.manual_seed(20)
    settings = dict(
        block_out_channels=(4,) * levels,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        layers_per_block=1,
        norm_num_groups=1,
        latent_channels=latent_channels,
        sample_size=32,
    )
    return certain(AutoencoderKL(**{**settings, **changes}), latent_channels)


def certain(vae: Any, latent_channels: int) -> Any:
    """Its distributions are as narrow as those of trained ones: a drawn latent is the mean to 2e-4."""
    last = vae.quant_conv if getattr(vae, "quant_conv", None) is not None else vae.encoder.conv_out
    with torch.no_grad():
        last.weight[latent_channels:] = 0
        last.bias[latent_channels:] = -17
    return vae


def flux_autoencoder(latent_channels: int = 4) -> AutoencoderKL:
    return autoencoder(
        latent_channels, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5
    )


def flux2_autoencoder() -> AutoencoderKLFlux2:
    torch.manual_seed(21)
    settings = dict(block_out_channels=(4,) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=1)
    vae = certain(AutoencoderKLFlux2(**settings), 4)
    vae.bn.running_mean.normal_(std=0.1)  # as after training: the latents' own mean and spread
    vae.bn.running_var.uniform_(0.5, 2)
    return vae


def video_autoencoder(kind: type = AutoencoderKLWan, levels: int = 4, **changes: Any) -> Any:
    """Of Wan, or of Qwen-Image; with more levels than four, fewer and larger latent pixels."""
    torch.manual_seed(22)
    settings = dict(
        base_dim=3,
        z_dim=16,
        dim_mult=[1] * levels,
        num_res_blocks=1,
        temperal_downsample=[False] + [True] * 2 + [False] * (levels - 4),
    )
    return certain(kind(**{**settings, **changes}), settings["z_dim"])


def qwen_autoencoder(levels: int = 4, **changes: Any) -> AutoencoderKLQwenImage:
    return video_autoencoder(AutoencoderKLQwenImage, levels, **changes)


def clip_image_encoder(
    projection: int | None = ENCODER, width: int = ENCODER, *, side: int = 12, patch: int = 4
) -> Any:
    """Sees pictures of `side` pixels in patches of `patch`; with a `projection`, also one vector of so many channels."""
    torch.manual_seed(23)
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=side,
        patch_size=patch,
        projection_dim=projection or width,
    )
    return (CLIPVisionModelWithProjection if projection else CLIPVisionModel)(config)


def clip_image_processor(side: int = 12) -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def siglip(width: int = ENCODER, side: int = 12) -> SiglipVisionModel:
    torch.manual_seed(24)
    config = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=side,
        patch_size=4,
    )
    return SiglipVisionModel(config)


def siglip_processor(side: int = 12) -> SiglipImageProcessor:
    return SiglipImageProcessor(size={"height": side, "width": side})
