"""Flux 2: several references in one joint sequence, guidance by a second forward, and Klein's key-value cache."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from builders.flux2 import (
    CACHED_KEYS,
    GENERATED,
    KEYS,
    QUERIES,
    REFERENCES,
    TEXT,
    InpaintPipeline,
    Inputs,
    assert_captured,
    blocks,
    cached,
    compiled,
    denoise,
    denoise_with_cache,
    extract,
    flux2_pipeline,
    fused,
    generated_products,
    picture,
    pipeline_call,
    tiny_transformer,
    with_cache_processors,
    with_lora,
)
from diffusers import (
    Flux2KleinInpaintPipeline,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
)
from diffusers.models.transformers import transformer_flux2
from oracle import recorded_products
from PIL import Image

from i2am_debug import CapturePlan, trace
from i2am_debug.errors import NothingCaptured, UnsupportedModel
from i2am_debug.families.flux2 import _EXTRACTED, Flux2


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


def test_what_the_family_refuses():
    transformer = tiny_transformer()
    assert Flux2().refuses(transformer, transformer) is None
    assert "no Flux2Transformer2DModel" in Flux2().refuses(None, torch.nn.Linear(2, 2))
    assert "InpaintPipeline also puts the picture" in Flux2().refuses(InpaintPipeline(), transformer)
    assert Flux2(order=(20, 10)).refuses(InpaintPipeline(), transformer) is None


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
