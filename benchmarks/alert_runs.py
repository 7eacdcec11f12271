"""The fine-tunes that `benchmarks.alerts` judges: one folder a run, made once.

In each, a callback that was told nothing but a pipeline and pairs looks at the model. With `every_way` two more look at the
same: one with the model's own loss function, and one at pairs with the same fault as the training data, as a validation set has
that comes out of the same broken loader ("spoilt"). A run ends some evaluations after its fault.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from i2am_debug.demo.sabotage import Batch, Sabotage
from i2am_debug.pairs.collection import ValidationPairs

HEALTHY_STEPS = 72
GRADUAL_STEPS = 128
GROWING = ("gradual", "gradual-drop")
"""Kinds whose fault begins small."""
HARMLESS = ("reordered",)
"""Kinds that change what the attention looks like, and nothing that the model makes."""
EVALUATIONS_AFTER = 2  # an abrupt fault's
_EARLIEST, _LATEST = 12, 32  # step after which an abrupt fault begins
_LORA_RATE = 3e-3


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a fine-tune differs from the usual one, beside its fault."""

    decay: bool = False
    """A learning rate that falls to nothing instead of a constant one."""
    lora: bool = False
    """Low-rank adapters of the denoiser's attention are trained instead of all weights."""
    rate: float = 1.0
    """Factor of the learning rate."""
    batch_size: int | None = None
    mixed_precision: str = "no"
    data: Sabotage | None = None
    """What all training data is like from the start."""
    pairs_too: bool = False
    """Whether the validation pairs are so too."""
    stale: bool = False
    """The pipeline that is evaluated is a copy of that which is trained."""


def _invert(batch: Batch, generator: Any) -> Batch:
    return {**batch, "target": -batch["target"], "reference": -batch["reference"]}


def _drop(batch: Batch, generator: Any) -> Batch:
    return {**batch, "reference": 0 * batch["reference"]}


