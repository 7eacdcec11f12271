"""Trains the shipped weights from scratch: `python -m i2am_debug.demo.pretrain`.

The recipe is fixed; only the seed, the number of steps and the output are arguments. The figures written beside the weights
are measured on 64 pairs that the training never draws.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from tqdm.auto import tqdm

from .model import LATENT_CHANNELS, ReferenceEncoder, denoising_loss, new_scheduler, new_unet
from .pairs import make_batch
from .pipeline import WEIGHTS

RECIPE: dict[str, Any] = {
    "optimizer": "AdamW",
    "learning_rate": 3e-3,
    "betas": [0.9, 0.99],
    "weight_decay": 1e-4,
    "warm_up_steps": 30,
    "final_learning_rate": 0.03,  # as a share of the highest, reached along a cosine
    "clip_norm": 1.0,
    "batch": 16,
    "hole_weight": 4.0,
    "timestep": "floor(1000 sqrt(U))",
}
HELD_OUT_SEED = 7
# Of the two seeds trained so far (0, 1) the one whose other layers look at the object too: G2R energy over all layers is
# 2.8 times chance, 2.2 with seed 0. In the copying layer both copy alike (3.1 and 3.0 times chance).
SHIPPED_SEED = 1


def train(steps: int, seed: int, *, progress: bool = True) -> tuple[nn.Module, nn.Module]:
    """Trains a fresh denoiser and reference encoder; returns both in evaluation mode."""
    torch.manual_seed(seed)
    unet, encoder = new_unet(), ReferenceEncoder()
    scheduler = new_scheduler()
    parameters = [*unet.parameters(), *encoder.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, RECIPE["learning_rate"], betas=tuple(RECIPE["betas"]), weight_decay=RECIPE["weight_decay"]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_up_then_cosine(step, steps))
    draws = torch.Generator().manual_seed(1000 + seed)
    bar = tqdm(range(steps), desc="pretrain", disable=not progress)
    for _ in bar:
        batch = make_batch(RECIPE["batch"], draws)
        noise = torch.randn(len(batch), LATENT_CHANNELS, 16, 16, generator=draws)
        timesteps = (1000 * torch.rand(len(batch), generator=draws).sqrt()).long().clamp(max=999)
        loss = denoising_loss(
            unet,
            encoder(batch.reference_B3SS),
            scheduler,
            batch.target_B3SS,
            batch.hole_B1SS,
            timesteps,
            noise,
            hole_weight=RECIPE["hole_weight"],
        ).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, RECIPE["clip_norm"])
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    return unet.eval(), encoder.eval()


@torch.no_grad()
def held_out_loss(unet: nn.Module, encoder: nn.Module) -> dict[str, float]:
    """Mean squared error on 64 held-out pairs with their own reference and with another pair's, same noise and times."""
    draws = torch.Generator().manual_seed(HELD_OUT_SEED)
    batch = make_batch(64, draws)
    noise = torch.randn(64, LATENT_CHANNELS, 16, 16, generator=draws)
    timesteps = torch.arange(64) * 1000 // 64 + 7

    def loss(reference: torch.Tensor) -> float:
        tokens, inputs = encoder(reference), (batch.target_B3SS, batch.hole_B1SS, timesteps, noise)
        return denoising_loss(unet, tokens, new_scheduler(), *inputs, hole_weight=0.0).mean().item()

    return {"right_reference": loss(batch.reference_B3SS), "wrong_reference": loss(batch.reference_B3SS.roll(1, 0))}


def save(unet: nn.Module, encoder: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Writes both modules' weights in float16 with `metadata`."""
    parts = {"unet": unet, "reference_encoder": encoder}
    tensors = {f"{n}.{k}": v.half().contiguous() for n, module in parts.items() for k, v in module.state_dict().items()}
    save_file(tensors, path, metadata=metadata)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m i2am_debug.demo.pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="training steps (default: 1000)")
    parser.add_argument(
        "--seed", type=int, default=SHIPPED_SEED, help="seed of weights and pairs (default: %(default)s)"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=WEIGHTS, help="where to write (default: the package's own)"
    )
    args = parser.parse_args(argv)
    unet, encoder = train(args.steps, args.seed)
    figures = held_out_loss(unet, encoder)
    metadata = {
        "recipe": json.dumps(RECIPE),
        "steps": str(args.steps),
        "seed": str(args.seed),
        "torch": torch.__version__.split("+")[0],
        "held_out_loss": json.dumps(figures),
    }
    save(unet, encoder, args.output, metadata)
    print(f"{args.output}: {args.output.stat().st_size / 2**20:.2f} MiB, held-out loss {figures}")


def _warm_up_then_cosine(step: int, steps: int) -> float:
    floor = RECIPE["final_learning_rate"]
    warm_up = min(1.0, (step + 1) / RECIPE["warm_up_steps"])
    return warm_up * (0.5 * (1 + math.cos(math.pi * step / steps)) * (1 - floor) + floor)


if __name__ == "__main__":
    main()
