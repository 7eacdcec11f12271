"""How the tiny inpainting model is trained further, looked at, and broken: what the demo is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from ...evaluation.loss_function import LossFunction
from ...pairs.collection import ValidationPairs
from ...pairs.pair import ValidationPair
from ..demo_model import DemoModel
from ..pixel_vae import LATENT_CHANNELS
from ..sabotage import ANY_MODEL, Batch, Sabotage, changed, forget, fresh_keys, shift
from .model import REFERENCE_GRID, ReferenceEncoder, denoising_loss
from .pairs import make_batch, validation_pairs
from .pipeline import TinyExamplePipeline, load_tiny_pipeline

_HOLE_WEIGHT = 4.0
_SHIFT = 8  # pixels
_SAMPLER_STEPS = 5  # enough to measure the pictures


class _NewPairs(Dataset):
    """Pairs the shipped model has not seen, drawn by index."""

    def __init__(self, count: int, seed: int) -> None:
        self._batch = make_batch(count, torch.Generator().manual_seed(500_000 + seed))

    def __len__(self) -> int:
        return len(self._batch)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {
            "target": self._batch.target_B3SS[index],
            "reference": self._batch.reference_B3SS[index],
            "hole": self._batch.hole_B1SS[index],
        }


def training_loss(
    pipeline: TinyExamplePipeline, modules: Mapping[str, nn.Module], batch: Batch, *, predicts_noise: bool = False
) -> torch.Tensor:
    """The denoising loss of a batch with "target", "reference" and "hole", more weight in the hole."""
    target, hole = batch["target"], batch["hole"]
    noise = torch.randn(len(target), LATENT_CHANNELS, 16, 16, device=target.device)
    timesteps = (1000 * torch.rand(len(target), device=target.device).sqrt()).long().clamp(max=999)
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
        num_inference_steps=_SAMPLER_STEPS,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    errors = [
        float(((image - np.asarray(pair.target) / 255)[pair.mask] ** 2).mean())
        for image, pair in zip(made, pairs, strict=True)
    ]
    return float(np.mean(-10 * np.log10(errors)))


def break_encoder(pipeline: TinyExamplePipeline) -> None:
    """A random reference encoder that training leaves alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        forget(pipeline.reference_encoder, ReferenceEncoder())


def dim_encoder(pipeline: TinyExamplePipeline) -> None:
    """Scales the last step of the encoder; training goes on from there."""
    with torch.no_grad():
        for parameter in pipeline.reference_encoder.norm.parameters():
            parameter.mul_(0.3)


def reorder_tokens(pipeline: TinyExamplePipeline) -> None:
    """From now on the encoder gives its tokens in another order, which attention can't tell."""
    order = torch.randperm(REFERENCE_GRID**2, generator=torch.Generator().manual_seed(0))
    pipeline.reference_encoder.register_forward_hook(lambda module, inputs, tokens: tokens[:, order])


DEMO = DemoModel(
    name="inpainting",
    load=load_tiny_pipeline,
    trained=("unet", "reference_encoder"),
    learning_rate=3e-4,
    new_data=_NewPairs,
    training_loss=training_loss,
    loss_fn=teacher_forced,
    validation_pairs=lambda: validation_pairs(16, seed=7),
    quality=hole_psnr,
    sabotages={
        **ANY_MODEL,
        "encoder": Sabotage(what="reference encoder random and frozen", break_weights=break_encoder),
        "encoder-dim": Sabotage(what="what the reference encoder gives scaled × 0.3", break_weights=dim_encoder),
        "keys": Sabotage(
            what="keys of the cross-attention overwritten",
            break_weights=lambda pipeline: fresh_keys(pipeline.unet, ("attn2.to_k.weight",)),
        ),
        "queries": Sabotage(
            what="queries of the cross-attention overwritten",
            break_weights=lambda pipeline: fresh_keys(pipeline.unet, ("attn2.to_q.weight",)),
        ),
        "shift-mask": Sabotage(what=f"holes shifted by {_SHIFT} px", corrupt=shift("hole", _SHIFT)),
        "inverted-mask": Sabotage(what="holes inverted", corrupt=changed("hole", lambda hole: 1 - hole)),
        "full-mask": Sabotage(what="holes of the whole picture", corrupt=changed("hole", torch.ones_like)),
        "reordered": Sabotage(what="the reference's tokens in another order (harmless)", break_weights=reorder_tokens),
    },
)
