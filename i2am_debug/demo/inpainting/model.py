"""The tiny image-to-image model: 1.2 M parameters, exact pixels, a reference read through cross-attention only.

`pixel_unshuffle(2)` stands where a latent model has its VAE, so the denoiser sees 12x16x16. The reference reaches it as 64
tokens on an 8x8 grid through six cross-attention layers and by no other way.
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, DDIMScheduler, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import nn

from ..pixel_vae import LATENT_CHANNELS, PIXELS_PER_CELL, to_cells
from ..tiny_unet import new_scheduler as new_scheduler  # this model's own
from ..tiny_unet import start_larger

REFERENCE_GRID = 8
MASK_CHANNELS = PIXELS_PER_CELL**2


class ReferenceEncoder(ModelMixin, ConfigMixin):
    """A picture (B, 3, 32, 32) in [-1, 1] to `grid`² tokens (B, grid², width): patches, positions, one transformer layer."""

    @register_to_config
    def __init__(self, width: int = 64, grid: int = REFERENCE_GRID, patch: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Sequential(
            nn.Conv2d(3, width // 2, 3, padding=1), nn.SiLU(), nn.Conv2d(width // 2, width, patch, stride=patch)
        )
        self.mix = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)
        )
        positions = get_2d_sincos_pos_embed(width, grid, output_type="pt")
        self.positions = nn.Parameter(positions.float()[None] * 0.7)
        self.block = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True, activation="gelu"
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        cells = self.patches(picture)
        tokens = (cells + self.mix(cells)).flatten(2).transpose(1, 2) + self.positions
        return self.norm(self.block(tokens))


def new_unet() -> UNet2DConditionModel:
    """The denoiser with fresh weights."""
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=2 * LATENT_CHANNELS + MASK_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=64,
        attention_head_dim=(2, 4),  # diffusers takes this as the number of heads of each block
        norm_num_groups=8,
    )
    return start_larger(unet)


def inpainting_condition(picture: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """What the denoiser sees beside the noise: the picture with its hole cut out, and the hole; (B, 16, h, w)."""
    return torch.cat([to_cells(picture * (1 - hole)), to_cells(hole)], 1)


def denoising_loss(
    unet: nn.Module,
    tokens: torch.Tensor,
    scheduler: DDIMScheduler,
    picture: torch.Tensor,
    hole: torch.Tensor,
    timesteps: torch.Tensor,
    noise: torch.Tensor,
    *,
    hole_weight: float,
    predicts_noise: bool = False,
) -> torch.Tensor:
    """Weighted squared error of the predicted sample, one value a pair (B,); the weight is 1 + hole_weight in the hole.

    `predicts_noise` compares with the noise instead, which is wrong for this model.
    """
    clean = to_cells(picture)
    noisy = scheduler.add_noise(clean, noise, timesteps)
    predicted = unet(torch.cat([noisy, inpainting_condition(picture, hole)], 1), timesteps, tokens).sample
    weight = 1 + hole_weight * to_cells(hole.expand(-1, 3, -1, -1))
    return (weight * (predicted - (noise if predicts_noise else clean)) ** 2).mean((1, 2, 3))
