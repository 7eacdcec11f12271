"""Tiny models with random weights, in folders as real ones lie in, and a few editing pairs: to try commands and examples with.

python examples/tiny_models.py FOLDER   writes FOLDER/kontext, sd15, ip_adapter, train, val
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from i2am_debug.demo.edit.pairs import validation_pairs

WIDTH = 32  # channels of the text encoders
VISION = 16  # of the image encoder
SIDE = 64  # of the pairs' pictures, in pixels
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def kontext() -> FluxKontextPipeline:
    """Flux Kontext."""
    torch.manual_seed(0)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in LETTERS] + [(f"▁{letter}", -3.5) for letter in LETTERS]
    t5 = T5Config(vocab_size=len(pieces), d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    return FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=transformer,
        vae=_autoencoder(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=_clip_text_encoder(),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=64),
    )


def stable_diffusion() -> StableDiffusionPipeline:
    """Stable Diffusion 1.5."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        sample_size=SIDE // 8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return StableDiffusionPipeline(
        vae=_autoencoder(),
        text_encoder=_clip_text_encoder(),
        tokenizer=_clip_tokenizer(),
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_ip_adapter(folder: Path, unet: UNet2DConditionModel) -> None:
    """An adapter "full" for this UNet, with its image encoder: folders and names as in h94/IP-Adapter."""
    torch.manual_seed(2)
    vision = CLIPVisionConfig(
        hidden_size=VISION,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=4,
        projection_dim=VISION,
    )
    CLIPVisionModelWithProjection(vision).save_pretrained(folder / "models" / "image_encoder")
    CLIPImageProcessor(size=64, crop_size=64).save_pretrained(folder / "models" / "image_encoder")
    weights = {f"image_proj.proj.{place}": value for place, value in _projection().items()}
    for number, name in enumerate(name for name in unet.attn_processors if "attn2" in name):
        width = unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
        for part in ("to_k_ip", "to_v_ip"):
            weights[f"ip_adapter.{1 + 2 * number}.{part}.weight"] = torch.randn(width, WIDTH) * WIDTH**-0.5
    save_file(weights, folder / "models" / "ip-adapter-full-face_sd15.safetensors")


def save_pairs(folder: Path, count: int, seed: int) -> None:
    """Edits of drawn pictures, as Hugging Face's imagefolder has them."""
    folder.mkdir(parents=True)
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        for pair in validation_pairs(count, seed=seed):
            names = {"file_name": f"{pair.name}.png", "reference_file_name": f"{pair.name}_before.png"}
            for name, picture in zip(names.values(), (pair.target, pair.reference), strict=True):
                picture.resize((SIDE, SIDE), Image.Resampling.NEAREST).save(folder / name)
            metadata.write(json.dumps({**names, "prompt": pair.prompt}) + "\n")


def save_all(folder: Path) -> Path:
    """Writes them all, unless they are there; returns the folder."""
    if not folder.exists():
        kontext().save_pretrained(folder / "kontext")
        pipeline = stable_diffusion()
        pipeline.save_pretrained(folder / "sd15")
        save_ip_adapter(folder / "ip_adapter", pipeline.unet)
        save_pairs(folder / "train", 8, seed=1)
        save_pairs(folder / "val", 8, seed=2)
    return folder


def _projection() -> dict[str, torch.Tensor]:
    """Of an adapter "full": each of the image encoder's tokens by itself."""
    return {
        "0.weight": torch.randn(VISION, VISION) * VISION**-0.5,
        "0.bias": torch.zeros(VISION),
        "2.weight": torch.randn(WIDTH, VISION) * VISION**-0.5,
        "2.bias": torch.zeros(WIDTH),
        "3.weight": torch.ones(WIDTH),
        "3.bias": torch.zeros(WIDTH),
    }


def _autoencoder(**changes: Any) -> AutoencoderKL:
    """A picture of 8×8 pixels is one latent pixel."""
    return AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=1,
        norm_num_groups=1,
        sample_size=SIDE,
        **changes,
    )


def _clip_tokenizer() -> CLIPTokenizer:
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)


def _clip_text_encoder() -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=2 + 2 * len(LETTERS),
        hidden_size=WIDTH,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        projection_dim=WIDTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModel(config)


if __name__ == "__main__":
    print(save_all(Path(sys.argv[1]) / "tiny_models"))
