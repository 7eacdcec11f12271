"""Inpainting models of three designs, trained from scratch and looked at on the way: what `inpainting` reads.

`python -m benchmarks.evidence.from_scratch --folder F [--seeds N …] [--processes N]` makes what is missing in F. A training
takes four to five minutes of one core; more than one on a core at once, longer.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from torch import nn

from i2am_debug.capture.plan import CapturePlan
from i2am_debug.demo.inpainting.model import ReferenceEncoder, new_scheduler, new_unet
from i2am_debug.demo.inpainting.pipeline import TinyExamplePipeline
from i2am_debug.demo.inpainting.pretraining import RECIPE
from i2am_debug.demo.pretrain import train
from i2am_debug.demo.recipe import Modules
from i2am_debug.errors import UndefinedFigure
from i2am_debug.figures.record import Evaluation
from i2am_debug.figures.scores import IMACSSettings, score_imacs
from i2am_debug.figures.values import Figure, Undefined, figure_from_json, figure_to_json, name_from_json

from .looked_at import held_out, look
from .picture_quality import sampled_quality
from .sizes import LONG, Sizes

READ_OFF = (
    "imacs_g",
    "imacs_g_centred",
    "imacs_g_object_mass",
    "imacs_r",
    "imacs_r_hole",
    "energy_r_hole",
    "attention_information",
    "reference_gap",
    "blank_gap",
    "loss",
)
"""Figures of an evaluation whose means over pairs are kept as they are."""
_FIRST = 0.075  # share of the steps at which the first checkpoint is looked at; before it pictures are noise


class OneTokenEncoder(ModelMixin, ConfigMixin):
    """All of a reference in one token, as a CLIP's class token has it: the patch tokens of the shipped design, pooled."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.tokens = ReferenceEncoder(width)
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pool = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        tokens = self.tokens(picture)
        return self.norm(self.pool(self.query.expand(len(tokens), -1, -1), tokens, tokens, need_weights=False)[0])


def without_positions() -> ReferenceEncoder:
    """The shipped design, but no token knows where in the reference it is."""
    encoder = ReferenceEncoder()
    encoder.positions.requires_grad_(False).zero_()
    return encoder


DESIGNS: Mapping[str, Callable[[], nn.Module]] = {
    "one_token": OneTokenEncoder,
    "no_positions": without_positions,
    "patch_tokens": ReferenceEncoder,
}
"""Name → the fresh reference encoder; all else is alike. The last is the refined one."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What was seen at one step of a training; means over the held-out pairs."""

    global_step: int
    figures: Mapping[str, Figure]
    """Of `READ_OFF`, "copying_layer" (IMACS_r of the hole in the layer of most attention information at this step), and
    "imacs_g_authors", "imacs_r_authors" (the authors' code)."""
    quality: Mapping[str, float]
    """Of `picture_quality.QUALITIES`."""
    layer: str | Undefined
    """The copying layer's name."""

    def to_json(self) -> dict[str, Any]:
        figures = {tag: figure_to_json(value) for tag, value in self.figures.items()}
        return {**vars(self), "figures": figures, "quality": dict(self.quality), "layer": figure_to_json(self.layer)}

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Checkpoint:
        figures = {tag: figure_from_json(value, tag) for tag, value in kept["figures"].items()}
        return cls(**{**kept, "figures": figures, "layer": name_from_json(kept["layer"], "layer")})


@dataclass(frozen=True, kw_only=True)
class Training:
    """One of a design with a seed."""

    design: str
    """A name of `DESIGNS`."""
    seed: int
    sizes: Sizes

    def file(self, folder: Path) -> Path:
        """What is kept of it: one line a checkpoint. Other sizes are other trainings."""
        return (
            folder / f"{self.sizes.trained_steps}_steps_{self.sizes.pairs}_pairs" / f"{self.design}_{self.seed}.jsonl"
        )

    @property
    def looked_at(self) -> list[int]:
        """Global steps, each as many times the one before."""
        last = self.sizes.trained_steps
        return np.geomspace(max(1, _FIRST * last), last, self.sizes.checkpoints).round().astype(int).tolist()

    def kept(self, folder: Path) -> list[Checkpoint] | None:
        """None where it was not made to its end."""
        file = self.file(folder)
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        found = [Checkpoint.from_json(json.loads(line)) for line in lines]
        return found if [one.global_step for one in found] == self.looked_at else None

    def make(self, folder: Path) -> None:
        torch.set_num_threads(1)
        file, started, found = self.file(folder), time.monotonic(), []
        file.parent.mkdir(parents=True, exist_ok=True)

        def after_step(global_step: int, modules: Modules) -> None:
            if global_step not in self.looked_at:
                return
            found.append(seen(global_step, modules, self.sizes.pairs))
            lines = [json.dumps(one.to_json()) + "\n" for one in found]
            file.write_text("".join(lines), encoding="utf-8")
            told = f"{found[-1].quality['psnr_hole']:.2f} dB, {time.monotonic() - started:.0f} s"
            print(f"{self.design} {self.seed}, step {global_step}: {told}", flush=True)

        train(self.recipe, self.sizes.trained_steps, self.seed, progress=False, after_step=after_step)

    @property
    def recipe(self) -> Any:
        encoder = DESIGNS[self.design]
        return replace(RECIPE, new_modules=lambda: {"unet": new_unet(), "reference_encoder": encoder()})


