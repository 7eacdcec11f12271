"""Tiny models of the family `flux2`, and how a pipeline calls them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
)
from diffusers.models.transformers.transformer_flux2 import Flux2KVAttnProcessor, Flux2KVParallelSelfAttnProcessor
from oracle import assert_maps_equal, sharpened
from peft import LoraConfig
from PIL import Image

from i2am_debug.families.flux2 import Flux2

TEXT, GENERATED, REFERENCES = 5, (4, 6), ((4, 5), (6, 4))
# Of the queries [5 text · 4x6 generated …] and the keys [5 text · 4x6 generated · 4x5 reference · 6x4 reference],
# and of the keys that a cache is used with, [5 text · 4x5 reference · 6x4 reference · 4x6 generated].
QUERIES = slice(5, 29)
KEYS = {0: slice(29, 49), 1: slice(49, 73)}
CACHED_KEYS = {0: slice(5, 25), 1: slice(25, 49)}


def tiny_transformer() -> Flux2Transformer2DModel:
    torch.manual_seed(0)
    model = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        timestep_guidance_channels=8,
        axes_dims_rope=(4, 4, 4, 4),
    ).eval()
    return sharpened(model, "norm_q", "norm_k", "norm_added_q", "norm_added_k", factor=1.5)


def blocks(transformer) -> dict[str, torch.nn.Module]:
    return {
        "transformer_blocks.0": transformer.transformer_blocks[0].attn,
        "single_transformer_blocks.0": transformer.single_transformer_blocks[0].attn,
        "single_transformer_blocks.1": transformer.single_transformer_blocks[1].attn,
    }


def with_cache_processors(transformer) -> Flux2Transformer2DModel:
    """As Flux2KleinKVPipeline sets them."""
    for name, attention in blocks(transformer).items():
        attention.set_processor(
            Flux2KVParallelSelfAttnProcessor() if name.startswith("single") else Flux2KVAttnProcessor()
        )
    return transformer


def position_ids(time: int, grid: tuple[int, int], images: int) -> torch.Tensor:
    ids = torch.tensor([(time, y, x, 0) for y in range(grid[0]) for x in range(grid[1])])
    return ids.expand(images, -1, -1)


class Inputs:
    """What the Flux 2 pipelines give their transformer, but for latents that change from step to step."""

    def __init__(self, images: int = 1, references: tuple[tuple[int, int], ...] = REFERENCES) -> None:
        random = torch.Generator().manual_seed(1)
        count = sum(h * w for h, w in references)
        self.images = images
        self.latents = torch.randn(images, 24, 16, generator=random)
        self.latent_ids = position_ids(0, GENERATED, images)
        self.reference_latents = torch.randn(1, count, 16, generator=random).repeat(images, 1, 1)
        ids = [position_ids(10 + 10 * i, grid, images) for i, grid in enumerate(references)]
        self.reference_ids = torch.cat(ids, dim=1) if ids else self.latent_ids[:, :0]
        self.texts = [torch.randn(images, TEXT, 12, generator=random) for _ in range(2)]
        self.text_ids = torch.tensor([(0, 0, 0, i) for i in range(TEXT)]).expand(images, -1, -1)


@torch.no_grad()
def denoise(transformer, given: Inputs, *, guidance: bool = False) -> list[torch.Tensor]:
    """Two sampler steps as in Flux2KleinPipeline: timestep / 1000; with guidance the prompt first, then the empty one."""
    outputs = []
    for t in (1000.0, 600.0):
        for text in given.texts[: 1 + guidance]:
            output = transformer(
                hidden_states=torch.cat([given.latents, given.reference_latents], dim=1),
                timestep=torch.full((given.images,), t) / 1000,
                guidance=None,
                encoder_hidden_states=text,
                txt_ids=given.text_ids,
                img_ids=torch.cat([given.latent_ids, given.reference_ids], dim=1),
                joint_attention_kwargs=None,
                return_dict=False,
            )
            outputs.append(output[0])
    return outputs


@torch.no_grad()
def extract(transformer, given: Inputs) -> tuple[torch.Tensor, object]:
    """The first sampler step of Flux2KleinKVPipeline: the references come first, and their keys and values are kept."""
    return transformer(
        hidden_states=torch.cat([given.reference_latents, given.latents], dim=1),
        timestep=torch.ones(given.images),
        guidance=None,
        encoder_hidden_states=given.texts[0],
        txt_ids=given.text_ids,
        img_ids=torch.cat([given.reference_ids, given.latent_ids], dim=1),
        joint_attention_kwargs=None,
        return_dict=False,
        kv_cache_mode="extract",
        num_ref_tokens=given.reference_latents.shape[1],
    )


@torch.no_grad()
def cached(transformer, given: Inputs, cache) -> list[torch.Tensor]:
    """Its other sampler steps: no reference in the sequence."""
    return [
        transformer(
            hidden_states=given.latents + time,
            timestep=torch.full((given.images,), time),
            guidance=None,
            encoder_hidden_states=given.texts[0],
            txt_ids=given.text_ids,
            img_ids=given.latent_ids,
            joint_attention_kwargs=None,
            return_dict=False,
            kv_cache=cache,
            kv_cache_mode="cached",
        )[0]
        for time in (0.7, 0.4)
    ]


def denoise_with_cache(transformer, given: Inputs) -> list[torch.Tensor]:
    output, cache = extract(transformer, given)
    return [output, *cached(transformer, given, cache)]


def assert_captured(t, products, keys: dict[int, slice], images: int) -> None:
    """Maps and reference mass of every reference and image; `products` are those of the generated tokens' queries."""
    assert t.images == images and t.references == tuple(keys)
    for image in range(images):
        row = slice(image, image + 1)
        for number, own in keys.items():
            maps = t.maps(image, number)
            assert_maps_equal(maps, {n: [p.logits(row, QUERIES, own)[0] for p in ps] for n, ps in products.items()})
            assert (maps.r2g.unified.shape, maps.g2r.unified.shape) == (GENERATED, REFERENCES[number])
            for layer, found in products.items():
                mass = [float(p.weights(row, QUERIES)[..., own].sum(-1).mean()) for p in found]
                assert maps.reference_mass[layer] == pytest.approx(sum(mass) / len(mass), rel=1e-5)


