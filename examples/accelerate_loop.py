"""The callback in a plain Accelerate loop: four lines are its own.

python examples/accelerate_loop.py RUN_FOLDER [STEPS]
"""

from __future__ import annotations

import sys

import torch
from accelerate import Accelerator
from i2am_debug.callbacks import I2AMCallback

from i2am_debug import ValidationPairs
from i2am_debug.demo.inpainting.model import denoising_loss
from i2am_debug.demo.inpainting.pairs import make_batch, validation_pairs
from i2am_debug.demo.inpainting.pipeline import load_tiny_pipeline
from i2am_debug.demo.pixel_vae import LATENT_CHANNELS


def main(folder: str, steps: int = 20) -> None:
    accelerator = Accelerator(log_with="tensorboard", project_dir=folder)
    accelerator.init_trackers("example")
    pipeline = load_tiny_pipeline(device=accelerator.device)
    optimizer = torch.optim.AdamW(pipeline.unet.parameters(), lr=1e-4)
    unet, optimizer = accelerator.prepare(pipeline.unet, optimizer)

    pairs: ValidationPairs = validation_pairs(8, seed=7)  # of your own: ValidationPairs.from_folder("val")
    # batch_size: pairs in one call, for pipelines that take several; budget=0.02 in place of every_n_steps spaces by cost
    callback = I2AMCallback(accelerator, pipeline=pipeline, pairs=pairs, every_n_steps=10, batch_size=8)
    callback.on_train_begin(0)

    unet.train()
    draws = torch.Generator().manual_seed(0)
    for step in range(1, steps + 1):
        batch = make_batch(8, draws)
        target, hole = batch.target_B3SS.to(accelerator.device), batch.hole_B1SS.to(accelerator.device)
        with torch.no_grad():
            tokens = pipeline.reference_encoder(batch.reference_B3SS.to(accelerator.device))
        noise = torch.randn(8, LATENT_CHANNELS, 16, 16, device=accelerator.device)
        timesteps = torch.randint(0, 1000, (8,), device=accelerator.device)
        inputs = (pipeline.scheduler, target, hole, timesteps, noise)
        loss = denoising_loss(unet, tokens, *inputs, hole_weight=4.0).mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        callback.on_step_end(step)

    callback.on_train_end(steps)
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs", *map(int, sys.argv[2:3]))
