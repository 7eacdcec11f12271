"""The editing demo's model under the callback with nothing but pairs; also a script, for several processes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object, set_seed
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


def first_evaluation(folder: Path, report: Path) -> None:
    """Only looks, before any training; the main process writes what was found, and the forwards of each."""
    set_seed(4)
    model = demo_model("edit")
    accelerator = new_accelerator(folder, "run")
    pipeline = model.load(device=accelerator.device)
    pipeline.transformer = accelerator.prepare(pipeline.transformer).requires_grad_(True)
    pipeline.transformer = accelerator.unwrap_model(pipeline.transformer)
    forwards = [0]
    pipeline.transformer.register_forward_hook(lambda *_: forwards.__setitem__(0, forwards[0] + 1))
    callback = I2AMCallback(
        accelerator,
        pipeline=pipeline,
        pairs=model.validation_pairs()[:PAIRS],
        budget=0.02,
        pictures=1,
        on_error="raise",
    )
    callback.on_train_begin(0)
    evaluations = [callback.evaluate(1).to_json()]
    counts = gather_object([forwards[0]])
    ways = gather_object([callback.monitor.evaluator.chosen.name])
    if accelerator.is_main_process:
        report.write_text(json.dumps({"evaluations": evaluations, "forwards": counts, "ways": ways}))
    callback.on_train_end(1)
    accelerator.end_training()


if __name__ == "__main__":
    first_evaluation(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(0)  # freeing DDP's modules at the end can hang in gloo's destructor, which is not what is tested here
