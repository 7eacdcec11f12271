"""Flux 2: several references in one joint sequence, guidance by a second forward, and Klein's key-value cache."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinInpaintPipeline,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from diffusers.models.transformers import transformer_flux2
from diffusers.models.transformers.transformer_flux2 import Flux2KVAttnProcessor, Flux2KVParallelSelfAttnProcessor
from oracle import assert_maps_equal, recorded_products, sharpened
from peft import LoraConfig
from PIL import Image

from i2am_debug import CapturePlan, trace
from i2am_debug.errors import NothingCaptured, UnsupportedModel
from i2am_debug.families.flux2 import _EXTRACTED, Flux2

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


@pytest.mark.parametrize("guidance", [False, True], ids=["one forward", "two forwards"])
@pytest.mark.parametrize("images", [1, 3])
def test_every_reference_has_maps_and_mass_of_its_own(images, guidance):
    transformer, given = tiny_transformer(), Inputs(images)
    with recorded_products(blocks(transformer)) as products:
        plain = denoise(transformer, given, guidance=guidance)
    with trace(transformer, family=Flux2()) as t:
        seen = denoise(transformer, given, guidance=guidance)
    assert all(map(torch.equal, plain, seen))
    assert_captured(t, {n: found[:: 1 + guidance] for n, found in products.items()}, KEYS, images)
    assert t.maps().total_steps == 2


def generated_products(products):
    """Less the second product of a layer's first run, of the references among themselves."""
    assert all(len(found) == 4 and found[1].q.shape[2] == 44 for found in products.values())
    return {n: [found[0], *found[2:]] for n, found in products.items()}


@pytest.mark.parametrize("images", [1, 3])
def test_a_key_value_cache(images):
    transformer, given = with_cache_processors(tiny_transformer()), Inputs(images)
    with recorded_products(blocks(transformer)) as products:
        plain = denoise_with_cache(transformer, given)
    with trace(transformer, family=Flux2()) as t:
        seen = denoise_with_cache(transformer, given)
    assert all(map(torch.equal, plain, seen))
    assert_captured(t, generated_products(products), CACHED_KEYS, images)
    assert t.maps().total_steps == 3
    assert given.texts[0] in _EXTRACTED
    kept = len(_EXTRACTED)
    given.texts.clear()
    gc.collect()
    assert len(_EXTRACTED) == kept - 1, "what was kept goes with the text tokens of the call"


def test_the_cached_forwards_alone_need_the_grids():
    transformer, given = with_cache_processors(tiny_transformer()), Inputs()
    _, cache = extract(transformer, given)
    with recorded_products(blocks(transformer)) as products:
        cached(transformer, given, cache)
    with trace(transformer, family=Flux2(cached_grids=REFERENCES)) as t:
        cached(transformer, given, cache)
    assert_captured(t, products, CACHED_KEYS, 1)
    for family, has in (Flux2(), "None has 0"), (Flux2(cached_grids=((4, 5),)), r"\(\(4, 5\),\) has 20"):
        words = rf"keys of 44 reference tokens.*cached_grids={has} tokens.*family=Flux2\(cached_grids=\(\(h, w\)"
        with pytest.raises(UnsupportedModel, match=words), trace(transformer, family=family):
            cached(transformer, given, cache)


def test_cached_forwards_without_a_generated_picture_have_no_layout():
    transformer, given = with_cache_processors(tiny_transformer()), Inputs()
    _, cache = extract(transformer, given)
    given.latent_ids = given.latent_ids + torch.tensor([1, 0, 0, 0])
    with trace(transformer, family=Flux2()) as t:
        cached(transformer, given, cache)
    with pytest.raises(NothingCaptured, match="found reference tokens in none"):
        t.maps()


def test_the_order_of_the_references_can_be_set():
    transformer, given = tiny_transformer(), Inputs()
    with trace(transformer, family=Flux2()) as t:
        denoise(transformer, given)
    with trace(transformer, family=Flux2(order=(20, 10))) as turned:
        denoise(transformer, given)
    with trace(transformer, family=Flux2(order=(20,))) as one:
        denoise(transformer, given)
    assert turned.references == (0, 1) and one.references == (0,)
    for ours, theirs in (
        (turned.maps(0, 1), t.maps(0, 0)),
        (turned.maps(0, 0), t.maps(0, 1)),
        (one.maps(), t.maps(0, 1)),
    ):
        assert np.array_equal(ours.g2r.unified, theirs.g2r.unified)
        assert ours.reference_mass == theirs.reference_mass


