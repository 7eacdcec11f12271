"""A small real training loop, used by several tests and, as a script, under `accelerate launch`."""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, gather_object, set_seed
from diffusers import UNet2DConditionModel
from i2am_debug.callbacks import I2AMCallback

from i2am_debug import CapturePlan, IMACSRegression, Rule, Rules, ValidationPairs
from i2am_debug.demo.inpainting.model import ReferenceEncoder, denoising_loss, new_scheduler, new_unet
from i2am_debug.demo.inpainting.pairs import PairBatch, make_batch, validation_pairs
from i2am_debug.demo.inpainting.pipeline import TinyExamplePipeline
from i2am_debug.demo.inpainting.training import teacher_forced
from i2am_debug.demo.pixel_vae import LATENT_CHANNELS
from i2am_debug.evaluation import probes


@contextmanager
def few_probes() -> Iterator[None]:
    """Two probes in place of all of them: enough where they are only something that runs, fails or must do no harm."""
    few = dict(itertools.islice(probes.PROBES.items(), 2))
    with mock.patch.dict(probes.PROBES, few, clear=True):
        yield


def untrained_pipeline(*, dropout: float = 0.0, seed: int = 0) -> TinyExamplePipeline:
    """The tiny model with random weights."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel.from_config({**new_unet().config, "dropout": dropout})
    pipeline = TinyExamplePipeline(unet, ReferenceEncoder(), new_scheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def new_accelerator(folder: Path, *, tracker: bool = True, **settings: Any) -> Accelerator:
    accelerator = Accelerator(
        cpu=True,
        **settings,
        log_with="tensorboard" if tracker else None,
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder)),
    )
    if tracker:
        accelerator.init_trackers("run")
    return accelerator


class Run:
    """One fine-tune of an untrained tiny model with dropout; everything that a checkpoint must hold."""

    def __init__(
        self, folder: Path, *, tracker: bool = True, adapt: Callable[[Run], None] = lambda run: None, **accelerator: Any
    ) -> None:
        set_seed(3)
        self.folder = folder
        self.accelerator = new_accelerator(folder, tracker=tracker, **accelerator)
        self.pipeline = untrained_pipeline(dropout=0.1)
        self.draws = torch.Generator().manual_seed(5)
        self.unet, self.encoder = self.pipeline.unet, self.pipeline.reference_encoder
        self.unet.train(), self.encoder.train()
        adapt(self)  # before anything is prepared
        both = dict.fromkeys([*self.unet.parameters(), *self.encoder.parameters()])  # which may share some
        optimizer = torch.optim.AdamW([p for p in both if p.requires_grad], lr=1e-3)
        self.unet, self.encoder, self.optimizer = self.accelerator.prepare(self.unet, self.encoder, optimizer)
        self.step = 0

    def callback(self, pairs: ValidationPairs | None = None, *, with_loss: bool = True, **changes: Any) -> I2AMCallback:
        arguments: dict[str, Any] = {
            "pipeline": self.pipeline,
            "pairs": validation_pairs(3, seed=11) if pairs is None else pairs,
            "every_n_steps": 10,
            "plan": CapturePlan(sampler_steps=2),
            "loss_fn": teacher_forced(self.pipeline) if with_loss else None,
            "num_inference_steps": 2,
            "batch_size": 2,
            "pictures": 0,
            "panels": 1,
            "on_error": "raise",
            "disable_progress_bar": True,
            "synchronous": True,
        }
        return I2AMCallback(self.accelerator, **{**arguments, **changes})

    def loss(self, batch: PairBatch | None = None) -> torch.Tensor:
        """Of a batch, or of one newly drawn."""
        batch = batch or make_batch(2, self.draws)
        noise = torch.randn(2, LATENT_CHANNELS, 16, 16)
        timesteps = torch.randint(0, 1000, (2,))
        tokens = self.encoder(batch.reference_B3SS)
        inputs = (self.pipeline.scheduler, batch.target_B3SS, batch.hole_B1SS, timesteps, noise)
        return denoising_loss(self.unet, tokens, *inputs, hole_weight=1.0).mean()

    def train(self, steps: int, callback: I2AMCallback | None = None) -> None:
        for _ in range(steps):
            self.accelerator.backward(self.loss())
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            if callback is not None:
                callback.on_step_end(self.step)

    def state(self) -> dict[str, Any]:
        """Weights, optimizer state, random states and modes, to compare bit by bit."""
        modules = {"unet": self.pipeline.unet, "encoder": self.pipeline.reference_encoder}
        return {
            "weights": {f"{n}.{k}": v.clone() for n, m in modules.items() for k, v in m.state_dict().items()},
            "optimizer": self.optimizer.state_dict()["state"],
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state()[1].tolist(),
            "python": random.getstate(),
            "training": [m.training for module in modules.values() for m in module.modules()],
            "scheduler": {k: v for k, v in vars(self.pipeline.scheduler).items() if not isinstance(v, torch.Tensor)},
        }


def _how_an_alert_ends(run: Run) -> list[Any]:
    """Whether a critical alert reached this process: as an error, and as the wish to stop."""
    loud = Rule(name="loud", kind="ceiling", figure="loss", limit=0.0, severity="critical")
    callback = run.callback(rules=Rules(rules=(loud,)), fail_on="critical", on_error="warn", every_n_steps=20)
    try:
        callback.on_step_end(20)
    except IMACSRegression as error:
        return [str(error).splitlines()[0], callback.should_stop]
    return [None, callback.should_stop]


def evaluate_and_report(folder: Path, report: Path) -> Run:
    """One evaluation and one that is due inside `on_step_end`, on however many processes; the main one writes `report`."""
    run = Run(folder)
    forwards = [0]
    run.pipeline.unet.register_forward_hook(lambda *_: forwards.__setitem__(0, forwards[0] + 1))
    callback = run.callback()
    evaluation = callback.evaluate(0)
    callback.on_step_end(9)  # not due
    callback.on_step_end(10)
    counts = gather_object([forwards[0]])
    wrote = gather_object([callback.monitor.reporter._store is not None])
    steps = gather_object([evaluation.global_step])
    callback.on_train_end(10)  # evaluated already
    evaluations = [e.to_json() for e in callback.history()]
    ends = gather_object([_how_an_alert_ends(run)])
    if run.accelerator.is_main_process:
        report.write_text(
            json.dumps(
                {
                    "evaluations": evaluations,
                    "ends": ends,
                    "forwards": counts,
                    "wrote": wrote,
                    "returned": steps,
                }
            )
        )
    run.accelerator.end_training()
    return run


if __name__ == "__main__":
    kept = evaluate_and_report(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(0)  # freeing DDP's modules at the end can hang in gloo's destructor, which is not what is tested here