def made(sizes: Sizes, folder: Path) -> dict[str, list[list[Checkpoint]]]:
    """Design → the checkpoints of each seed; makes what is missing."""
    plans = [Training(design=d, seed=s, sizes=sizes) for s in sizes.trained_seeds for d in DESIGNS]
    _make([plan for plan in plans if plan.kept(folder) is None], folder, sizes.processes or os.cpu_count() or 1)
    return {design: [plan.kept(folder) or [] for plan in plans if plan.design == design] for design in DESIGNS}


def _make(plans: list[Training], folder: Path, processes: int) -> None:
    if processes == 1:
        for plan in plans:
            plan.make(folder)
    elif plans:
        spawned = get_context("spawn")
        with ProcessPoolExecutor(min(processes, len(plans)), mp_context=spawned, initializer=_say_nothing) as pool:
            for done in [pool.submit(plan.make, folder) for plan in plans]:
                done.result()


def _say_nothing() -> None:
    """In a process of its own: warnings of many trainings would hide how far they are."""
    logging.getLogger("i2am_debug").setLevel(logging.CRITICAL + 1)


def seen(global_step: int, modules: Modules, pairs: int) -> Checkpoint:
    """The modules as they are now, on held-out pairs; leaves them training."""
    shown = held_out("inpainting", pairs, seed=0)
    pipeline = TinyExamplePipeline(modules["unet"].eval(), modules["reference_encoder"].eval(), new_scheduler())
    evaluator, observations = look("inpainting", shown, pipeline, plan=CapturePlan(heads=None))
    evaluation = evaluator.score(observations, global_step=global_step, pipeline=pipeline, baseline=None)
    figures = {tag: evaluation.mean(tag) for tag in READ_OFF}
    figures["copying_layer"] = _of_copying_layer(evaluation)
    for tag, direction in (("imacs_g_authors", "r2g"), ("imacs_r_authors", "g2r")):
        plain = evaluation.mean(tag.removesuffix("_authors"))
        figures[tag] = plain if isinstance(plain, Undefined) else _as_authors(observations, shown, direction)
    checkpoint = Checkpoint(
        global_step=global_step,
        figures=figures,
        quality=sampled_quality(pipeline, shown),
        layer=evaluation.copying_layer,
    )
    for module in modules.values():
        module.train()
    return checkpoint


def _of_copying_layer(evaluation: Evaluation) -> Figure:
    layer = evaluation.copying_layer
    return layer if isinstance(layer, Undefined) else evaluation.mean(f"layer/{layer}/imacs_r_hole")


def _as_authors(observations: list[Any], pairs: Any, direction: str) -> float:
    scores = []
    for one in observations:
        pair = pairs[one.index]
        region = pair.mask if direction == "r2g" else pair.reference_mask
        try:
            map = getattr(one.maps, direction).unified
            scores.append(score_imacs(map, region, IMACSSettings.authors(direction)))
        except UndefinedFigure:
            continue
    return float(np.mean(scores))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence.from_scratch", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--folder", type=Path, required=True, help="where the trainings are kept")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: all of the evidence")
    parser.add_argument("--processes", type=int, help="that train at once (default: one a core)")
    args = parser.parse_args(argv)
    found = made(
        replace(LONG, trained_seeds=tuple(args.seeds or LONG.trained_seeds), processes=args.processes), args.folder
    )
    print(f"{sum(map(len, found.values()))} trainings in {args.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