def generated_products(products):
    """Less the second product of a layer's first run, of the references among themselves."""
    assert all(len(found) == 4 and found[1].q.shape[2] == 44 for found in products.values())
    return {n: [found[0], *found[2:]] for n, found in products.items()}


def with_lora(transformer):
    layers = ["to_q", "to_k", "add_k_proj", "to_qkv_mlp_proj"]
    transformer.add_adapter(LoraConfig(r=2, target_modules=layers, init_lora_weights=False))


def fused(transformer):
    transformer.fuse_qkv_projections()  # of the double blocks; single blocks have nothing else


def compiled(transformer):
    transformer.compile_repeated_blocks(backend="eager")


class InpaintPipeline:
    def __call__(self, image, image_reference=None):
        """Takes the arguments of Flux2KleinInpaintPipeline."""


def flux2_pipeline(kind, family: Flux2):
    torch.manual_seed(3)
    vae = AutoencoderKLFlux2(
        block_out_channels=(4, 4, 4, 4), layers_per_block=1, latent_channels=4, norm_num_groups=1
    ).eval()
    pipeline = kind(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        transformer=tiny_transformer(),
        text_encoder=None,
        tokenizer=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    assert family.refuses(pipeline, pipeline.transformer) is None
    return pipeline


def picture(grid: tuple[int, int], seed: int) -> Image.Image:
    """One of 16x16 pixels a token."""
    pixels = np.random.default_rng(seed).integers(0, 256, (16 * grid[0], 16 * grid[1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def pipeline_call(pipeline, images: int, **changes) -> torch.Tensor:
    random = torch.Generator().manual_seed(4)
    settings = dict(num_inference_steps=2, generator=torch.Generator().manual_seed(5), output_type="pt")
    size = dict(prompt_embeds=torch.randn(images, TEXT, 12, generator=random), height=64, width=96)
    return pipeline(**{**size, **settings, **changes}).images
