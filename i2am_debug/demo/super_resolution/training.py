"""How the tiny super-resolution model is trained further, looked at, and broken: what the demo is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ...evaluation.loss_function import LossFunction
from ...pairs.collection import ValidationPairs
from ...pairs.pair import ValidationPair
from ..demo_model import DemoModel
from ..picture_quality import SAMPLER_STEPS, mean_psnr
from ..pixel_vae import LATENT_CHANNELS
from ..sabotage import ANY_MODEL, Batch, Sabotage, changed, shift
from ..tiny_unet import faults, noise_times
from .model import GRID, ReferenceEncoder, denoising_loss
from .pairs import make_batch, validation_pairs
from .pipeline import TinySuperResolutionPipeline, load_super_resolution_pipeline

_SHIFT = 8  # pixels


def new_data(count: int, generator: torch.Generator) -> dict[str, Any]:
    batch = make_batch(count, generator)
    return {"target": batch.target_B3SS, "reference": batch.reference_B3LL}


def training_loss(
    pipeline: TinySuperResolutionPipeline,
    modules: Mapping[str, nn.Module],
    batch: Batch,
    *,
    predicts_noise: bool = False,
) -> torch.Tensor:
    """The denoising loss of a batch with "target" and "reference"."""
    target = batch["target"]
    noise = torch.randn(len(target), LATENT_CHANNELS, GRID, GRID).to(target.device)
    tokens = modules["reference_encoder"](batch["reference"])
    inputs = (pipeline.scheduler, target, noise_times(len(target)).to(target.device), noise)
    return denoising_loss(modules["unet"], tokens, *inputs, predicts_noise=predicts_noise).mean()


def teacher_forced(pipeline: TinySuperResolutionPipeline) -> LossFunction:
    """The `loss_fn` of the tiny super-resolution model: the denoising loss of noised truths, one value a pair."""

    def loss_fn(
        pairs: list[ValidationPair], timesteps: torch.Tensor, generator: torch.Generator, reference: Any = None
    ) -> torch.Tensor:
        tokens = pipeline.reference_encoder(pipeline.prepare(reference or [p.reference for p in pairs]))
        target = pipeline.image_processor.preprocess([p.target for p in pairs]).to(tokens)
        noise = torch.randn(len(pairs), LATENT_CHANNELS, GRID, GRID, generator=generator).to(tokens)
        return denoising_loss(pipeline.unet, tokens, pipeline.scheduler, target, timesteps.to(tokens.device), noise)

    return loss_fn


def picture_psnr(pipeline: TinySuperResolutionPipeline, pairs: ValidationPairs) -> float:
    """Mean over pairs of the peak signal-to-noise ratio of the whole picture, dB; touches no random state but its own."""
    made = pipeline(
        image=[p.reference for p in pairs],
        num_inference_steps=SAMPLER_STEPS,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    return mean_psnr(made, pairs)


DEMO = DemoModel(
    name="super-resolution",
    load=load_super_resolution_pipeline,
    trained=("unet", "reference_encoder"),
    learning_rate=3e-4,
    new_data=new_data,
    training_loss=training_loss,
    loss_fn=teacher_forced,
    validation_pairs=lambda: validation_pairs(16, seed=7),
    quality=picture_psnr,
    sabotages={
        **ANY_MODEL,
        **faults(ReferenceEncoder, GRID),
        "positions": Sabotage(
            what="rows and columns swapped in the references",
            corrupt=changed("reference", lambda reference: reference.transpose(-1, -2)),
        ),
        "shift-target": Sabotage(what=f"targets shifted by {_SHIFT} px", corrupt=shift("target", _SHIFT)),
    },
)
