"""The tiny super-resolution model: 0.6 M parameters, exact pixels, a low-resolution reference read by cross-attention only.

`pixel_unshuffle(2)` stands where a latent model has its VAE, so the denoiser sees 12x16x16; beside it the sines and cosines of
each place, since nothing else in noise says where it is. The reference reaches it as a feature map of 16x16 tokens, one for
each of its pixels, on the grid of the denoiser's own layers, as in pixel-aware cross-attention (PASD), through four layers and
by no other way. A token knows its own pixel of the reference and two around it.
"""

from __future__ import annotations

import math

import torch
from diffusers import ConfigMixin, DDIMScheduler, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import nn

from ..pixel_vae import LATENT_CHANNELS, to_cells
from ..tiny_unet import new_scheduler as new_scheduler  # this model's own
from ..tiny_unet import start_larger

GRID = 16
"""Of the latents and of the reference's tokens."""

_WIDTH = 48
_TURNS = (0.5, 1, 2, 4, 8)
"""How often the sines and cosines of a place go round over a picture; the last tells a cell from the next."""


class ReferenceEncoder(ModelMixin, ConfigMixin):
    """A picture (B, 3, 16, 16) in [-1, 1] to a feature map of `grid`² tokens (B, grid², width), with positions."""

    @register_to_config
    def __init__(self, width: int = _WIDTH, grid: int = GRID, depth: int = 2) -> None:
        super().__init__()
        self.pixels = nn.Sequential(
            *(nn.Conv2d(3, width, 3, padding=1), nn.SiLU()),
            *(nn.Conv2d(width, width, 3, padding=1), nn.SiLU()),
            nn.Conv2d(width, width, 1),
        )
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(depth)
        )
        positions = get_2d_sincos_pos_embed(width, grid, output_type="pt")
        self.positions = nn.Parameter(positions.float()[None] * 0.7)
        self.norm = nn.LayerNorm(width)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        tokens = self.pixels(picture).flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = tokens + layer(tokens)
        return self.norm(tokens + self.positions)


def new_unet() -> UNet2DConditionModel:
    """The denoiser with fresh weights."""
    unet = UNet2DConditionModel(
        sample_size=GRID,
        in_channels=LATENT_CHANNELS + 4 * len(_TURNS),
        out_channels=LATENT_CHANNELS,
        block_out_channels=(_WIDTH,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=_WIDTH,
        attention_head_dim=2,  # diffusers takes this as the number of heads
        norm_num_groups=8,
    )
    return start_larger(unet)


def with_places(latents: torch.Tensor) -> torch.Tensor:
    """Latents (B, 12, h, w) and behind them the sines and cosines of each place's row and column: (B, 32, h, w)."""
    height, width = latents.shape[-2:]
    channels = []
    for turns in _TURNS:
        rows, columns = (2 * math.pi * turns * (torch.arange(side) + 0.5) / side for side in (height, width))
        for wave in (torch.sin, torch.cos):
            channels += [wave(rows)[:, None].expand(height, width), wave(columns).expand(height, width)]
    places = torch.stack(channels).to(latents)
    return torch.cat([latents, places.expand(len(latents), -1, -1, -1)], 1)


def denoising_loss(
    unet: nn.Module,
    tokens: torch.Tensor,
    scheduler: DDIMScheduler,
    picture: torch.Tensor,
    timesteps: torch.Tensor,
    noise: torch.Tensor,
    *,
    predicts_noise: bool = False,
) -> torch.Tensor:
    """Squared error of the predicted sample, one value a pair (B,).

    `predicts_noise` compares with the noise instead, which is wrong for this model.
    """
    clean = to_cells(picture)
    noisy = scheduler.add_noise(clean, noise, timesteps)
    predicted = unet(with_places(noisy), timesteps, tokens).sample
    return ((predicted - (noise if predicts_noise else clean)) ** 2).mean((1, 2, 3))
