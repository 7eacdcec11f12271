"""A LoRA of Flux Kontext, watched.

python examples/flux_kontext_lora.py RUN_FOLDER [STEPS] --model FOLDER --train FOLDER --val FOLDER [--every 100] [--side 512]

--model is a folder of `save_pretrained`, or a name on the Hugging Face hub; --train and --val are folders of pairs with prompts
(docs/training-loops.md). Without --model, tiny random ones are made, which takes seconds on a CPU. The whole of a real model is
kept on the device in bfloat16, text encoders included, some 35 GB, and activations on top.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers import FluxKontextPipeline
from diffusers.training_utils import cast_training_params
from i2am_debug.callbacks import I2AMCallback
from peft import LoraConfig, get_peft_model_state_dict

from i2am_debug import ValidationPair, ValidationPairs


class Batch:
    """One pair, as the transformer takes it: text, and latents in rows of patches with their places."""

    @torch.no_grad()
    def __init__(self, pipeline: Any, pair: ValidationPair, side: int) -> None:
        self.embeds, self.pooled, self.text_ids = pipeline.encode_prompt(pair.prompt or "", None)
        self.target, self.target_ids = self._latents(pipeline, pair.target, side)
        self.reference, self.reference_ids = self._latents(pipeline, pair.reference, side)
        self.reference_ids[:, 0] = 1  # by which the model tells the reference from what it makes

    @staticmethod
    def _latents(pipeline: Any, picture: Any, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        vae = pipeline.vae
        pixels = pipeline.image_processor.preprocess(picture, height=side, width=side).to(vae.device, vae.dtype)
        latents = (vae.encode(pixels).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor
        _, channels, height, width = latents.shape
        packed = pipeline._pack_latents(latents, 1, channels, height, width)
        return packed, pipeline._prepare_latent_image_ids(1, height // 2, width // 2, latents.device, latents.dtype)


def loss_of(transformer: Any, batch: Batch) -> torch.Tensor:
    """How far the predicted velocity is from the true one, at a random noise time."""
    noise = torch.randn_like(batch.target)
    time = torch.sigmoid(torch.randn(1, device=noise.device))
    noised = ((1 - time) * batch.target + time * noise).to(noise.dtype)
    predicted = transformer(
        hidden_states=torch.cat([noised, batch.reference], 1),
        timestep=time,
        guidance=torch.ones_like(time),
        pooled_projections=batch.pooled,
        encoder_hidden_states=batch.embeds,
        txt_ids=batch.text_ids,
        img_ids=torch.cat([batch.target_ids, batch.reference_ids]),
        return_dict=False,
    )[0][:, : noised.shape[1]]
    return F.mse_loss(predicted.float(), (noise - batch.target).float())


def main(asked: argparse.Namespace) -> None:
    set_seed(0)
    on_gpu = torch.cuda.is_available()
    accelerator = Accelerator(
        mixed_precision="bf16" if on_gpu else "no",
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=str(asked.run), logging_dir=str(asked.run)),
    )
    accelerator.init_trackers("kontext_lora")

    pipeline = FluxKontextPipeline.from_pretrained(asked.model, torch_dtype=torch.bfloat16 if on_gpu else torch.float32)
    pipeline.to(accelerator.device)
    for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        part.requires_grad_(False)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    pipeline.transformer.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=targets))
    cast_training_params(pipeline.transformer, torch.float32)
    if on_gpu:
        pipeline.transformer.enable_gradient_checkpointing()
    trained = [p for p in pipeline.transformer.parameters() if p.requires_grad]
    transformer, optimizer = accelerator.prepare(pipeline.transformer, torch.optim.AdamW(trained, lr=1e-4))
    train = [Batch(pipeline, pair, asked.side) for pair in ValidationPairs.from_folder(asked.train)]

    callback = I2AMCallback(
        accelerator,
        pipeline=pipeline,
        pairs=ValidationPairs.from_folder(asked.val),
        every_n_steps=asked.every,
        batch_size=4,  # pairs at once; fewer where the memory that training leaves is too small
        size=(asked.side, asked.side),  # as it is trained: at its own sizes it might look otherwise, and takes longer
    )
    callback.on_train_begin(0)
    transformer.train()
    for step in range(1, asked.steps + 1):
        batch = train[int(torch.randint(len(train), (1,)))]
        accelerator.backward(loss_of(transformer, batch))
        optimizer.step()
        optimizer.zero_grad()
        callback.on_step_end(step)
        if callback.should_stop:
            break
    callback.on_train_end(step)

    if accelerator.is_main_process:
        lora = get_peft_model_state_dict(accelerator.unwrap_model(transformer))
        FluxKontextPipeline.save_lora_weights(asked.run, transformer_lora_layers=lora)
    accelerator.end_training()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("steps", type=int, nargs="?", default=20)
    parser.add_argument("--model")
    parser.add_argument("--train", type=Path)
    parser.add_argument("--val", type=Path)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--side", type=int, default=512)
    asked = parser.parse_args()
    if asked.model is None:
        from tiny_models import SIDE, save_all

        tiny = save_all(asked.run / "tiny_models")
        asked.model, asked.train, asked.val, asked.side = tiny / "kontext", tiny / "train", tiny / "val", SIDE
    return asked


if __name__ == "__main__":
    main(arguments())
