"""Tiny models of the family `sd3_ip_adapter`, and how a pipeline calls them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterTimeImageProjection
from oracle import recorded_products, sharpened

from i2am_debug.families.sd3_ip_adapter import SD3IPAdapter

GRID, TOKENS, TEXT = (4, 6), 5, 7
IMAGE = GRID[0] * GRID[1]
REFERENCE = slice(IMAGE, IMAGE + TOKENS)
LAYERS = ["transformer_blocks.0", "transformer_blocks.0.attn2", "transformer_blocks.1"]
FAMILY = SD3IPAdapter()


def plain_transformer() -> SD3Transformer2DModel:
    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=12,
        caption_projection_dim=32,
        pooled_projection_dim=10,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),  # as 3.5 medium has them
        qk_norm="rms_norm",
    ).eval()


def small_transformer(scale: float = 0.5) -> SD3Transformer2DModel:
    model = plain_transformer()
    adapter = {}
    for i, _ in enumerate(model.attn_processors):
        fresh = SD3IPAdapterJointAttnProcessor2_0(32, 32, head_dim=8, timesteps_emb_dim=64)
        adapter |= {f"{i}.{name}": value for name, value in fresh.state_dict().items()}
    resampler = IPAdapterTimeImageProjection(
        embed_dim=9, output_dim=32, hidden_dim=64, heads=1, num_queries=TOKENS, timestep_in_dim=16
    )
    model._load_ip_adapter_weights({"ip_adapter": adapter, "image_proj": resampler.state_dict()})
    for module in modules(model).values():
        module.processor.scale = scale
    return sharpened(model, "processor.norm_q", "processor.norm_k", "processor.norm_ip_k", factor=2)


def generate(model, images=1, *, guided=True, one_prompt=False, one_picture=False, skip=False) -> list[torch.Tensor]:
    """Two sampler steps of the pipeline; the denoiser's outputs."""
    draw = torch.Generator().manual_seed(1)
    prompt, negative = (torch.randn(images, TEXT, 12, generator=draw) for _ in range(2))
    pooled = torch.randn(images, 10, generator=draw)
    picture = torch.randn(images, 3, 9, generator=draw)
    none = picture if one_picture else torch.zeros_like(picture)
    outputs = []
    for time in (900.0, 300.0):
        latents = torch.randn(images, 4, *(2 * s for s in GRID), generator=draw)
        full = (latents, prompt, pooled, picture)
        if guided:
            pairs = (
                (latents, latents),
                (prompt if one_prompt else negative, prompt),
                (pooled, pooled),
                (none, picture),
            )
            full = tuple(torch.cat(pair) for pair in pairs)
        # the pipeline hands the second forward the features of the whole batch, as here
        calls = [(full, {})] + [((latents, prompt, pooled, full[3]), dict(skip_layers=[1]))] * skip
        for (sample, states, pooled_states, features), more in calls:
            with torch.no_grad():
                output = model(
                    hidden_states=sample,
                    timestep=torch.full((len(sample),), time),
                    encoder_hidden_states=states,
                    pooled_projections=pooled_states,
                    joint_attention_kwargs={"ip_adapter_image_embeds": features},
                    return_dict=False,
                    **more,
                )[0]
            outputs.append(output)
    return outputs


def modules(model) -> dict[str, torch.nn.Module]:
    first, second = model.transformer_blocks
    return dict(zip(LAYERS, (first.attn, first.attn2, second.attn), strict=True))


def adapter_products(model, *args, **kwargs) -> dict:
    """Layer → the adapter's product of each sampler step."""
    with recorded_products(modules(model)) as products:
        generate(model, *args, **kwargs)
    return {name: each[1::2] for name, each in products.items()}


def assert_equal(ours: np.ndarray, truth: torch.Tensor) -> None:
    truth = truth.numpy()
    assert np.abs(ours - truth).max() <= 1e-5 * truth.max()
    assert truth.max() > 1.01 * truth.min(), "the truth is flat, the comparison would prove nothing"


def assert_maps_equal_without_a_grid(maps, products, row: int) -> None:
    """As the oracle's own comparison; G2R is in the rows, since tokens without a grid make no map."""
    assert list(maps.layers) == LAYERS
    for name, each in products.items():
        logits = torch.stack([p.logits([row], slice(None), REFERENCE)[0] for p in each])
        assert_equal(maps.r2g.by_layer[name].ravel(), logits.softmax(2).mean((0, 1, 3)))
        grid, rows = maps.rows.by_layer[name]
        assert grid == GRID
        assert_equal(rows, logits.softmax(3).mean((0, 1)))
        share = torch.stack([p.weights([row])[..., REFERENCE].sum(-1).mean() for p in each]).mean()
        assert maps.reference_mass[name] == pytest.approx(float(share), rel=1e-5)
