"""An IP-Adapter of Stable Diffusion 1.5, watched: its own layers are trained, the UNet is not.

python examples/ip_adapter.py RUN_FOLDER [STEPS] --model FOLDER --adapter FOLDER --train FOLDER --val FOLDER [--every 100]

--model and --adapter are folders, or names on the Hugging Face hub (h94/IP-Adapter); --train and --val are folders of pairs
(docs/training-loops.md). Without --model, tiny random ones are made, which takes seconds on a CPU. The adapter is "full", whose
tokens have a place in the reference; `--weights ip-adapter_sd15.safetensors` is one whose 4 tokens have none, so that what
needs a place is undefined.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers import DDPMScheduler, StableDiffusionPipeline
from i2am_debug.callbacks import I2AMCallback
from safetensors.torch import save_file

from i2am_debug import ValidationPair, ValidationPairs


class Batch:
    """One pair, as the UNet takes it."""

    @torch.no_grad()
    def __init__(self, pipeline: Any, pair: ValidationPair, side: int) -> None:
        vae, device = pipeline.vae, pipeline.vae.device
        pixels = pipeline.image_processor.preprocess(pair.target, height=side, width=side).to(device)
        self.latents = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
        self.text, _ = pipeline.encode_prompt(pair.prompt or "", device, 1, do_classifier_free_guidance=False)
        self.reference = pipeline.prepare_ip_adapter_image_embeds([pair.reference], None, device, 1, False)


def loss_of(unet: Any, noising: DDPMScheduler, batch: Batch) -> torch.Tensor:
    """How far the predicted noise is from the true one, at a random noise time."""
    noise = torch.randn_like(batch.latents)
    time = torch.randint(noising.config.num_train_timesteps, (1,), device=noise.device)
    noised = noising.add_noise(batch.latents, noise, time)
    predicted = unet(noised, time, batch.text, added_cond_kwargs={"image_embeds": batch.reference}).sample
    return F.mse_loss(predicted, noise)


def adapter_layers(unet: Any) -> torch.nn.ModuleDict:
    """What the adapter adds to the UNet: its projection of the reference, and keys and values of each cross-attention."""
    of_attention = {n: p for n, p in unet.attn_processors.items() if isinstance(p, torch.nn.Module)}
    layers = {"projection": unet.encoder_hid_proj, **of_attention}
    return torch.nn.ModuleDict({name.replace(".", "_"): layer for name, layer in layers.items()})


def main(asked: argparse.Namespace) -> None:
    set_seed(0)
    accelerator = Accelerator(
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=str(asked.run), logging_dir=str(asked.run)),
    )
    accelerator.init_trackers("ip_adapter")

    pipeline = StableDiffusionPipeline.from_pretrained(asked.model, safety_checker=None)
    pipeline.load_ip_adapter(asked.adapter, subfolder="models", weight_name=asked.weights)
    pipeline.to(accelerator.device)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.image_encoder):
        part.requires_grad_(False)
    trained = adapter_layers(pipeline.unet).requires_grad_(True)
    # The whole UNet is prepared: it is what is called. Its own weights stand still.
    unet, optimizer = accelerator.prepare(pipeline.unet, torch.optim.AdamW(trained.parameters(), lr=1e-4))
    noising = DDPMScheduler.from_config(pipeline.scheduler.config)
    train = [Batch(pipeline, pair, asked.side) for pair in ValidationPairs.from_folder(asked.train)]

    callback = I2AMCallback(
        accelerator,
        pipeline=pipeline,
        pairs=ValidationPairs.from_folder(asked.val),
        every_n_steps=asked.every,
        batch_size=4,  # pairs at once; fewer where the memory that training leaves is too small
        size=(asked.side, asked.side),
    )
    callback.on_train_begin(0)
    unet.train()
    for step in range(1, asked.steps + 1):
        batch = train[int(torch.randint(len(train), (1,)))]
        accelerator.backward(loss_of(unet, noising, batch))
        optimizer.step()
        optimizer.zero_grad()
        callback.on_step_end(step)
        if callback.should_stop:
            break
    callback.on_train_end(step)

    if accelerator.is_main_process:
        save_file(trained.state_dict(), asked.run / "adapter.safetensors")
    accelerator.end_training()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("steps", type=int, nargs="?", default=20)
    parser.add_argument("--model")
    parser.add_argument("--adapter", default="h94/IP-Adapter")
    parser.add_argument("--weights", default="ip-adapter-full-face_sd15.safetensors")
    parser.add_argument("--train", type=Path)
    parser.add_argument("--val", type=Path)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--side", type=int, default=512)
    asked = parser.parse_args()
    if asked.model is None:
        from tiny_models import SIDE, save_all

        tiny = save_all(asked.run / "tiny_models")
        asked.model, asked.adapter = tiny / "sd15", tiny / "ip_adapter"
        asked.train, asked.val, asked.side = tiny / "train", tiny / "val", SIDE
    return asked


if __name__ == "__main__":
    main(arguments())
