"""A tiny pipeline that edits its picture, with all that a saved one has: Flux Kontext and its two text encoders."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image, ImageDraw

LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]


def kontext_with_text_encoders() -> Any:
    """With random weights. Its pictures are brought to about a megapixel whatever their size, as the real one does."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(letter + "</w>" for letter in LETTERS)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in LETTERS] + [("▁" + letter, -3.5) for letter in LETTERS]
    torch.manual_seed(0)
    width = 32
    clip = dict(hidden_size=width, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2, projection_dim=32)
    clip.update(bos_token_id=0, eos_token_id=1, pad_token_id=1)
    pipeline = FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=CLIPTextModel(CLIPTextConfig(vocab_size=len(words), hidden_act="gelu", **clip)),
        text_encoder_2=T5EncoderModel(
            T5Config(vocab_size=len(pieces), d_model=width, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
        ),
        tokenizer=CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77),
        tokenizer_2=T5TokenizerFast(vocab=pieces, extra_ids=0),
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=width,
            pooled_projection_dim=width,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ),
        vae=AutoencoderKL(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            layers_per_block=1,
            norm_num_groups=1,
            shift_factor=0.06,
            scaling_factor=1.5,
        ),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def before_and_after() -> tuple[Image.Image, Image.Image]:
    """128x96, a red box that turns green, in a corner."""
    both = []
    for colour in ((200, 20, 20), (20, 190, 60)):
        picture = Image.linear_gradient("L").resize((128, 96)).convert("RGB")
        ImageDraw.Draw(picture).rectangle([16, 16, 63, 63], fill=colour)
        both.append(picture)
    return both[0], both[1]
