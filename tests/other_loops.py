"""What the loops without an Accelerator train in the tests: the untrained tiny model with dropout, its loss as its forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from training import untrained_pipeline

from i2am_debug import CapturePlan, Rule, Rules
from i2am_debug.demo.inpainting.model import denoising_loss
from i2am_debug.demo.inpainting.pairs import make_batch, validation_pairs
from i2am_debug.demo.pixel_vae import LATENT_CHANNELS

QUICK: dict[str, Any] = {
    "every_n_steps": 2,
    "plan": CapturePlan(sampler_steps=1),
    "batch_size": 2,
    "pictures": 0,
    "panels": 1,
    "on_error": "raise",
    "stop_on": None,
    "disable_progress_bar": True,
    "synchronous": True,
}
MOVED = Rules(rules=(Rule(name="moved", kind="ceiling", figure="drift/js_g2r", limit=0.0, severity="critical"),))
"""Alerts at the first evaluation after the baseline, from which nothing is distant at the baseline itself."""


def few_pairs() -> Any:
    return validation_pairs(2, seed=11)


class TinyTraining(nn.Module):
    """Its forward draws noise and dropout from torch's global numbers, which looking must leave alone."""

    def __init__(self) -> None:
        super().__init__()
        self.pipeline = untrained_pipeline(dropout=0.1)
        self.unet, self.encoder = self.pipeline.unet, self.pipeline.reference_encoder

    def forward(self, number: torch.Tensor) -> dict[str, torch.Tensor]:
        batch = make_batch(2, torch.Generator().manual_seed(int(number.flatten()[0])))
        noise = torch.randn(2, LATENT_CHANNELS, 16, 16)
        inputs = (self.pipeline.scheduler, batch.target_B3SS, batch.hole_B1SS, torch.randint(0, 1000, (2,)), noise)
        tokens = self.encoder(batch.reference_B3SS)
        return {"loss": denoising_loss(self.unet, tokens, *inputs, hole_weight=1.0).mean()}


class Numbers(Dataset[dict[str, int]]):
    """Seeds of batches."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> dict[str, int]:
        return {"number": number}


def assert_same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    a, b = ours.state_dict(), theirs.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
