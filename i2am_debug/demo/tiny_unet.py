"""What the tiny UNets, which read a reference through cross-attention, have in common, and what can break in all of them.

Their pipelines have a `unet`, a `reference_encoder` that ends in a LayerNorm called `norm`, and a `scheduler`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from torch import nn

from .sabotage import Sabotage, forget, fresh_keys


def new_scheduler() -> DDIMScheduler:
    """1000 noise times, predicts the sample, trailing spacing with zero terminal signal-to-noise ratio."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=True,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )


def start_larger(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Makes fresh queries and keys of the cross-attention 2.5 times larger, so that copying appears earlier."""
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if name.endswith(("attn2.to_q.weight", "attn2.to_k.weight")):
                weight.mul_(2.5)
    return unet


def noise_times(count: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Of a training batch, (B,) in 0 … 999: more often much noise than little."""
    return (1000 * torch.rand(count, generator=generator).sqrt()).long().clamp(max=999)


def denoise(
    pipeline: Any,
    latents: torch.Tensor,
    tokens: torch.Tensor,
    seen: Callable[[torch.Tensor], torch.Tensor],
    num_inference_steps: int,
    callback_on_step_end: Callable[[Any, int, torch.Tensor, dict], dict] | None = None,
    callback_on_step_end_tensor_inputs: list[str] | None = None,
) -> torch.Tensor:
    """Samples with the pipeline's scheduler from noise (B, C, h, w); `seen` makes the UNet's input of the latents."""
    pipeline.scheduler.set_timesteps(num_inference_steps, device=latents.device)
    with pipeline.progress_bar(total=num_inference_steps) as progress:
        for i, t in enumerate(pipeline.scheduler.timesteps):
            predicted = pipeline.unet(seen(latents), t, tokens).sample
            latents = pipeline.scheduler.step(predicted, t, latents).prev_sample
            if callback_on_step_end is not None:
                names = callback_on_step_end_tensor_inputs or ["latents"]
                changed = callback_on_step_end(pipeline, i, t, {n: {"latents": latents}[n] for n in names})
                latents = changed.pop("latents", latents)
            progress.update()
    return latents


def faults(new_encoder: Callable[[], nn.Module], reference_grid: int) -> dict[str, Sabotage]:
    """What can break between reference and attention, by the name that the command line takes.

    `new_encoder()` makes an encoder with fresh weights, whose tokens are `reference_grid` squared.
    """

    def break_encoder(pipeline: DiffusionPipeline) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            forget(pipeline.reference_encoder, new_encoder())

    def dim_encoder(pipeline: DiffusionPipeline) -> None:
        with torch.no_grad():
            for parameter in pipeline.reference_encoder.norm.parameters():
                parameter.mul_(0.3)

    def reorder_tokens(pipeline: DiffusionPipeline) -> None:
        order = torch.randperm(reference_grid**2, generator=torch.Generator().manual_seed(0))
        pipeline.reference_encoder.register_forward_hook(lambda module, inputs, tokens: tokens[:, order])

    def overwrite(projection: str) -> Callable[[DiffusionPipeline], None]:
        return lambda pipeline: fresh_keys(pipeline.unet, (f"attn2.{projection}.weight",))

    return {
        "encoder": Sabotage(what="reference encoder random and frozen", break_weights=break_encoder),
        "encoder-dim": Sabotage(what="what the reference encoder gives scaled × 0.3", break_weights=dim_encoder),
        "keys": Sabotage(what="keys of the cross-attention overwritten", break_weights=overwrite("to_k")),
        "queries": Sabotage(what="queries of the cross-attention overwritten", break_weights=overwrite("to_q")),
        "reordered": Sabotage(what="the reference's tokens in another order (harmless)", break_weights=reorder_tokens),
    }
