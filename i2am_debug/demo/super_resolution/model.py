"""The tiny super-resolution model: 1.1 M parameters, exact pixels, a low-resolution reference read by cross-attention only.

`pixel_unshuffle(4)` stands where a latent model has its VAE, so the denoiser sees 48x8x8; beside it the sines and cosines of
each place, since nothing else in noise says where it is. The reference reaches it as a feature map of 8x8 tokens, the grid of
the denoiser's own layers, as in pixel-aware cross-attention (PASD), through four layers and by no other way. A token knows its
own 2x2 pixels of the reference and two around them.
"""

from __future__ import annotations

import math

import torch
from diffusers import ConfigMixin, DDIMScheduler, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import nn

from ..pixel_vae import to_cells

GRID = 8
"""Of the latents and of the reference's tokens."""

CELL = 4
"""Side of a latent's place, in pixels of the picture."""

LATENT_CHANNELS = 3 * CELL**2
_TURNS = (0.5, 1, 2, 4)
"""How often the sines and cosines of a place go round over a picture; the last tells a cell from the next."""


class ReferenceEncoder(ModelMixin, ConfigMixin):
    """A picture (B, 3, 16, 16) in [-1, 1] to a feature map of `grid`² tokens (B, grid², width), with positions."""

    @register_to_config
    def __init__(self, width: int = 64, grid: int = GRID, patch: int = 2) -> None:
        super().__init__()
        self.patches = nn.Sequential(
            *(nn.Conv2d(3, width // 2, 3, padding=1), nn.SiLU()),
            *(nn.Conv2d(width // 2, width // 2, 3, padding=1), nn.SiLU()),
            nn.Conv2d(width // 2, width, patch, stride=patch),
        )
        positions = get_2d_sincos_pos_embed(width, grid, output_type="pt")
        self.positions = nn.Parameter(positions.float()[None] * 0.7)
        self.mix = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(picture).flatten(2).transpose(1, 2) + self.positions
        return self.norm(tokens + self.mix(tokens))


def new_unet() -> UNet2DConditionModel:
    """The denoiser with fresh weights; queries and keys start 2.5 times larger, which makes copying appear earlier."""
    unet = UNet2DConditionModel(
        sample_size=GRID,
        in_channels=LATENT_CHANNELS + 4 * len(_TURNS),
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=64,
        attention_head_dim=4,  # diffusers takes this as the number of heads
        norm_num_groups=8,
    )
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if name.endswith(("attn2.to_q.weight", "attn2.to_k.weight")):
                weight.mul_(2.5)
    return unet


def new_scheduler() -> DDIMScheduler:
    """1000 noise times, predicts the sample, trailing spacing with zero terminal signal-to-noise ratio."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=True,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )


def with_places(latents: torch.Tensor) -> torch.Tensor:
    """Latents (B, 48, h, w) and behind them the sines and cosines of each place's row and column: (B, 64, h, w)."""
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
    clean = to_cells(picture, CELL)
    noisy = scheduler.add_noise(clean, noise, timesteps)
    predicted = unet(with_places(noisy), timesteps, tokens).sample
    return ((predicted - (noise if predicts_noise else clean)) ** 2).mean((1, 2, 3))
