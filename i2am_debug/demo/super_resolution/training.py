"""How the tiny super-resolution model is trained further, looked at, and broken: what the demo is told of it."""

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
from ..sabotage import ANY_MODEL, Batch, Sabotage, changed, forget, fresh_keys, shift
from .model import GRID, LATENT_CHANNELS, ReferenceEncoder, denoising_loss
from .pairs import make_batch, validation_pairs
from .pipeline import TinySuperResolutionPipeline, load_super_resolution_pipeline

_SHIFT = 8  # pixels
_SAMPLER_STEPS = 5  # enough to measure the pictures


class _NewPairs(Dataset):
    """Pairs the shipped model has not seen, drawn by index."""

    def __init__(self, count: int, seed: int) -> None:
        self._batch = make_batch(count, torch.Generator().manual_seed(500_000 + seed))

    def __len__(self) -> int:
        return len(self._batch)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"target": self._batch.target_B3SS[index], "reference": self._batch.reference_B3LL[index]}


def noise_times(count: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Of a training batch, (B,) in 0 … 999: more often much noise than little."""
    return (1000 * torch.rand(count, generator=generator).sqrt()).long().clamp(max=999)


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
        num_inference_steps=_SAMPLER_STEPS,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    errors = [
        float(((image - np.asarray(pair.target) / 255) ** 2).mean()) for image, pair in zip(made, pairs, strict=True)
    ]
    return float(np.mean(-10 * np.log10(errors)))


def break_encoder(pipeline: TinySuperResolutionPipeline) -> None:
    """A random reference encoder that training leaves alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        forget(pipeline.reference_encoder, ReferenceEncoder())


def dim_encoder(pipeline: TinySuperResolutionPipeline) -> None:
    """Scales the last step of the encoder; training goes on from there."""
    with torch.no_grad():
        for parameter in pipeline.reference_encoder.norm.parameters():
            parameter.mul_(0.3)


def reorder_tokens(pipeline: TinySuperResolutionPipeline) -> None:
    """From now on the encoder gives its tokens in another order, which attention can't tell."""
    order = torch.randperm(GRID**2, generator=torch.Generator().manual_seed(0))
    pipeline.reference_encoder.register_forward_hook(lambda module, inputs, tokens: tokens[:, order])


DEMO = DemoModel(
    name="super-resolution",
    load=load_super_resolution_pipeline,
    trained=("unet", "reference_encoder"),
    learning_rate=3e-4,
    new_data=_NewPairs,
    training_loss=training_loss,
    loss_fn=teacher_forced,
    validation_pairs=lambda: validation_pairs(16, seed=7),
    quality=picture_psnr,
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
        "positions": Sabotage(
            what="rows and columns swapped in the references",
            corrupt=changed("reference", lambda reference: reference.transpose(-1, -2)),
        ),
        "reordered": Sabotage(what="the reference's tokens in another order (harmless)", break_weights=reorder_tokens),
        "shift-target": Sabotage(what=f"targets shifted by {_SHIFT} px", corrupt=shift("target", _SHIFT)),
    },
)
