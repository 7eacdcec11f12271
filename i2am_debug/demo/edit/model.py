"""The tiny editing model: Kontext's transformer and sequence [text · generated · reference], small enough for a CPU.

The latent of a picture is its pixels, rearranged. Two words make the text. The reference reaches the generated picture as
64 tokens on an 8x8 grid of the same sequence, told apart from the generated ones by their positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from ..pixel_vae import LATENT_CHANNELS
from .pairs import INSTRUCTIONS, PROMPTS

GRID = 8
"""Tokens along a side: each is one packed square of 2x2 latent cells, 4x4 pixels."""
TOKEN_CHANNELS = 4 * LATENT_CHANNELS
WIDTH = 64
"""Of a word's vector."""


class InstructionEncoder(ModelMixin, ConfigMixin):
    """Instructions of one or two words to tokens (B, 2, width): one vector a word. It knows no others than `PROMPTS`."""

    @register_to_config
    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.words = ["", *dict.fromkeys(word for verb in INSTRUCTIONS for word in (verb, *INSTRUCTIONS[verb]))]
        self.embedding = nn.Embedding(len(self.words), width)

    def forward(self, prompts: Sequence[str]) -> torch.Tensor:
        """Embeds the prompts.

        Raises:
            ValueError: one is no instruction that the model was trained with.
        """
        for prompt in prompts:
            if prompt not in PROMPTS:
                raise ValueError(
                    f"prompt {prompt!r}: the tiny editing model knows only {', '.join(map(repr, PROMPTS))}"
                )
        words = [[self.words.index(word) for word in (*prompt.split(), "")[:2]] for prompt in prompts]
        return self.embedding(torch.tensor(words, device=self.embedding.weight.device))


def pooled(words: torch.Tensor) -> torch.Tensor:
    """The whole instruction as one vector (B, 2 width), which steers every block, beside its tokens in the sequence."""
    return words.flatten(1)


def new_transformer() -> FluxTransformer2DModel:
    """The denoiser with fresh weights: Kontext's class, one double block and three single ones."""
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=TOKEN_CHANNELS,
        num_layers=1,
        num_single_layers=3,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=2 * WIDTH,
        axes_dims_rope=(8, 12, 12),
        guidance_embeds=False,
    )


def new_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Straight flow from noise to picture, 1000 noise times."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)


def to_tokens(pictures_B3SS: torch.Tensor) -> torch.Tensor:
    """Pictures as Kontext's packed latents, (B, 64, 48)."""
    cells = F.pixel_unshuffle(F.pixel_unshuffle(pictures_B3SS, 2), 2)  # packing 2x2 cells puts them in the same order
    return cells.flatten(2).transpose(1, 2)


def token_positions(picture: int) -> torch.Tensor:
    """(64, 3): the number of the picture, 0 generated or 1 reference, row and column."""
    return torch.cartesian_prod(torch.tensor([float(picture)]), torch.arange(GRID).float(), torch.arange(GRID).float())


def predict_velocity(
    transformer: nn.Module,
    words: torch.Tensor,
    noisy: torch.Tensor,
    reference: torch.Tensor,
    noise_share: torch.Tensor,
    *,
    reference_positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the denoiser makes of noisy tokens (B, 64, 48) at noise shares (B,) in [0, 1], as Kontext's pipeline calls it."""
    positions = [token_positions(0), token_positions(1) if reference_positions is None else reference_positions]
    predicted = transformer(
        hidden_states=torch.cat([noisy, reference], 1),
        timestep=noise_share,
        guidance=None,
        pooled_projections=pooled(words),
        encoder_hidden_states=words,
        txt_ids=words.new_zeros(words.shape[1], 3),
        img_ids=torch.cat(positions).to(noisy.device),
        return_dict=False,
    )[0]
    return predicted[:, : noisy.shape[1]]


def flow_loss(
    transformer: nn.Module,
    words: torch.Tensor,
    target: torch.Tensor,
    reference: torch.Tensor,
    noise_share: torch.Tensor,
    noise: torch.Tensor,
    *,
    predicts_noise: bool = False,
) -> torch.Tensor:
    """Squared error of the predicted velocity, noise - target, one value a pair (B,).

    `target`, `reference` and `noise` are tokens (B, 64, 48), `noise_share` (B,) in [0, 1]. `predicts_noise` compares with the
    noise instead, which is wrong for this model.
    """
    share = noise_share[:, None, None]
    noisy = (1 - share) * target + share * noise
    predicted = predict_velocity(transformer, words, noisy, reference, noise_share)
    return ((predicted - (noise if predicts_noise else noise - target)) ** 2).mean((1, 2))
