"""Tiny models of the family `flux_ip_adapter`, and how a pipeline calls them."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
)
from diffusers.models.embeddings import ImageProjection
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from oracle import recorded_products, sharpened
from peft import LoraConfig

from i2am_debug import trace
from i2am_debug.families.flux_ip_adapter import FluxIPAdapter

GRID, TEXT, TOKENS, FEATURES = (4, 6), 5, 4, 9
IMAGE = GRID[0] * GRID[1]
LAYERS = ["transformer_blocks.0", "transformer_blocks.1"]
FAMILY = FluxIPAdapter()
COMMON = dict(
    patch_size=1,
    in_channels=16,
    num_layers=2,
    num_single_layers=1,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=12,
    axes_dims_rope=(4, 6, 6),
)


def flux(**changes):
    return FluxTransformer2DModel(**{**COMMON, "pooled_projection_dim": 8, "guidance_embeds": True, **changes}).eval()


def chroma():
    settings = dict(approximator_num_channels=16, approximator_hidden_dim=8, approximator_layers=1)
    return ChromaTransformer2DModel(**COMMON, **settings).eval()


def with_adapters(make=flux, adapters: int = 1):
    """As `load_ip_adapter` does it, from state dicts in the layout of the files."""
    torch.manual_seed(0)
    model = make()
    files = []
    for _ in range(adapters):
        fresh = [FluxIPAdapterAttnProcessor(hidden_size=32, cross_attention_dim=12) for _ in LAYERS]
        weights = {f"{i}.{n.replace('.0.', '.')}": v for i, p in enumerate(fresh) for n, v in p.state_dict().items()}
        projection = ImageProjection(FEATURES, 12, TOKENS).state_dict()
        projection = {n.replace("image_embeds", "proj"): value for n, value in projection.items()}
        files.append({"ip_adapter": weights, "image_proj": projection})
    model._load_ip_adapter_weights(files)
    return sharpened(model, "norm_q", *(f"to_k_ip.{i}" for i in range(adapters)), factor=2.5).eval()


def modules(model) -> dict[str, torch.nn.Module]:
    return {name: model.transformer_blocks[i].attn for i, name in enumerate(LAYERS)}


def pipeline_of(kind, model):
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
    names = ("text_encoder", "tokenizer") + (() if kind is ChromaPipeline else ("text_encoder_2", "tokenizer_2"))
    pipeline = kind(scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, transformer=model, **dict.fromkeys(names))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline, images: int = 1, *, guided: bool = False, pictures: tuple[int, ...] = (1,), **changes):
    """Two sampler steps at `images` prompts; `pictures`: how many each adapter gets."""
    draw = torch.Generator().manual_seed(4)
    is_chroma = isinstance(pipeline, ChromaPipeline)
    arguments = dict(height=16 * GRID[0], width=16 * GRID[1], num_inference_steps=2, output_type="pt")
    for sign in ("", "negative_"):
        arguments[f"{sign}prompt_embeds"] = torch.randn(images, TEXT, 12, generator=draw)
        features = [torch.randn(1, n, FEATURES, generator=draw) for n in pictures]
        arguments[f"{sign}ip_adapter_image_embeds"] = features
        if is_chroma:  # the last two text tokens are padding
            arguments[f"{sign}prompt_attention_mask"] = torch.tensor([[True] * 3 + [False] * 2]).repeat(images, 1)
        else:
            arguments[f"{sign}pooled_prompt_embeds"] = torch.randn(images, 8, generator=draw)
    arguments["guidance_scale" if is_chroma else "true_cfg_scale"] = 2.0 if guided else 1.0
    return pipeline(**{**arguments, **changes}, generator=torch.Generator().manual_seed(5)).images


def looked_at(pipeline, family=None, **how):
    """The trace and the products, module by module, of two equal calls, whose outputs must not differ in a bit."""
    with recorded_products(modules(pipeline.transformer)) as products:
        plain = generate(pipeline, **how)
    with trace(pipeline, family=family or FAMILY) as t:
        seen = generate(pipeline, **how)
    assert torch.equal(plain, seen)
    return t, products


def assert_equal(ours: np.ndarray, truth: torch.Tensor) -> None:
    truth = truth.numpy()
    assert np.abs(ours - truth).max() <= 1e-5 * truth.max()
    assert truth.max() > 1.01 * truth.min(), "the truth is flat, the comparison would prove nothing"


def assert_maps_equal_without_a_grid(maps, products, keys=slice(None), row=0, layers=LAYERS, queries=slice(None)):
    """As the oracle's own comparison; `products` are the adapter's. The tokens have no grid, so G2R is in the rows too."""
    assert list(maps.layers) == list(layers)
    assert maps.undefined_place == "the reference tokens have no grid"
    for name in layers:
        logits = torch.stack([p.logits([row], queries, keys)[0] for p in products[name]])
        assert maps.r2g.by_layer[name].shape == GRID
        assert_equal(maps.r2g.by_layer[name].ravel(), logits.softmax(2).mean((0, 1, 3)))
        assert_equal(maps.g2r.by_layer[name].ravel(), logits.softmax(3).mean((0, 1, 2)))
        grid, rows = maps.rows.by_layer[name]
        assert grid == GRID
        assert_equal(rows, logits.softmax(3).mean((0, 1)))


def conditional(products, adapter=0, *, adapters=1, guided=False):
    """Layer → one adapter's product of each sampler step's first forward."""
    return {n: found[1 + adapter :: (1 + adapters) * (1 + guided)] for n, found in products.items()}


def positions(picture: int, grid: tuple[int, int]) -> torch.Tensor:
    return torch.tensor([(picture, y, x) for y in range(grid[0]) for x in range(grid[1])]).float()


@torch.no_grad()
def denoise(model, ids: torch.Tensor, given: dict) -> torch.Tensor:
    """One forward as FluxPipeline's."""
    draw = torch.Generator().manual_seed(1)
    return model(
        hidden_states=torch.randn(1, ids.shape[-2], 16, generator=draw),
        encoder_hidden_states=torch.randn(1, TEXT, 12, generator=draw),
        pooled_projections=torch.randn(1, 8, generator=draw),
        timestep=torch.tensor([0.7]),
        guidance=torch.tensor([3.5]),
        img_ids=ids,
        txt_ids=torch.zeros(TEXT, 3),
        joint_attention_kwargs=given,
        return_dict=False,
    )[0]


def embedded(model):
    features = torch.randn(1, 2, FEATURES, generator=torch.Generator().manual_seed(2))
    return model.encoder_hid_proj([features])[0].detach()


def with_lora(model):
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "add_k_proj"], init_lora_weights=False))


def fused(model):
    model.fuse_qkv_projections()


def compiled(model):
    model.compile_repeated_blocks(backend="eager")


def compiled_parts(model):
    model.transformer_blocks[0].attn = torch.compile(model.transformer_blocks[0].attn, backend="eager")
    model.transformer_blocks[1] = torch.compile(model.transformer_blocks[1], backend="eager")
