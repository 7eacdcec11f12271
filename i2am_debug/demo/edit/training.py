"""How the tiny editing model is trained further, looked at, and broken: what the demo is told of it."""

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
from ..sabotage import ANY_MODEL, Batch, Sabotage, forget, fresh_keys, shift, shuffled
from .model import GRID, TOKEN_CHANNELS, flow_loss, new_transformer, to_tokens
from .pairs import SIZE, make_batch, validation_pairs
from .pipeline import TinyEditPipeline, load_edit_pipeline

_SHIFT = 8  # pixels


def new_data(count: int, generator: torch.Generator) -> dict[str, Any]:
    batch = make_batch(count, generator)
    return {"target": batch.target_B3SS, "reference": batch.reference_B3SS, "prompt": batch.prompts}


def noise_shares(count: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """How much noise each pair of a training batch gets, (B,) in [0, 1]: more often much than little."""
    return torch.sigmoid(torch.randn(count, generator=generator) + 0.5)


def training_loss(
    pipeline: TinyEditPipeline, modules: Mapping[str, nn.Module], batch: Batch, *, predicts_noise: bool = False
) -> torch.Tensor:
    """The flow matching loss of a batch with "target", "reference" and "prompt"."""
    target = to_tokens(batch["target"])
    noise, share = torch.randn(target.shape).to(target.device), noise_shares(len(target)).to(target.device)
    words = modules["instruction_encoder"](batch["prompt"])
    inputs = (words, target, to_tokens(batch["reference"]), share, noise)
    return flow_loss(modules["transformer"], *inputs, predicts_noise=predicts_noise).mean()


def teacher_forced(pipeline: TinyEditPipeline) -> LossFunction:
    """The `loss_fn` of the tiny editing model: the flow matching loss of noised truths, one value a pair."""

    def loss_fn(
        pairs: list[ValidationPair], timesteps: torch.Tensor, generator: torch.Generator, reference: Any = None
    ) -> torch.Tensor:
        device = pipeline.transformer.device
        target, seen = (
            to_tokens(pipeline.image_processor.preprocess(pictures, SIZE, SIZE).to(device))
            for pictures in ([p.target for p in pairs], reference or [p.reference for p in pairs])
        )
        noise = torch.randn(len(pairs), GRID * GRID, TOKEN_CHANNELS, generator=generator).to(device)
        words = pipeline.instruction_encoder([p.prompt or "" for p in pairs])
        return flow_loss(pipeline.transformer, words, target, seen, timesteps.to(device) / 1000, noise)

    return loss_fn


def picture_psnr(pipeline: TinyEditPipeline, pairs: ValidationPairs) -> float:
    """Mean over pairs of the peak signal-to-noise ratio of the whole picture, dB; touches no random state but its own."""
    made = pipeline(
        image=[p.reference for p in pairs],
        prompt=[p.prompt or "" for p in pairs],
        num_inference_steps=SAMPLER_STEPS,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    return mean_psnr(made, pairs)


def break_attention(pipeline: TinyEditPipeline) -> None:
    """Random queries and keys that training leaves alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = new_transformer()
    for name, module in pipeline.transformer.named_modules():
        if name.endswith((".to_q", ".to_k", ".add_q_proj", ".add_k_proj")):
            forget(module, fresh.get_submodule(name))


def reorder_tokens(pipeline: TinyEditPipeline) -> None:
    """From now on the transformer gets the reference's tokens, with their positions, in another order: it can't tell."""
    first = GRID * GRID
    order = torch.cat([torch.arange(first), first + torch.randperm(first, generator=torch.Generator().manual_seed(0))])

    def reorder(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if kwargs["hidden_states"].shape[1] != len(order):
            return args, kwargs
        tokens, positions = kwargs["hidden_states"][:, order], kwargs["img_ids"][order]
        return args, {**kwargs, "hidden_states": tokens, "img_ids": positions}

    pipeline.transformer.register_forward_pre_hook(reorder, with_kwargs=True)


def _swap_positions(batch: Batch, generator: torch.Generator) -> Batch:
    """Rows and columns of the tokens' positions swapped; as good as the tokens themselves in that order."""
    tokens = batch["reference"].unflatten(3, (GRID, -1)).unflatten(2, (GRID, -1))  # (B, 3, row, y, column, x)
    return {**batch, "reference": tokens.transpose(2, 4).flatten(4, 5).flatten(2, 3)}


DEMO = DemoModel(
    name="edit",
    load=load_edit_pipeline,
    trained=("transformer", "instruction_encoder"),
    learning_rate=3e-4,
    new_data=new_data,
    training_loss=training_loss,
    loss_fn=teacher_forced,
    validation_pairs=lambda: validation_pairs(16, seed=7),
    quality=picture_psnr,
    sabotages={
        **ANY_MODEL,
        "attention": Sabotage(what="queries and keys random and frozen", break_weights=break_attention),
        "positions": Sabotage(what="rows and columns swapped in the references' positions", corrupt=_swap_positions),
        "keys": Sabotage(
            what="keys overwritten",
            break_weights=lambda pipeline: fresh_keys(pipeline.transformer, (".to_k.weight",)),
        ),
        "queries": Sabotage(
            what="queries overwritten",
            break_weights=lambda pipeline: fresh_keys(pipeline.transformer, (".to_q.weight",)),
        ),
        "prompts": Sabotage(what="instructions shuffled", corrupt=shuffled("prompt")),
        "reordered": Sabotage(what="the reference's tokens in another order (harmless)", break_weights=reorder_tokens),
        "shift-target": Sabotage(what=f"targets shifted by {_SHIFT} px", corrupt=shift("target", _SHIFT)),
    },
)
