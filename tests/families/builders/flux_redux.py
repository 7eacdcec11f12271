"""Tiny models of the family `flux_redux`, and how a pipeline calls them."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    FluxTransformer2DModel,
)
from oracle import assert_maps_equal, sharpened

from i2am_debug.families.flux_redux import FluxRedux

TEXT, GENERATED, REFERENCE = 6, (4, 6), (3, 5)
FAMILY = FluxRedux(text_tokens=TEXT, reference_grid=REFERENCE)


def tiny_transformer(**changes) -> FluxTransformer2DModel:
    torch.manual_seed(0)
    settings = dict(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=True,
    )
    model = FluxTransformer2DModel(**{**settings, **changes}).eval()
    return sharpened(model, "norm_q", "norm_k", "norm_added_q", "norm_added_k", factor=1.5)


def blocks(transformer) -> dict[str, torch.nn.Module]:
    return {
        "transformer_blocks.0": transformer.transformer_blocks[0].attn,
        "single_transformer_blocks.0": transformer.single_transformer_blocks[0].attn,
    }


@torch.no_grad()
def denoise(transformer, tokens: tuple[int, ...], *, images: int = 1) -> list[torch.Tensor]:
    """Two sampler steps as in FluxPipeline: timestep / 1000; one forward for each prompt of so many tokens (with
    true_cfg_scale the negative one comes second)."""
    random = torch.Generator().manual_seed(1)
    channels = transformer.config.in_channels
    latents = torch.randn(images, 24, channels, generator=random)
    prompts = [torch.randn(images, count, 12, generator=random) for count in tokens]
    ids = torch.tensor([(0, y, x) for y in range(GENERATED[0]) for x in range(GENERATED[1])]).float()
    return [
        transformer(
            hidden_states=latents,
            timestep=torch.full((images,), t) / 1000,
            guidance=torch.full((images,), 3.5),
            pooled_projections=torch.zeros(images, 8),
            encoder_hidden_states=prompt,
            txt_ids=torch.zeros(prompt.shape[1], 3),
            img_ids=ids,
            joint_attention_kwargs={},
            return_dict=False,
        )[0]
        for t in (1000.0, 600.0)
        for prompt in prompts
    ]


def assert_captured(
    t, products, queries: slice, keys: dict[int, slice], grid: tuple[int, int], images: int = 1
) -> None:
    """Maps and reference mass of every reference and image."""
    assert t.images == images and t.references == tuple(keys)
    for image in range(images):
        row = slice(image, image + 1)
        for number, own in keys.items():
            maps = t.maps(image, number)
            assert_maps_equal(maps, {n: [p.logits(row, queries, own)[0] for p in ps] for n, ps in products.items()})
            assert (maps.r2g.unified.shape, maps.g2r.unified.shape) == (GENERATED, grid)
            for layer, found in products.items():
                mass = [float(p.weights(row, queries)[..., own].sum(-1).mean()) for p in found]
                assert maps.reference_mass[layer] == pytest.approx(sum(mass) / len(mass), rel=1e-5)
