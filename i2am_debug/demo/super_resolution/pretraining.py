"""The recipe of the super-resolution model's shipped weights."""

from __future__ import annotations

import torch

from ..pixel_vae import LATENT_CHANNELS
from ..recipe import OPTIMIZER, Modules, Recipe
from ..tiny_unet import noise_times
from .model import GRID, ReferenceEncoder, denoising_loss, new_scheduler, new_unet
from .pairs import make_batch
from .pipeline import WEIGHTS

_BATCH = 16
_HELD_OUT_SEED = 7


def _batch_loss(modules: Modules, draws: torch.Generator) -> torch.Tensor:
    batch = make_batch(_BATCH, draws)
    noise = torch.randn(len(batch), LATENT_CHANNELS, GRID, GRID, generator=draws)
    tokens = modules["reference_encoder"](batch.reference_B3LL)
    return denoising_loss(
        modules["unet"], tokens, _SCHEDULER, batch.target_B3SS, noise_times(len(batch), draws), noise
    ).mean()


@torch.no_grad()
def held_out_loss(modules: Modules) -> dict[str, float]:
    """Mean squared error on 64 held-out pairs with their own reference and with another pair's, same noise and times."""
    draws = torch.Generator().manual_seed(_HELD_OUT_SEED)
    batch = make_batch(64, draws)
    noise = torch.randn(64, LATENT_CHANNELS, GRID, GRID, generator=draws)
    timesteps = torch.arange(64) * 1000 // 64 + 7

    def loss(reference: torch.Tensor) -> float:
        tokens = modules["reference_encoder"](reference)
        return denoising_loss(modules["unet"], tokens, _SCHEDULER, batch.target_B3SS, timesteps, noise).mean().item()

    return {"right_reference": loss(batch.reference_B3LL), "wrong_reference": loss(batch.reference_B3LL.roll(1, 0))}


def _new_modules() -> Modules:
    encoder = ReferenceEncoder()  # first: the shipped weights were drawn in this order
    return {"unet": new_unet(), "reference_encoder": encoder}


_SCHEDULER = new_scheduler()

RECIPE = Recipe(
    settings={**OPTIMIZER, "learning_rate": 3e-3, "batch": _BATCH, "timestep": "floor(1000 sqrt(U))"},
    steps=1600,
    seed=0,
    weights=WEIGHTS,
    new_modules=_new_modules,
    batch_loss=_batch_loss,
    held_out=held_out_loss,
)
