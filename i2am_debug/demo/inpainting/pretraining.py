"""The recipe of the inpainting model's shipped weights."""

from __future__ import annotations

import torch

from ..pixel_vae import LATENT_CHANNELS
from ..recipe import OPTIMIZER, Modules, Recipe
from ..tiny_unet import noise_times
from .model import ReferenceEncoder, denoising_loss, new_scheduler, new_unet
from .pairs import make_batch
from .pipeline import WEIGHTS

_BATCH = 16
_HOLE_WEIGHT = 4.0
_HELD_OUT_SEED = 7


def _batch_loss(modules: Modules, draws: torch.Generator) -> torch.Tensor:
    batch = make_batch(_BATCH, draws)
    noise = torch.randn(len(batch), LATENT_CHANNELS, 16, 16, generator=draws)
    timesteps = noise_times(len(batch), draws)
    tokens = modules["reference_encoder"](batch.reference_B3SS)
    inputs = (_SCHEDULER, batch.target_B3SS, batch.hole_B1SS, timesteps, noise)
    return denoising_loss(modules["unet"], tokens, *inputs, hole_weight=_HOLE_WEIGHT).mean()


@torch.no_grad()
def held_out_loss(modules: Modules) -> dict[str, float]:
    """Mean squared error on 64 held-out pairs with their own reference and with another pair's, same noise and times."""
    draws = torch.Generator().manual_seed(_HELD_OUT_SEED)
    batch = make_batch(64, draws)
    noise = torch.randn(64, LATENT_CHANNELS, 16, 16, generator=draws)
    timesteps = torch.arange(64) * 1000 // 64 + 7

    def loss(reference: torch.Tensor) -> float:
        tokens = modules["reference_encoder"](reference)
        inputs = (_SCHEDULER, batch.target_B3SS, batch.hole_B1SS, timesteps, noise)
        return denoising_loss(modules["unet"], tokens, *inputs, hole_weight=0.0).mean().item()

    return {"right_reference": loss(batch.reference_B3SS), "wrong_reference": loss(batch.reference_B3SS.roll(1, 0))}


_SCHEDULER = new_scheduler()

RECIPE = Recipe(
    settings={
        **OPTIMIZER,
        "learning_rate": 3e-3,
        "batch": _BATCH,
        "hole_weight": _HOLE_WEIGHT,
        "timestep": "floor(1000 sqrt(U))",
    },
    steps=1000,
    # Of the two seeds trained so far (0, 1) the one whose other layers look at the object too: G2R energy over all layers is
    # 2.8 times chance, 2.2 with seed 0. In the copying layer both copy alike (3.1 and 3.0 times chance).
    seed=1,
    weights=WEIGHTS,
    new_modules=lambda: {"unet": new_unet(), "reference_encoder": ReferenceEncoder()},
    batch_loss=_batch_loss,
    held_out=held_out_loss,
)
