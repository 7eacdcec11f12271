"""The editing demo's model under the callback with nothing but pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from i2am_debug.callbacks import I2AMCallback

from i2am_debug.demo.demo_model import demo_model
from i2am_debug.demo.finetune import fine_tune, new_accelerator

PAIRS, STEPS, EVERY = 3, 4, 2


def watched(folder: Path, *, with_callback: bool = True) -> tuple[dict[str, Any], I2AMCallback | None]:
    """Fine-tunes for 4 steps; the state to compare bit by bit, and the callback."""
    set_seed(4)
    model = demo_model("edit")
    accelerator = new_accelerator(folder, "run")
    pipeline = model.load(device=accelerator.device)
    pipeline.set_progress_bar_config(disable=True)
    steps = fine_tune(accelerator, model, pipeline, steps=STEPS, seed=4)
    callback = None
    if with_callback:
        callback = I2AMCallback(
            accelerator,
            pipeline=pipeline,
            pairs=model.validation_pairs()[:PAIRS],
            every_n_steps=EVERY,
            pictures=1,
            on_error="raise",
            disable_progress_bar=True,
        )
        callback.on_train_begin(0)
    for step, _ in steps:
        if callback is not None:
            callback.on_step_end(step)
    if callback is not None:
        callback.on_train_end(STEPS)
    modules = [getattr(pipeline, part) for part in model.trained]
    state = {
        "weights": {f"{i}.{k}": v.clone() for i, m in enumerate(modules) for k, v in m.state_dict().items()},
        "random": torch.get_rng_state(),
        "training": [m.training for module in modules for m in module.modules()],
        "scheduler": {k: v for k, v in vars(pipeline.scheduler).items() if not isinstance(v, torch.Tensor)},
    }
    accelerator.end_training()
    return state, callback
