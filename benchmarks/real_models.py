"""Denoisers as large as published ones, on the meta device: their shapes are real, they hold no weights and compute nothing.

Each configuration is that of the published repository named beside it; what it leaves to the class's defaults is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
)
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import (
    IPAdapterFullImageProjection,
    IPAdapterPlusImageProjection,
    MultiIPAdapterImageProjection,
)
from torch import nn

from i2am_debug.families.family import Family
from i2am_debug.families.flux2 import Flux2
from i2am_debug.families.flux_kontext import FluxKontext
from i2am_debug.families.ip_adapter import IPAdapter
from i2am_debug.families.qwen_image_edit import QwenImageEdit
from i2am_debug.families.wan_image_to_video import WanImageToVideo

DTYPE = torch.bfloat16
_CLIP_H = 1280  # channels of the image encoder that these IP-Adapters and Wan read
_TEXT = 512  # tokens of a prompt, as the pipelines of the transformers fill it up


@dataclass(frozen=True, kw_only=True)
class RealModel:
    """One published model, and one forward of it as its pipeline calls it, for one picture without guidance."""

    name: str
    source: str
    """Where the configuration is published."""
    shows: str
    """What is generated from what."""
    family: Family
    build: Callable[[], nn.Module]
    arguments: Callable[[], dict[str, Any]]


def forwarded(denoiser: nn.Module) -> nn.Module:
    """The denoiser with its noise time given as a number, which the meta device could not tell."""
    return _Timed(denoiser)


class _Timed(nn.Module):
    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    @property
    def config(self) -> Any:
        return self.denoiser.config

    def forward(self, timestep: float, **kwargs: Any) -> Any:
        return self.denoiser(timestep=torch.full((1,), timestep, device="meta", dtype=DTYPE), **kwargs)


def _meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta", dtype=DTYPE)


def _on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make().to(DTYPE).eval().requires_grad_(False)


# -- UNets with an IP-Adapter --------------------------------------------------------------------------------------------


def _with_ip_adapter(unet: UNet2DConditionModel, projection: nn.Module, tokens: int) -> UNet2DConditionModel:
    """As `load_ip_adapter` leaves it, which wants weights to read."""
    width = unet.config.cross_attention_dim
    processors = {}
    for name, own in unet.attn_processors.items():
        module = unet.get_submodule(name.removesuffix(".processor"))
        branch = IPAdapterAttnProcessor2_0(module.inner_dim, width, num_tokens=(tokens,), scale=[1.0])
        processors[name] = branch if ".attn2." in name else own
    unet.set_attn_processor(processors)
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([projection])
    unet.config.encoder_hid_dim_type = "ip_image_proj"
    return unet


def _stable_diffusion() -> nn.Module:
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        attention_head_dim=8,
        cross_attention_dim=768,
    )
    return _with_ip_adapter(unet, IPAdapterFullImageProjection(_CLIP_H, 768), 257)


def _stable_diffusion_xl() -> nn.Module:
    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=[1, 2, 10],
        attention_head_dim=[5, 10, 20],
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    resampler = IPAdapterPlusImageProjection(
        embed_dims=_CLIP_H, output_dims=2048, hidden_dims=1280, depth=4, heads=20, num_queries=16
    )
    return _with_ip_adapter(unet, resampler, 16)


def _unet_arguments(side: int, text_channels: int, more: dict[str, Any]) -> dict[str, Any]:
    return {
        "sample": _meta(1, 4, side, side),
        "encoder_hidden_states": _meta(1, 77, text_channels),
        "added_cond_kwargs": {"image_embeds": [_meta(1, 1, 257, _CLIP_H)], **more},
    }


# -- transformers that read one sequence of text, generated picture and reference ----------------------------------------


def _positions(side: int, columns: int, picture: int) -> torch.Tensor:
    """(tokens, columns): number of the picture, row, column; on the CPU, where families read them."""
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    ids = torch.zeros(side * side, columns)
    ids[:, 0], ids[:, 1:3] = picture, places
    return ids


def _flux_arguments(
    channels: int, text_channels: int, columns: int, second: int, more: dict[str, Any]
) -> dict[str, Any]:
    """1024² from 1024², 64×64 tokens each."""
    pictures = [_positions(64, columns, number) for number in (0, second)]
    ids, text = torch.cat(pictures), torch.zeros(_TEXT, columns)
    batched = columns == 4  # Flux 2's have a dimension for the batch
    return {
        "hidden_states": _meta(1, len(ids), channels),
        "encoder_hidden_states": _meta(1, _TEXT, text_channels),
        "img_ids": ids[None] if batched else ids,
        "txt_ids": text[None] if batched else text,
        **more,
    }


def _qwen_arguments() -> dict[str, Any]:
    return {
        "hidden_states": _meta(1, 2 * 64 * 64, 64),
        "encoder_hidden_states": _meta(1, _TEXT, 3584),
        "img_shapes": [[(1, 64, 64), (1, 64, 64)]],
    }


def _wan_arguments() -> dict[str, Any]:
    return {
        "hidden_states": _meta(1, 36, 21, 60, 104),
        "encoder_hidden_states": _meta(1, _TEXT, 4096),
        "encoder_hidden_states_image": _meta(1, 257, _CLIP_H),
    }


MODELS = (
    RealModel(
        name="Stable Diffusion 1.5 with IP-Adapter full",
        source="stable-diffusion-v1-5/stable-diffusion-v1-5, unet; h94/IP-Adapter, ip-adapter-full-face_sd15",
        shows="512², 257 image tokens",
        family=IPAdapter(),
        build=lambda: _on_meta(_stable_diffusion),
        arguments=lambda: _unet_arguments(64, 768, {}),
    ),
    RealModel(
        name="SDXL with IP-Adapter Plus",
        source="stabilityai/stable-diffusion-xl-base-1.0, unet; h94/IP-Adapter, ip-adapter-plus_sdxl_vit-h",
        shows="1024², 16 image tokens",
        family=IPAdapter(),
        build=lambda: _on_meta(_stable_diffusion_xl),
        arguments=lambda: _unet_arguments(128, 2048, {"text_embeds": _meta(1, 1280), "time_ids": _meta(1, 6)}),
    ),
    RealModel(
        name="Flux Kontext",
        source="black-forest-labs/FLUX.1-Kontext-dev, transformer",
        shows="1024² from 1024²",
        family=FluxKontext(),
        build=lambda: _on_meta(lambda: FluxTransformer2DModel(guidance_embeds=True)),
        arguments=lambda: _flux_arguments(64, 4096, 3, 1, {"pooled_projections": _meta(1, 768), "guidance": _meta(1)}),
    ),
    RealModel(
        name="Flux 2 Klein 4B",
        source="black-forest-labs/FLUX.2-klein-4B, transformer",
        shows="1024² from 1024²",
        family=Flux2(),
        build=lambda: _on_meta(
            lambda: Flux2Transformer2DModel(
                num_layers=5,
                num_single_layers=20,
                num_attention_heads=24,
                joint_attention_dim=7680,
                guidance_embeds=False,
            )
        ),
        arguments=lambda: _flux_arguments(128, 7680, 4, 10, {}),
    ),
    RealModel(
        name="Qwen-Image-Edit",
        source="Qwen/Qwen-Image-Edit, transformer",
        shows="1024² from 1024²",
        family=QwenImageEdit(),
        build=lambda: _on_meta(QwenImageTransformer2DModel),
        arguments=_qwen_arguments,
    ),
    RealModel(
        name="Wan 2.1 I2V 14B",
        source="Wan-AI/Wan2.1-I2V-14B-480P-Diffusers, transformer",
        shows="81 frames of 832×480, 257 image tokens",
        family=WanImageToVideo(),
        build=lambda: _on_meta(
            lambda: WanTransformer3DModel(in_channels=36, image_dim=_CLIP_H, added_kv_proj_dim=5120)
        ),
        arguments=_wan_arguments,
    ),
)
