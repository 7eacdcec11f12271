"""What stands where a latent model has its VAE: the pixels themselves, rearranged. The demo's models are exact in pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput

PIXELS_PER_CELL = 2
LATENT_CHANNELS = 3 * PIXELS_PER_CELL**2


def to_cells(picture: torch.Tensor) -> torch.Tensor:
    """(B, C, 2h, 2w) → (B, 4C, h, w), exactly invertible."""
    return F.pixel_unshuffle(picture, PIXELS_PER_CELL)


def to_pixels(cells: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_cells`."""
    return F.pixel_shuffle(cells, PIXELS_PER_CELL)


class PixelVAE(ModelMixin, ConfigMixin):
    """Exact and without parameters: (B, 3, 2h, 2w) in [-1, 1] ↔ (B, 12, h, w)."""

    @register_to_config
    def __init__(
        self,
        latent_channels: int = LATENT_CHANNELS,
        block_out_channels: Sequence[int] = (3, LATENT_CHANNELS),  # two levels: pipelines read the factor two off this
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_buffer("place", torch.zeros(1))  # diffusers asks every module for its device and type

    def encode(self, picture: torch.Tensor) -> AutoencoderTinyOutput:
        return AutoencoderTinyOutput(latents=to_cells(picture))

    def decode(self, latent: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        picture = to_pixels(latent)
        return DecoderOutput(sample=picture) if return_dict else (picture,)
