"""Tiny models of the family `flux_kontext`, and how a pipeline calls them."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
)
from oracle import sharpened
from peft import LoraConfig
from PIL import Image

from i2am_debug.families.flux_kontext import FluxKontext

TEXT, GENERATED, REFERENCE = 5, (4, 6), (3, 5)
QUERIES, KEYS = slice(5, 29), slice(29, 44)  # of the sequence [5 text · 4x6 generated · 3x5 reference]


def tiny_transformer(**changes) -> FluxTransformer2DModel:
    torch.manual_seed(0)
    settings = dict(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
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
        "single_transformer_blocks.1": transformer.single_transformer_blocks[1].attn,
    }


def position_ids(picture: int, grid: tuple[int, int]) -> torch.Tensor:
    return torch.tensor([(picture, y, x) for y in range(grid[0]) for x in range(grid[1])]).float()


def inputs(images: int = 1, references: dict[int, tuple[int, int]] | None = None, seed: int = 1) -> dict:
    """What FluxKontextPipeline gives its transformer: latents, then the reference's, whose ids have 1 in column 0."""
    random = torch.Generator().manual_seed(seed)
    grids = {0: GENERATED, **({1: REFERENCE} if references is None else references)}
    return dict(
        hidden_states=torch.randn(images, sum(h * w for h, w in grids.values()), 16, generator=random),
        guidance=torch.full((images,), 3.5),
        txt_ids=torch.zeros(TEXT, 3),
        img_ids=torch.cat([position_ids(number, grid) for number, grid in grids.items()]),
        joint_attention_kwargs={},
        return_dict=False,
    )


@torch.no_grad()
def denoise(transformer, inputs: dict, *, guidance: bool) -> list[torch.Tensor]:
    """Two sampler steps as in FluxKontextPipeline: timestep / 1000; with true_cfg_scale the prompt first, then the negative."""
    images, dtype = len(inputs["hidden_states"]), inputs["hidden_states"].dtype
    random = torch.Generator().manual_seed(2)
    prompts = [
        dict(
            encoder_hidden_states=torch.randn(images, TEXT, 12, generator=random).to(dtype),
            pooled_projections=torch.randn(images, 8, generator=random).to(dtype),
        )
        for _ in range(1 + guidance)
    ]
    times = [torch.full((images,), t) / 1000 for t in (1000.0, 600.0)]
    return [transformer(**inputs, **prompt, timestep=time)[0] for time in times for prompt in prompts]


def true_logits(products, image: int, queries: slice, keys: slice, every: int = 1):
    row = slice(image, image + 1)
    return {n: [p.logits(row, queries, keys)[0] for p in found[::every]] for n, found in products.items()}


def with_lora(transformer):
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "add_k_proj"], init_lora_weights=False))


def fused(transformer):
    transformer.fuse_qkv_projections()


def compiled(transformer):
    transformer.compile_repeated_blocks(backend="eager")


def compiled_parts(transformer):
    transformer.transformer_blocks[0].attn = torch.compile(transformer.transformer_blocks[0].attn, backend="eager")
    transformer.single_transformer_blocks[0] = torch.compile(transformer.single_transformer_blocks[0], backend="eager")


def kontext_pipeline(kind):
    torch.manual_seed(3)
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=1,
        norm_num_groups=1,
        shift_factor=0.06,
        scaling_factor=1.5,
    ).eval()
    texts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipeline = kind(scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, transformer=tiny_transformer(), **texts)
    pipeline.set_progress_bar_config(disable=True)
    assert FluxKontext().refuses(pipeline, pipeline.transformer) is None
    return pipeline


def picture(grid: tuple[int, int], seed: int) -> Image.Image:
    """One of 16x16 pixels a token."""
    pixels = np.random.default_rng(seed).integers(0, 256, (16 * grid[0], 16 * grid[1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def pipeline_call(pipeline, images: int, **changes) -> torch.Tensor:
    """`_auto_resize` and `max_area` would bring everything to about a megapixel."""
    random = torch.Generator().manual_seed(4)
    prompts = {
        f"{sign}{name}": torch.randn(images, *shape, generator=random)
        for sign in ("", "negative_")
        for name, shape in {"prompt_embeds": (TEXT, 12), "pooled_prompt_embeds": (8,)}.items()
    }
    size = dict(height=64, width=96, max_area=64 * 96, _auto_resize=False)
    settings = dict(num_inference_steps=2, generator=torch.Generator().manual_seed(5), output_type="pt")
    return pipeline(**{**prompts, **size, **settings, **changes}).images
