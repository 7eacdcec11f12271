"""Tiny models of the family `wan_image_to_video`, and how a pipeline calls them."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from oracle import recorded_products, sharpened
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from i2am_debug import trace
from i2am_debug.families.wan_image_to_video import WanImageToVideo

CHANNELS, TEXT, ENCODER = 6, 8, 10  # of the latents, the text's tokens and the image encoder's
PATCHES = (3, 4)  # of the picture in these tests, with a class token before them
FAMILY = WanImageToVideo(reference_grid=PATCHES)
FRAMES, H, W = 3, 2, 5  # of the generated video in patches: 3 latent frames of 4x10


def small(model=WanTransformer3DModel, **changes):
    torch.manual_seed(0)
    settings = dict(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=CHANNELS,
        out_channels=4,
        text_dim=TEXT,
        freq_dim=8,
        ffn_dim=16,
        num_layers=2,
        image_dim=ENCODER,
        added_kv_proj_dim=24,
        rope_max_seq_len=32,
    )
    # A norm follows the projections: its weights make the logits larger.
    return sharpened(model(**{**settings, **changes}).eval(), "attn2.norm_q", "attn2.norm_added_k")


def video(videos: int = 1, frames: int = FRAMES) -> torch.Tensor:
    return torch.randn(videos, CHANNELS, frames, 2 * H, 2 * W)


def text(videos: int = 1, tokens: int = 512) -> torch.Tensor:
    return torch.randn(videos, tokens, TEXT)


def picture(videos: int = 1, tokens: int = 1 + PATCHES[0] * PATCHES[1]) -> torch.Tensor:
    """The image encoder's tokens; first and last frame of a video are two rows, one after the other."""
    return torch.randn(videos, tokens, ENCODER)


def run(model, latents, prompt, embeds, negative=None) -> list[torch.Tensor]:
    """The transformer's calls in `WanImageToVideoPipeline` (ChronoEdit's and SkyReels' are alike) at two noise times.

    The pipeline hands over the noise and, as more channels, the first frame's latents; here they are one tensor.
    """
    outputs = []
    with torch.no_grad():
        for time in (800, 400):
            for states in (prompt,) if negative is None else (prompt, negative):
                outputs.append(
                    model(
                        hidden_states=latents,
                        timestep=torch.tensor(time).expand(len(latents)),
                        encoder_hidden_states=states,
                        encoder_hidden_states_image=embeds,
                        attention_kwargs=None,
                        return_dict=False,
                    )[0]
                )
    return outputs


def traced(model, *inputs, family=FAMILY):
    """The trace and, layer by layer, the products the layer made: picture, text, picture, text, …"""
    with recorded_products(family.layers(model)) as products, trace(model, family=family) as t:
        run(model, *inputs)
    return t, products


def logits(products, every: int, row: int, keys: slice, queries: slice = slice(None)):
    """Layer → logits of the picture's product in every `every`th forward."""
    return {
        layer: [p.logits(slice(row, row + 1), queries, keys)[0] for p in found[:: 2 * every]]
        for layer, found in products.items()
    }


def assert_shares(maps, products, every: int, row: int, queries: slice = slice(None)) -> None:
    """Norm of what the picture's product adds over that of picture and text together."""
    assert set(maps.branch_share) == set(products)
    for layer, found in products.items():
        shares = []
        for start in range(0, len(found), 2 * every):
            ours, theirs = (p.output[row][:, queries].double() for p in found[start : start + 2])
            shares.append(ours.norm() / (ours + theirs).norm())
        assert maps.branch_share[layer] == pytest.approx(float(sum(shares) / len(shares)), rel=1e-5)


def tiny_pipeline(**changes) -> WanImageToVideoPipeline:
    """The pipeline itself, without text encoder: its calls pass `prompt_embeds`."""
    vision = CLIPVisionConfig(
        hidden_size=ENCODER,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=12,
        patch_size=4,
    )
    pipeline = WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=AutoencoderKLWan(base_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        image_processor=CLIPImageProcessor(size=12, crop_size=12),
        image_encoder=CLIPVisionModel(vision).eval(),
        transformer=small(in_channels=16 + 4 + 16, out_channels=16, **changes),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
