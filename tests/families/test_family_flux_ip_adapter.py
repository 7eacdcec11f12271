"""Flux and Chroma with IP-Adapters: the maps are those of each adapter's own product in the double blocks.

The adapters are loaded as `load_ip_adapter` loads them, from state dicts, into tiny transformers inside the real pipelines;
the pipelines are called with the features that their image encoder would give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders.flux_ip_adapter import (
    FAMILY,
    FEATURES,
    GRID,
    IMAGE,
    LAYERS,
    TEXT,
    TOKENS,
    assert_maps_equal_without_a_grid,
    chroma,
    compiled,
    compiled_parts,
    conditional,
    denoise,
    embedded,
    fused,
    generate,
    looked_at,
    modules,
    pipeline_of,
    positions,
    with_adapters,
    with_lora,
)
from diffusers import (
    ChromaPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    SD3Transformer2DModel,
)
from oracle import recorded_products
from PIL import Image

from i2am_debug import trace
from i2am_debug.errors import NothingCaptured, UnsupportedModel
from i2am_debug.families.family import Product


@pytest.mark.parametrize("kind, make", [(ChromaPipeline, chroma)])
@pytest.mark.parametrize("guided", [False, True], ids=["one forward", "two forwards"])
@pytest.mark.parametrize("images", [1, 3])
def test_maps_are_those_of_the_adapters_product_in_the_conditional_forward(kind, make, guided, images):
    pipeline = pipeline_of(kind, with_adapters(make))
    t, products = looked_at(pipeline, images=images, guided=guided)
    assert [p.k.shape[2] for p in products[LAYERS[0]]] == [TEXT + IMAGE, TOKENS] * (2 + 2 * guided)
    assert t.images == images and t.references == (0,)
    for image in range(images):
        maps = t.maps(image)
        assert_maps_equal_without_a_grid(maps, conditional(products, guided=guided), row=image)
        assert maps.total_steps == 2 and not maps.reference_mass and not maps.branch_share


def test_pictures_are_numbered_across_adapters_and_those_of_one_share_a_product():
    pipeline = pipeline_of(FluxPipeline, with_adapters(adapters=3))
    t, products = looked_at(pipeline, pictures=(1, 2, 1))
    assert t.references == (0, 1, 2, 3)
    for number, (adapter, keys) in enumerate([(0, None), (1, slice(0, TOKENS)), (1, slice(TOKENS, None)), (2, None)]):
        own = conditional(products, adapter, adapters=3)
        maps = t.maps(reference=number)
        assert_maps_equal_without_a_grid(maps, own, keys or slice(None))
        assert set(maps.reference_mass) == (set(LAYERS) if keys else set())
        for layer, share in maps.reference_mass.items():
            truth = torch.stack([p.weights()[..., keys].sum(-1).mean() for p in own[layer]]).mean()
            assert share == pytest.approx(float(truth), rel=1e-5)


def test_an_adapter_at_scale_0_in_a_block_is_not_looked_at_there_and_numbers_stay():
    pipeline = pipeline_of(FluxPipeline, with_adapters(adapters=2))
    pipeline.set_ip_adapter_scale([[0, 0.4], [0.7, 0.6]])
    t, products = looked_at(pipeline, pictures=(2, 1))
    assert t.references == (0, 1, 2)
    for number, adapter, keys, layers in [
        (1, 0, slice(TOKENS, None), LAYERS[1:]),
        (2, 1, slice(None), LAYERS),
    ]:
        own = conditional(products, adapter, adapters=2)
        assert_maps_equal_without_a_grid(t.maps(reference=number), own, keys, layers=layers)
    pipeline.set_ip_adapter_scale([0.0, 0.0])
    with trace(pipeline, family=FAMILY) as t:
        generate(pipeline, pictures=(2, 1))
    with pytest.raises(NothingCaptured, match="is its scale above 0"):
        t.maps()


@pytest.mark.parametrize(
    "given, pictures",
    [
        (lambda m: {"ip_adapter_image_embeds": torch.ones(1, FEATURES)}, 1),
        (lambda m: {"ip_hidden_states": [embedded(m)]}, 2),
        (lambda m: {"ip_hidden_states": [embedded(m).flatten(1, 2)]}, 1),
    ],
    ids=["older form", "tokens of pictures", "tokens"],
)
def test_a_transformer_alone_and_other_ways_to_pass_a_picture(given, pictures):
    model = with_adapters()
    given, ids = given(model), positions(0, GRID)
    with recorded_products(modules(model)) as products:
        plain = denoise(model, ids[None], dict(given))  # batched positions are the older form
    with trace(model, family=FAMILY) as t:
        seen = denoise(model, ids[None], dict(given))
    assert torch.equal(plain, seen) and t.references == tuple(range(pictures))
    for number in range(pictures):
        size = products[LAYERS[0]][1].k.shape[2] // pictures
        keys = slice(number * size, (number + 1) * size)
        assert_maps_equal_without_a_grid(t.maps(reference=number), conditional(products), keys)


def test_kontext_with_an_adapter_is_left_to_its_own_family_unless_asked_for():
    model = with_adapters()
    pipeline = pipeline_of(FluxKontextPipeline, model)
    assert "pass family=FluxIPAdapter()" in FAMILY.refuses(pipeline, model)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8))
    t, products = looked_at(pipeline, guided=True, image=picture, max_area=64 * 96, _auto_resize=False)
    assert {p.q.shape[2] for p in products[LAYERS[0]]} == {TEXT + IMAGE + 15, IMAGE + 15}
    assert_maps_equal_without_a_grid(t.maps(), conditional(products, guided=True), queries=slice(0, IMAGE))


def test_an_unknown_grid_and_more_products_than_adapters_are_errors():
    model = with_adapters()
    given = {"ip_adapter_image_embeds": [torch.ones(1, 1, FEATURES)]}
    with pytest.raises(UnsupportedModel, match="its 24 tokens must fill a rectangle"), trace(model, family=FAMILY):
        denoise(model, positions(0, GRID).flip(0), given)
    product = Product(
        layer="transformer_blocks.0",
        module=model.transformer_blocks[0].attn,
        arguments={"joint_attention_kwargs": given},
        forward=0,
        call=2,
        query_tokens=IMAGE,
        key_tokens=TOKENS,
    )
    with pytest.raises(UnsupportedModel, match="attends 3 times with 1 adapters and pictures for 1"):
        FAMILY.layout(product)


@pytest.mark.parametrize("change", [with_lora, fused, compiled, compiled_parts])
def test_changed_transformers_are_captured_under_the_same_names(change):
    model = with_adapters()
    attention = modules(model)
    change(model)
    given = {"ip_adapter_image_embeds": [torch.ones(1, 1, FEATURES)]}
    with torch.compiler.set_stance("force_eager"), recorded_products(attention) as products:
        plain = denoise(model, positions(0, GRID), given)
    assert FAMILY.refuses(model, model) is None
    with trace(model, family=FAMILY) as t:
        seen = denoise(model, positions(0, GRID), given)
    assert torch.equal(plain, seen)
    assert_maps_equal_without_a_grid(t.maps(), conditional(products))


def test_what_the_family_refuses():
    model = with_adapters()
    pipeline = pipeline_of(FluxPipeline, model)
    assert FAMILY.refuses(model, model) is None and FAMILY.refuses(pipeline, model) is None
    pipeline.unload_ip_adapter()
    assert "pipeline.load_ip_adapter" in FAMILY.refuses(pipeline, model)
    assert "pipeline.load_ip_adapter" in FAMILY.refuses(None, chroma())
    sd3 = SD3Transformer2DModel(sample_size=8, num_layers=1, attention_head_dim=8, num_attention_heads=2)
    assert "neither FluxTransformer2DModel nor Chroma" in FAMILY.refuses(sd3, sd3)