SETTINGS: dict[str, Setting] = {
    "healthy": Setting(),
    "healthy-decay": Setting(decay=True),
    "healthy-dropout": Setting(data=Sabotage(what="10 % of the references dropped", corrupt=_drop, share=0.1)),
    "healthy-domain": Setting(data=Sabotage(what="colours inverted", corrupt=_invert), pairs_too=True),
    "healthy-batch-2": Setting(batch_size=2),
    "healthy-batch-24": Setting(batch_size=24),
    "healthy-lora": Setting(lora=True),
    "healthy-lora-slow": Setting(lora=True, rate=0.1),
    "healthy-bf16": Setting(mixed_precision="bf16"),
    "stale": Setting(stale=True),
    "shuffle-lora": Setting(lora=True),
}
"""Kind → how its fine-tune is set; the others are all as usual."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One fine-tune."""

    model: str
    """A name of `demo_model.MODELS`."""
    kind: str
    """One of `kinds(model)`."""
    seed: int

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.seed}"

    def run(self, folder: Path) -> Path:
        """Where it is kept."""
        return folder / self.model / self.name

    @property
    def setting(self) -> Setting:
        return SETTINGS.get(self.kind, Setting())

    @property
    def sabotage(self) -> str | None:
        """Name of the fault, one of `DemoModel.sabotages`."""
        name = self.kind.removesuffix("-from-0").removesuffix("-lora")
        return None if name.startswith("healthy") or name == "stale" else name

    @property
    def sabotage_step(self) -> int | None:
        """Optimizer steps before the fault; None for a healthy run, 0 where the model is broken when it is loaded."""
        if self.kind == "stale" or self.kind.endswith("-from-0"):
            return 0
        if self.sabotage is None:
            return None
        if self.kind in GROWING:
            return 16
        return random.Random(self.name).randint(_EARLIEST, _LATEST)

    @property
    def steps(self) -> int:
        from i2am_debug.demo.finetune import EVERY

        if self.sabotage_step is None:
            return HEALTHY_STEPS
        if self.kind in GROWING:
            return GRADUAL_STEPS
        return (self.sabotage_step // EVERY + EVALUATIONS_AFTER) * EVERY


def wrong_share(plan: Plan, global_step: int) -> float:
    """Of the training pairs, after so many steps; 0 before the fault and where it is none of the data."""
    from i2am_debug.demo.demo_model import demo_model
    from i2am_debug.demo.finetune import EVERY

    begin = plan.sabotage_step
    if begin is None or plan.sabotage is None or global_step <= begin:
        return 0.0
    fault = demo_model(plan.model).sabotages[plan.sabotage]
    return min(1.0, fault.share + fault.growth * ((global_step - 1 - begin) // EVERY)) if fault.corrupt else 0.0


def kinds(model: str) -> list[str]:
    """Healthy runs, each fault, and those that are there before the first evaluation."""
    from i2am_debug.demo.demo_model import demo_model

    faults = demo_model(model).sabotages
    in_weights = [name for name in ("encoder", "attention") if name in faults]
    return [*SETTINGS, *faults, *(f"{name}-from-0" for name in ("shuffle", *in_weights))]


def make_runs(plans: list[Plan], folder: Path, workers: int, *, every_way: bool = False) -> Iterator[Plan]:
    """Makes what is missing, one thread a worker; yields each plan when its run is there."""
    missing = [p for p in plans if not (p.run(folder) / "done.json").is_file()]
    yield from (p for p in plans if p not in missing)
    # Not forked: autograd's threads do not survive it in a program that has used them.
    with ProcessPoolExecutor(max_workers=workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(partial(_make, folder=folder, every_way=every_way), missing)


def _make(plan: Plan, folder: Path, every_way: bool) -> Plan:
    import copy
    import logging
    import shutil

    import torch
    from accelerate.utils import set_seed
    from i2am_debug.callbacks import I2AMCallback

    from i2am_debug.demo.demo_model import demo_model
    from i2am_debug.demo.finetune import EVERY, fine_tune, new_accelerator, new_callback

    torch.set_num_threads(1)
    logging.getLogger("i2am_debug").setLevel(logging.CRITICAL + 1)
    run, setting = plan.run(folder), plan.setting
    shutil.rmtree(run, ignore_errors=True)  # of a run that was cut off
    set_seed(plan.seed)
    accelerator = new_accelerator(run.parent, plan.name, mixed_precision=setting.mixed_precision)
    model = demo_model(plan.model)
    pipeline = model.load(device=accelerator.device)
    pipeline.set_progress_bar_config(disable=True)
    sabotage = model.sabotages[plan.sabotage] if plan.sabotage else setting.data
    if sabotage is not None and sabotage.break_weights is not None and plan.sabotage_step == 0:
        sabotage.break_weights(pipeline)
    if setting.lora:
        _add_lora(pipeline)
    looked_at = copy.deepcopy(pipeline) if setting.stale else pipeline
    training = fine_tune(
        accelerator,
        model,
        pipeline,
        steps=plan.steps,
        seed=plan.seed,
        sabotage=sabotage,
        sabotage_step=0 if setting.data is not None else plan.sabotage_step,
        decay=setting.decay,
        learning_rate=setting.rate * (_LORA_RATE if setting.lora else model.learning_rate),
        batch_size=setting.batch_size,
    )
    pairs = model.validation_pairs()
    if setting.data is not None and setting.pairs_too:
        pairs = spoil_pairs(pairs, setting.data, plan.seed)
    kept: dict[str, Any] = {"disable_progress_bar": True, "pictures": 0, "panels": 0, "keep_matrices": 1}
    bare = I2AMCallback(
        accelerator,
        pipeline=looked_at,
        pairs=pairs,
        every_n_steps=EVERY,
        batch_size=len(pairs),
        on_error="raise",
        **kept,
    )
    _look_closer_every_time(bare)
    callbacks = [bare]
    if every_way:
        kept["loss_fn"] = model.loss_fn(looked_at)
        callbacks.append(new_callback(new_accelerator(run, "loss_fn"), model, looked_at, pairs=pairs, **kept))
        if sabotage is not None and sabotage.corrupt is not None:
            wrong = spoil_pairs(pairs, sabotage, plan.seed)
            callbacks.append(new_callback(new_accelerator(run, "spoilt"), model, looked_at, pairs=wrong, **kept))
    psnr = {0: quality(model, looked_at, pairs)}
    for callback in callbacks:
        callback.on_train_begin(0)
    for step, _ in training:
        for callback in callbacks:
            callback.on_step_end(step)
        if step % EVERY == 0 and step > (plan.sabotage_step or 0):
            psnr[step] = quality(model, looked_at, pairs)
    for callback in callbacks:
        callback.on_train_end(plan.steps)
        callback.accelerator.end_training()
    (run / "done.json").write_text(json.dumps({"psnr": psnr}))
    return plan


def _look_closer_every_time(callback: Any) -> None:
    """Probes at every evaluation, so that a diagnosis can be tried at each of them."""
    reporter = callback.monitor.reporter
    judge = reporter.judge
    reporter.judge = lambda evaluation, observations: judge(evaluation, observations) or True


def _add_lora(pipeline: Any) -> None:
    from peft import LoraConfig

    from i2am_debug.capture.trace import find_denoiser

    for component in pipeline.components.values():
        if hasattr(component, "requires_grad_"):
            component.requires_grad_(False)
    find_denoiser(pipeline).add_adapter(
        LoraConfig(r=8, lora_alpha=8, init_lora_weights="gaussian", target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    )


def spoil_pairs(pairs: ValidationPairs, sabotage: Any, seed: int) -> ValidationPairs:
    """The pairs as the broken loader would give them, every one of them where the fault grows."""
    import torch

    def tensor(picture: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(picture, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1)

    def picture(image: torch.Tensor) -> Image.Image:
        return Image.fromarray(((image + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())

    clean: dict[str, Any] = {
        "target": torch.stack([tensor(p.target) for p in pairs]),
        "reference": torch.stack([tensor(p.reference) for p in pairs]),
    }
    if pairs[0].mask is not None:
        clean["hole"] = torch.stack([torch.from_numpy(p.mask)[None].float() for p in pairs])
    wrong = sabotage.spoil(clean, 0 if not sabotage.growth else 10**6, torch.Generator().manual_seed(seed))
    return ValidationPairs(
        [
            replace(
                pair,
                target=picture(wrong["target"][i]),
                reference=picture(wrong["reference"][i]),
                mask=wrong["hole"][i, 0].numpy() > 0.5 if "hole" in wrong else None,
            )
            for i, pair in enumerate(pairs)
        ]
    )


def quality(model: Any, pipeline: Any, pairs: ValidationPairs) -> float:
    """Of the pictures that the model makes now, dB; leaves it training."""
    modules = [getattr(pipeline, name) for name in model.trained]
    for module in modules:
        module.eval()
    found = model.quality(pipeline, pairs)
    for module in modules:
        module.train()
    return found
