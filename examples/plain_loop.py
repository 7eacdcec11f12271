"""The callback in a loop of PyTorch alone, with the loop's own writer and checkpoints.

python examples/plain_loop.py RUN_FOLDER [STEPS]    goes on from RUN_FOLDER/checkpoint.pt if there is one
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from i2am_debug.callbacks import I2AMPlainCallback
from torch.utils.tensorboard import SummaryWriter

from i2am_debug.demo.inpainting.model import denoising_loss
from i2am_debug.demo.inpainting.pairs import make_batch, validation_pairs
from i2am_debug.demo.inpainting.pipeline import load_tiny_pipeline
from i2am_debug.demo.pixel_vae import LATENT_CHANNELS


def main(folder: Path, steps: int = 20) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = load_tiny_pipeline(device=device)
    unet, checkpoint = pipeline.unet, folder / "checkpoint.pt"
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4)
    writer = SummaryWriter(str(folder))
    callback = I2AMPlainCallback(
        unet, pipeline=pipeline, pairs=validation_pairs(8, seed=7), every_n_steps=10, batch_size=8, writer=writer
    )

    begin = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=device)
        begin = saved["step"]
        unet.load_state_dict(saved["unet"])
        optimizer.load_state_dict(saved["optimizer"])
        callback.load_state_dict(saved["callback"])

    callback.on_train_begin(begin)
    unet.train()
    draws = torch.Generator().manual_seed(begin)
    for step in range(begin + 1, begin + steps + 1):
        batch = make_batch(8, draws)
        with torch.no_grad():
            tokens = pipeline.reference_encoder(batch.reference_B3SS.to(device))
        noise = torch.randn(8, LATENT_CHANNELS, 16, 16, device=device)
        timesteps = torch.randint(0, 1000, (8,), device=device)
        inputs = (pipeline.scheduler, batch.target_B3SS.to(device), batch.hole_B1SS.to(device), timesteps, noise)
        loss = denoising_loss(unet, tokens, *inputs, hole_weight=4.0).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        writer.add_scalar("loss", loss.item(), step)
        callback.on_step_end(step)
        if callback.should_stop:
            break
    callback.on_train_end(step)

    state = {"step": step, "unet": unet.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**state, "callback": callback.state_dict()}, checkpoint)
    writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/plain"), *map(int, sys.argv[2:3]))
