"""Trains shipped weights from scratch: `python -m i2am_debug.demo.pretrain --model edit`.

The recipes are fixed; only the seed, the number of steps and the output are arguments. The figures written beside the weights
are measured on pairs that the training never draws.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from .demo_model import MODELS
from .recipe import Modules, Recipe
from .shipped_weights import save_weights


def train(
    recipe: Recipe,
    steps: int,
    seed: int,
    *,
    progress: bool = True,
    after_step: Callable[[int, Modules], None] | None = None,
) -> Modules:
    """Trains fresh modules; returns them in evaluation mode.

    Args:
        after_step: called with the global step, from 1, and the modules; touches no random state but its own.
    """
    torch.manual_seed(seed)
    modules, settings = recipe.new_modules(), recipe.settings
    parameters = [p for module in modules.values() for p in module.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, settings["learning_rate"], betas=tuple(settings["betas"]), weight_decay=settings["weight_decay"]
    )

    def warm_up_then_cosine(step: int) -> float:
        floor = settings["final_learning_rate"]
        warm_up = min(1.0, (step + 1) / settings["warm_up_steps"])
        return warm_up * (0.5 * (1 + math.cos(math.pi * step / steps)) * (1 - floor) + floor)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up_then_cosine)
    draws = torch.Generator().manual_seed(1000 + seed)
    bar = tqdm(range(steps), desc="pretrain", disable=not progress)
    for global_step in bar:
        loss = recipe.batch_loss(modules, draws)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, settings["clip_norm"])
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        if after_step is not None:
            after_step(global_step + 1, modules)
    return {name: module.eval() for name, module in modules.items()}


def recipe_of(model: str) -> Recipe:
    """The recipe of a model of `MODELS`."""
    return importlib.import_module(f"i2am_debug.demo.{model.replace('-', '_')}.pretraining").RECIPE


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m i2am_debug.demo.pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="inpainting", help="default: %(default)s")
    parser.add_argument("--steps", type=int, help="training steps (default: the recipe's)")
    parser.add_argument("--seed", type=int, help="seed of weights and pairs (default: that of the shipped weights)")
    parser.add_argument("-o", "--output", type=Path, help="where to write (default: the package's own)")
    args = parser.parse_args(argv)
    recipe = recipe_of(args.model)
    steps = recipe.steps if args.steps is None else args.steps
    seed = recipe.seed if args.seed is None else args.seed
    output = args.output or recipe.weights
    modules = train(recipe, steps, seed)
    figures = recipe.held_out(modules)
    metadata = {
        "recipe": json.dumps(dict(recipe.settings)),
        "steps": str(steps),
        "seed": str(seed),
        "torch": torch.__version__.split("+")[0],
        "held_out_loss": json.dumps(figures),
    }
    save_weights(modules, output, metadata)
    print(f"{output}: {output.stat().st_size / 2**20:.2f} MiB, held-out loss {figures}")


if __name__ == "__main__":
    main()
