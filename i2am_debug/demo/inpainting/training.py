"""How the tiny inpainting model is trained further, looked at, and broken: what the demo is told of it."""

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
from .model import REFERENCE_GRID, ReferenceEncoder, denoising_loss
from .pairs import make_batch, validation_pairs
from .pipeline import TinyExamplePipeline, load_tiny_pipeline

_HOLE_WEIGHT = 4.0
_SHIFT = 8  # pixels


def new_data(count: int, generator: torch.Generator) -> dict[str, Any]:
    batch = make_batch(count, generator)
    return {"target": batch.target_B3SS, "reference": batch.reference_B3SS, "hole": batch.hole_B1SS}


def training_loss(
    pipeline: TinyExamplePipeline, modules: Mapping[str, nn.Module], batch: Batch, *, predicts_noise: bool = False
) -> torch.Tensor:
    """The denoising loss of a batch with "target", "reference" and "hole", more weight in the hole."""
    target, hole = batch["target"], batch["hole"]
    noise = torch.randn(len(target), LATENT_CHANNELS, 16, 16).to(target.device)
    timesteps = noise_times(len(target)).to(target.device)
    tokens = modules["reference_encoder"](batch["reference"])
    inputs = (pipeline.scheduler, target, hole, timesteps, noise)
    unet = modules["unet"]
    return denoising_loss(unet, tokens, *inputs, hole_weight=_HOLE_WEIGHT, predicts_noise=predicts_noise).mean()


def teacher_forced(pipeline: TinyExamplePipeline) -> LossFunction:
    """The `loss_fn` of the tiny model: the denoising loss of noised truths, unweighted, one value a pair."""

    def loss_fn(
        pairs: list[ValidationPair], timesteps: torch.Tensor, generator: torch.Generator, reference: Any = None
    ) -> torch.Tensor:
        picture, hole, example = pipeline.prepare(
            [p.target for p in pairs], [p.mask_image for p in pairs], reference or [p.reference for p in pairs]
        )
        noise = torch.randn(len(pairs), LATENT_CHANNELS, 16, 16, generator=generator).to(picture)
        tokens = pipeline.reference_encoder(example)
        inputs = (pipeline.scheduler, picture, hole, timesteps.to(picture.device), noise)
        return denoising_loss(pipeline.unet, tokens, *inputs, hole_weight=0.0)

    return loss_fn


def hole_psnr(pipeline: TinyExamplePipeline, pairs: ValidationPairs) -> float:
    """Mean over pairs of the peak signal-to-noise ratio inside the hole, dB; touches no random state but its own."""
    made = pipeline(
        image=[p.target for p in pairs],
        mask_image=[p.mask_image for p in pairs],
        example_image=[p.reference for p in pairs],
        num_inference_steps=SAMPLER_STEPS,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    return mean_psnr(made, pairs, in_hole=True)


DEMO = DemoModel(
    name="inpainting",
    load=load_tiny_pipeline,
    trained=("unet", "reference_encoder"),
    learning_rate=3e-4,
    new_data=new_data,
    training_loss=training_loss,
    loss_fn=teacher_forced,
    validation_pairs=lambda: validation_pairs(16, seed=7),
    quality=hole_psnr,
    sabotages={
        **ANY_MODEL,
        **faults(ReferenceEncoder, REFERENCE_GRID),
        "shift-mask": Sabotage(what=f"holes shifted by {_SHIFT} px", corrupt=shift("hole", _SHIFT)),
        "inverted-mask": Sabotage(what="holes inverted", corrupt=changed("hole", lambda hole: 1 - hole)),
        "full-mask": Sabotage(what="holes of the whole picture", corrupt=changed("hole", torch.ones_like)),
    },
)
