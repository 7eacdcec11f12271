"""Tiny models of the family `added_key_value`, and how a pipeline calls them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from oracle import recorded_products, sharpened

from i2am_debug import trace
from i2am_debug.families.added_key_value import AddedKeyValue

FAMILY = AddedKeyValue()
WIDTH, EMBED, TEXT, LATENT = 12, 10, 7, (4, 6)
TOKENS = {"image_proj": 32, "text_image_proj": 10, None: 4}
KINDS = pytest.mark.parametrize("kind", TOKENS)
DOWN, MID = "down_blocks.1.attentions.0", "mid_block.attentions.0"


def small_unet(kind: str | None = "image_proj", **changes) -> UNet2DConditionModel:
    """As the decoders' own configurations: no attention at full size, resnets that sample down."""
    torch.manual_seed(0)
    own = {"class_embed_type": "identity"} if kind is None else {"encoder_hid_dim": EMBED, "encoder_hid_dim_type": kind}
    settings = dict(
        sample_size=None,
        in_channels=4,
        out_channels=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
        resnet_time_scale_shift="scale_shift",
    )
    unet = UNet2DConditionModel(**{**settings, **own, **changes}).eval()
    return sharpened(unet, "to_q", "to_k", "add_k_proj", factor=3)


def generate(unet, kind, images=1, *, guided=True, one_prompt=False, one_picture=False) -> list[torch.Tensor]:
    """Two sampler steps; the denoiser's outputs."""
    draw = torch.Generator().manual_seed(1)
    texts = torch.randn(2 * images, TEXT, EMBED, generator=draw)
    pictures = torch.randn(2 * images, WIDTH if kind == "text_image_proj" else EMBED, generator=draw)
    if one_prompt:
        texts = texts[images:].repeat(2, 1, 1)
    if one_picture:
        pictures = pictures[images:].repeat(2, 1)
    if not guided:
        texts, pictures = texts[images:], pictures[images:]
    if kind == "image_proj":
        given = {"encoder_hidden_states": None, "added_cond_kwargs": {"image_embeds": pictures}}
    elif kind == "text_image_proj":
        given = {
            "encoder_hidden_states": texts,
            "added_cond_kwargs": {"text_embeds": texts[:, 0], "image_embeds": pictures},
        }
    else:
        given = unclip_arguments(pictures, texts)
    outputs = []
    for time in (900, 300):
        latents = torch.randn(images, 4, *(2 * s for s in LATENT), generator=draw)
        sample = torch.cat([latents, latents]) if guided else latents
        with torch.no_grad():
            outputs.append(unet(sample=sample, timestep=time, **given, return_dict=False)[0])
    return outputs


def unclip_arguments(pictures: torch.Tensor, texts: torch.Tensor) -> dict:
    torch.manual_seed(2)
    projection = UnCLIPTextProjModel(clip_embeddings_dim=EMBED, time_embed_dim=32, cross_attention_dim=WIDTH)
    with torch.no_grad():
        tokens, label = projection(
            image_embeddings=pictures,
            prompt_embeds=texts[:, 0],
            text_encoder_hidden_states=texts,
            do_classifier_free_guidance=False,  # the negative embedding is among `pictures` already
        )
    mask = torch.arange(TEXT)[None].expand(len(texts), -1) < 3  # a short prompt's
    mask = F.pad(mask, (projection.clip_extra_context_tokens, 0), value=True)
    return {"encoder_hidden_states": tokens, "class_labels": label, "attention_mask": mask}


def assert_maps_equal_in_a_row(maps, products, row: int, tokens: int) -> None:
    """As the oracle's own comparison; G2R is in the rows, since tokens without a grid make no map."""
    assert list(maps.layers) == list(products)
    for name, each in products.items():
        logits = torch.stack([p.logits(slice(row, row + 1), keys=slice(0, tokens))[0] for p in each])
        pairs = (
            (maps.r2g.by_layer[name].ravel(), logits.softmax(2).mean((0, 1, 3))),
            (maps.g2r.by_layer[name].ravel(), logits.softmax(3).mean((0, 1, 2))),
        )
        for ours, truth in pairs:
            truth = truth.numpy()
            assert np.abs(ours - truth).max() <= 1e-5 * truth.max(), name
            assert truth.max() > 1.01 * truth.min(), "the truth is flat, the comparison would prove nothing"


def share(products, row: int, tokens: int) -> float:
    weights = torch.stack([p.weights(slice(row, row + 1)) for p in products])
    return float(weights[..., :tokens].sum(-1).mean())


def traced(unet, kind, *args, family=FAMILY, **changes):
    """The trace and, layer by layer, the products the layer made; both see the same call."""
    with recorded_products(FAMILY.layers(unet)) as products, trace(unet, family=family) as t:
        generate(unet, kind, *args, **changes)
    return t, products


class Pipeline:
    """Nothing but its components: what a family is told of a pipeline."""

    def __init__(self, **components) -> None:
        self.components = components
