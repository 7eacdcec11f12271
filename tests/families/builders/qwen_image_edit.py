"""Tiny models of the family `qwen_image_edit`, and how a pipeline calls them."""

from __future__ import annotations

import itertools
import math

import torch
from diffusers import QwenImageTransformer2DModel
from oracle import sharpened

from i2am_debug.families.qwen_image_edit import QwenImageEdit

TEXT, GENERATED, REFERENCES = 6, (3, 5), [(4, 2), (2, 7)]
FAMILY = QwenImageEdit()


def small_transformer(**changes) -> QwenImageTransformer2DModel:
    torch.manual_seed(0)
    settings = dict(
        in_channels=8,
        out_channels=2,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=12,
        axes_dims_rope=(4, 6, 6),
    )
    model = QwenImageTransformer2DModel(**{**settings, **changes}).eval()
    return sharpened(
        model, "norm_q", "norm_k", "norm_added_q", "norm_added_k", factor=2
    )  # to_q, to_k are normalised away


def edit(model, images=1, grids=(GENERATED, *REFERENCES), *, guidance=False, masked=True, **more) -> list[torch.Tensor]:
    """Two sampler steps of the edit pipelines, on random latents and prompts; the denoiser's outputs."""
    draw = torch.Generator().manual_seed(1)
    tokens = sum(math.prod(g) for g in grids)
    prompt, negative = (torch.randn(images, n, 12, generator=draw) for n in (TEXT, TEXT - 2))
    mask = torch.arange(TEXT) < torch.arange(TEXT, TEXT - images, -1)[:, None] - 1  # prompts of unequal length
    prompts = [(prompt, mask.long() if masked else None)] + [(negative, None)] * guidance
    outputs = []
    for time in (900.0, 300.0):
        latents = torch.randn(images, tokens, 8, generator=draw)
        for states, states_mask in prompts:
            with torch.no_grad():
                output = model(
                    hidden_states=latents,
                    timestep=torch.full((images,), time) / 1000,
                    guidance=None,
                    encoder_hidden_states_mask=states_mask,
                    encoder_hidden_states=states,
                    img_shapes=[[(1, *g) for g in grids]] * images,
                    attention_kwargs={},
                    return_dict=False,
                    **more,
                )[0]
            outputs.append(output)
    return outputs


def modules(model) -> dict[str, torch.nn.Module]:
    return {f"transformer_blocks.{i}": block.attn for i, block in enumerate(model.transformer_blocks)}


def spans(grids) -> list[slice]:
    """Where the pictures sit in the joint sequence."""
    ends = itertools.accumulate([TEXT, *(h * w for h, w in grids)])
    return [slice(a, b) for a, b in itertools.pairwise(ends)]