@pytest.mark.parametrize("cache", [False, True], ids=["", "cache"])
@pytest.mark.parametrize(
    "generated, number, reference", [((1, 4), 0, (2, 1)), ((3, 0), 0, (0, 4)), ((0, 2), 1, (5, 1))]
)
def test_the_specific_map_of_a_planted_copy_peaks_at_its_key(monkeypatch, generated, number, reference, cache):
    transformer = tiny_transformer()
    real = transformer_flux2.dispatch_attention_fn
    query = QUERIES.start + generated[0] * GENERATED[1] + generated[1]
    key = (CACHED_KEYS if cache else KEYS)[number].start + reference[0] * REFERENCES[number][1] + reference[1]

    def planted(q, k, v, **kwargs):  # (B, tokens, heads, d), after the rotary embedding
        if k.shape[1] == 73:  # not the references among themselves
            q = q.clone()
            q[:, query] = 6 * k[:, key]
        return real(q, k, v, **kwargs)

    monkeypatch.setattr(transformer_flux2, "dispatch_attention_fn", planted)
    if cache:
        with_cache_processors(transformer)
    with trace(transformer, family=Flux2()) as t:
        (denoise_with_cache if cache else denoise)(transformer, Inputs())
    maps = t.maps(0, number)
    for layer in blocks(transformer):
        row = maps.specific(*generated, layer=layer)
        assert np.unravel_index(row.argmax(), row.shape) == reference and row.max() > 0.9
        assert maps.specific(2, 5, layer=layer).max() < 0.8


@pytest.mark.parametrize("cache", [False, True], ids=["", "cache"])
def test_without_a_reference_the_trace_says_so(cache):
    transformer = with_cache_processors(tiny_transformer()) if cache else tiny_transformer()
    with trace(transformer, family=Flux2()) as t:
        denoise(transformer, Inputs(references=()), guidance=True)
    with pytest.raises(NothingCaptured, match=r"'flux2' found reference tokens in none"):
        t.maps()


def with_lora(transformer):
    layers = ["to_q", "to_k", "add_k_proj", "to_qkv_mlp_proj"]
    transformer.add_adapter(LoraConfig(r=2, target_modules=layers, init_lora_weights=False))


def fused(transformer):
    transformer.fuse_qkv_projections()  # of the double blocks; single blocks have nothing else


def compiled(transformer):
    transformer.compile_repeated_blocks(backend="eager")


@pytest.mark.parametrize("change", [with_lora, fused, compiled])
def test_changed_transformers_are_captured_under_the_same_names(change):
    transformer, given = tiny_transformer(), Inputs()
    change(transformer)
    with torch.compiler.set_stance("force_eager"), recorded_products(blocks(transformer)) as products:
        plain = denoise(transformer, given)
    with trace(transformer, family=Flux2()) as t:
        seen = denoise(transformer, given)
    assert all(map(torch.equal, plain, seen))
    assert_captured(t, products, KEYS, 1)


class InpaintPipeline:
    def __call__(self, image, image_reference=None):
        """Takes the arguments of Flux2KleinInpaintPipeline."""


def test_what_the_family_refuses():
    transformer = tiny_transformer()
    assert Flux2().refuses(transformer, transformer) is None
    assert "no Flux2Transformer2DModel" in Flux2().refuses(None, torch.nn.Linear(2, 2))
    assert "InpaintPipeline also puts the picture" in Flux2().refuses(InpaintPipeline(), transformer)
    assert Flux2(order=(20, 10)).refuses(InpaintPipeline(), transformer) is None


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


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("kind", [Flux2Pipeline, Flux2KleinPipeline, Flux2KleinKVPipeline])
def test_the_pipelines(kind, images):
    pipeline = flux2_pipeline(kind, Flux2())
    arguments = dict(image=[picture(grid, i) for i, grid in enumerate(REFERENCES)])
    if kind is Flux2KleinPipeline:
        arguments["negative_prompt_embeds"] = torch.randn(images, TEXT, 12)
    if kind is Flux2KleinKVPipeline:
        arguments["num_inference_steps"] = 3
    with recorded_products(blocks(pipeline.transformer)) as products:
        plain = pipeline_call(pipeline, images, **arguments)
    with trace(pipeline, family=Flux2(), plan=CapturePlan(heads=None)) as t:
        seen = pipeline_call(pipeline, images, **arguments)
    assert torch.equal(plain, seen)
    if kind is Flux2KleinKVPipeline:
        assert_captured(t, generated_products(products), CACHED_KEYS, images)
    else:
        every = 2 if kind is Flux2KleinPipeline else 1
        assert {len(found) for found in products.values()} == {2 * every}
        assert_captured(t, {n: found[::every] for n, found in products.items()}, KEYS, images)


def test_inpainting_calls_its_reference_picture_reference_0():
    family = Flux2(order=(20, 10))
    pipeline = flux2_pipeline(Flux2KleinInpaintPipeline, family)
    assert "image_reference" in Flux2().refuses(pipeline, pipeline.transformer)
    hole = Image.fromarray(np.pad(np.full((32, 32), 255, np.uint8), ((16, 16), (32, 32))))
    arguments = dict(image=picture(GENERATED, 2), mask_image=hole, strength=1.0)
    arguments["negative_prompt_embeds"] = torch.randn(1, TEXT, 12)
    with trace(pipeline, family=family) as t:
        seen = pipeline_call(pipeline, 1, image_reference=picture(REFERENCES[0], 0), **arguments)
    plain = pipeline_call(pipeline, 1, image_reference=picture(REFERENCES[0], 0), **arguments)
    assert torch.equal(plain, seen) and t.references == (0, 1)
    assert [t.maps(0, i).g2r.unified.shape for i in (0, 1)] == [REFERENCES[0], GENERATED]
    with trace(pipeline, family=family) as t:
        pipeline_call(pipeline, 1, **arguments)
    assert t.references == (0,) and t.maps().g2r.unified.shape == GENERATED
