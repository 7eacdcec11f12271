"""The fine-tunes that `benchmarks.alerts` judges: one folder a run, made once.

In each, two callbacks look at the same model: one at the clean validation pairs, one at pairs with the same fault as the
training data, as a validation set has that comes out of the same broken loader. A run ends some evaluations after its fault.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from i2am_debug.pairs.collection import ValidationPairs
from i2am_debug.pairs.pair import ValidationPair

HEALTHY_STEPS = 72
GRADUAL_STEPS = 128
GROWING = ("gradual",)
"""Kinds whose fault begins small."""
EVALUATIONS_AFTER = 4  # an abrupt fault's; a later alert counts as none
_EARLIEST, _LATEST = 16, 40  # step after which an abrupt fault begins
_PROBE_STEPS = 5  # of the sampler, to measure the pictures


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One fine-tune."""

    kind: str
    """A name of `SABOTAGES`, "healthy", "healthy-decay", "shuffle-from-0" or "encoder-from-0"."""
    seed: int

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.seed}"

    @property
    def sabotage(self) -> str | None:
        name = self.kind.removesuffix("-from-0")
        return None if name.startswith("healthy") else name

    @property
    def sabotage_step(self) -> int | None:
        """Optimizer steps before the fault; None for a healthy run, 0 where the model is broken when it is loaded."""
        if self.sabotage is None:
            return None
        if self.kind.endswith("-from-0"):
            return 0
        if self.kind == "gradual":
            return 16
        return random.Random(self.name).randint(_EARLIEST, _LATEST)

    @property
    def steps(self) -> int:
        from i2am_debug.demo.finetune import EVERY

        if self.sabotage_step is None:
            return HEALTHY_STEPS
        if self.kind == "gradual":
            return GRADUAL_STEPS
        return (self.sabotage_step // EVERY + EVALUATIONS_AFTER) * EVERY


def wrong_share(plan: Plan, global_step: int) -> float:
    """Of the training pairs, after so many steps; 0 before the fault and where it is none of the data."""
    from i2am_debug.demo.finetune import EVERY
    from i2am_debug.demo.sabotage import SABOTAGES

    begin = plan.sabotage_step
    if begin is None or plan.sabotage is None or global_step <= begin:
        return 0.0
    fault = SABOTAGES[plan.sabotage]
    return min(1.0, fault.share + fault.growth * ((global_step - 1 - begin) // EVERY)) if fault.corrupt else 0.0


def kinds() -> list[str]:
    from i2am_debug.demo.sabotage import SABOTAGES

    return ["healthy", "healthy-decay", *SABOTAGES, "shuffle-from-0", "encoder-from-0"]


def make_runs(plans: list[Plan], folder: Path, workers: int) -> Iterator[Plan]:
    """Makes what is missing, one thread a worker; yields each plan when its run is there."""
    missing = [p for p in plans if not (folder / p.name / "done.json").is_file()]
    yield from (p for p in plans if p not in missing)
    with ProcessPoolExecutor(max_workers=workers) as pool:
        yield from pool.map(_make, missing, [folder] * len(missing))


def _make(plan: Plan, folder: Path) -> Plan:
    import logging
    import shutil

    import torch
    from accelerate.utils import set_seed

    from i2am_debug.demo.finetune import demo_pairs, fine_tune, new_accelerator, new_callback
    from i2am_debug.demo.pipeline import load_tiny_pipeline
    from i2am_debug.demo.sabotage import SABOTAGES, Sabotage, break_encoder

    torch.set_num_threads(1)
    logging.getLogger("i2am_debug").setLevel(logging.CRITICAL + 1)
    shutil.rmtree(folder / plan.name, ignore_errors=True)  # of a run that was cut off
    set_seed(plan.seed)
    accelerator = new_accelerator(folder, plan.name)
    pipeline = load_tiny_pipeline()
    sabotage = SABOTAGES[plan.sabotage] if plan.sabotage else None
    if plan.kind == "encoder-from-0":
        break_encoder(pipeline.reference_encoder)
    training = fine_tune(
        accelerator,
        pipeline,
        steps=plan.steps,
        seed=plan.seed,
        sabotage=sabotage,
        sabotage_step=plan.sabotage_step,
        decay=plan.kind == "healthy-decay",
    )
    pairs = demo_pairs()
    settings: dict[str, Any] = {"disable_progress_bar": True, "pictures": 0, "panels": 0, "keep_matrices": 1}
    callbacks = [new_callback(accelerator, pipeline, pairs, **settings)]
    if isinstance(sabotage, Sabotage) and sabotage.corrupt is not None:
        spoilt = new_accelerator(folder / plan.name, "spoilt")
        callbacks.append(new_callback(spoilt, pipeline, spoil_pairs(pairs, sabotage, plan.seed), **settings))
    psnr = {0: hole_psnr(pipeline, pairs)}
    for callback in callbacks:
        callback.on_train_begin(0)
    for step, _ in training:
        for callback in callbacks:
            callback.on_step_end(step)
        if step % callbacks[0].monitor.settings.every_n_steps == 0:
            psnr[step] = hole_psnr(pipeline, pairs)
    for callback in callbacks:
        callback.on_train_end(plan.steps)
        callback.accelerator.end_training()
    (folder / plan.name / "done.json").write_text(json.dumps({"psnr": psnr}))
    return plan


def spoil_pairs(pairs: ValidationPairs, sabotage: Any, seed: int) -> ValidationPairs:
    """The pairs as the broken loader would give them, every one of them where the fault grows."""
    import torch

    def tensor(picture: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(picture, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1)

    def picture(image: torch.Tensor) -> Image.Image:
        return Image.fromarray(((image + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())

    clean = {
        "target": torch.stack([tensor(p.target) for p in pairs]),
        "reference": torch.stack([tensor(p.reference) for p in pairs]),
        "hole": torch.stack([torch.from_numpy(p.mask)[None].float() for p in pairs]),
    }
    wrong = sabotage.spoil(clean, 0 if not sabotage.growth else 10**6, torch.Generator().manual_seed(seed))
    return ValidationPairs(
        [
            ValidationPair(
                name=pair.name,
                target=pair.target,
                reference=picture(wrong["reference"][i]),
                mask=wrong["hole"][i, 0].numpy() > 0.5,
                reference_mask=pair.reference_mask,
            )
            for i, pair in enumerate(pairs)
        ]
    )


def hole_psnr(pipeline: Any, pairs: ValidationPairs) -> float:
    """Mean over pairs of the peak signal-to-noise ratio inside the hole, dB; touches no random state but its own."""
    import torch

    training = pipeline.unet.training, pipeline.reference_encoder.training
    pipeline.unet.eval(), pipeline.reference_encoder.eval()
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        image=[p.target for p in pairs],
        mask_image=[p.mask_image for p in pairs],
        example_image=[p.reference for p in pairs],
        num_inference_steps=_PROBE_STEPS,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    pipeline.unet.train(training[0]), pipeline.reference_encoder.train(training[1])
    errors = [
        float(((image - np.asarray(pair.target) / 255)[pair.mask] ** 2).mean())
        for image, pair in zip(made, pairs, strict=True)
    ]
    return float(np.mean(-10 * np.log10(errors)))
