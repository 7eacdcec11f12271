"""The recipe of the editing model's shipped weights."""

from __future__ import annotations

import math

import torch

from ..recipe import OPTIMIZER, Modules, Recipe
from .model import GRID, TOKEN_CHANNELS, InstructionEncoder, flow_loss, new_transformer, predict_velocity, to_tokens
from .pairs import make_batch
from .pipeline import WEIGHTS
from .training import noise_shares

_BATCH = 16
_HELD_OUT_SEED = 7
_SAMPLER_STEPS = 10


def _batch_loss(modules: Modules, draws: torch.Generator) -> torch.Tensor:
    batch = make_batch(_BATCH, draws)
    noise = torch.randn(_BATCH, GRID * GRID, TOKEN_CHANNELS, generator=draws)
    words = modules["instruction_encoder"](batch.prompts)
    pictures = to_tokens(batch.target_B3SS), to_tokens(batch.reference_B3SS)
    return flow_loss(modules["transformer"], words, *pictures, noise_shares(_BATCH, draws), noise).mean()


@torch.no_grad()
def held_out(modules: Modules, count: int = 64) -> dict[str, float]:
    """On held-out edits: the loss with their own reference and with another edit's, at the same noise of evenly spread
    shares; and the peak signal-to-noise ratio, dB, of the mean squared error of pictures from 10 sampler steps."""
    draws = torch.Generator().manual_seed(_HELD_OUT_SEED)
    batch = make_batch(count, draws)
    noise = torch.randn(2, count, GRID * GRID, TOKEN_CHANNELS, generator=draws)
    words, target = modules["instruction_encoder"](batch.prompts), to_tokens(batch.target_B3SS)
    reference, share = to_tokens(batch.reference_B3SS), (torch.arange(count) + 0.5) / count

    def loss(reference: torch.Tensor) -> float:
        return flow_loss(modules["transformer"], words, target, reference, share, noise[0]).mean().item()

    made = noise[1]
    for step in range(_SAMPLER_STEPS):
        left = torch.full((count,), 1 - step / _SAMPLER_STEPS)
        made = made - predict_velocity(modules["transformer"], words, made, reference, left) / _SAMPLER_STEPS
    error = ((made.clamp(-1, 1) - target) ** 2).mean().item()
    return {
        "right_reference": loss(reference),
        "wrong_reference": loss(reference.roll(1, 0)),
        "psnr": 10 * math.log10(4 / error),
    }


RECIPE = Recipe(
    settings={
        **OPTIMIZER,
        "learning_rate": 3e-3,
        "batch": _BATCH,
        "noise_share": "sigmoid(N(0.5, 1))",
    },
    steps=1400,
    seed=0,
    weights=WEIGHTS,
    new_modules=lambda: {"transformer": new_transformer(), "instruction_encoder": InstructionEncoder()},
    batch_loss=_batch_loss,
    held_out=held_out,
)
