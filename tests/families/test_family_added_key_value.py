"""Decoders of Kandinsky 2 and of UnCLIP: the leading added keys are the picture's, beside a text's and the picture's own.

Kandinsky's pipelines are run themselves: 2.2 whole, 2.1 (whose pipeline needs a tokenizer's vocabulary) and UnCLIP as
`KandinskyPipeline` and `UnCLIPImageVariationPipeline` call their UNets: rows [negative, positive] of the same latents, the
projection's or `UnCLIPTextProjModel`'s tokens, in UnCLIP with the text's mask, which is padded with ones in front."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders.added_key_value import (
    DOWN,
    EMBED,
    FAMILY,
    KINDS,
    LATENT,
    MID,
    TEXT,
    TOKENS,
    WIDTH,
    Pipeline,
    assert_maps_equal_in_a_row,
    generate,
    share,
    small_unet,
    traced,
)
from diffusers import DDPMScheduler, KandinskyV22Pipeline, UNet2DConditionModel, VQModel
from diffusers.models.attention_processor import AttnAddedKVProcessor, SlicedAttnAddedKVProcessor
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from oracle import recorded_products
from peft import LoraConfig

from i2am_debug import CapturePlan, trace
from i2am_debug.errors import NothingCaptured, UnsupportedModel
from i2am_debug.families.added_key_value import AddedKeyValue
from i2am_debug.families.registry import registered


@KINDS
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("guided", [False, True])
def test_maps_equal_the_oracle(kind, images, guided):
    t, products = traced(small_unet(kind), kind, images, guided=guided)
    assert t.images == images and t.references == (0,)
    assert list(products) == [DOWN, MID, "up_blocks.0.attentions.0", "up_blocks.0.attentions.1"]
    own = 0 if kind == "image_proj" else TEXT
    for image in range(images):
        row = image + images * guided
        maps = t.maps(image)
        assert maps.steps == (0, 1)
        assert_maps_equal_in_a_row(maps, products, row, TOKENS[kind])
        assert {maps.r2g.by_layer[layer].shape for layer in maps.layers} == {LATENT}
    assert {p.k.shape[2] for p in products[DOWN]} == {TOKENS[kind] + own + LATENT[0] * LATENT[1]}


@pytest.mark.parametrize("kind", ["image_proj", "text_image_proj"])
def test_reference_mass_is_the_share_of_the_leading_keys(kind):
    t, products = traced(small_unet(kind), kind, 2)
    for image in (0, 1):
        mass = t.maps(image).reference_mass
        assert list(mass) == list(products)
        for layer, each in products.items():
            assert mass[layer] == pytest.approx(share(each, 2 + image, TOKENS[kind]), rel=1e-5)
            assert 0.05 < mass[layer] < 0.95


def test_a_masked_text_leaves_the_maps_as_they_are():
    t, products = traced(small_unet(None), None)
    assert all(p.mask is not None and p.mask.min() < -1000 for p in products[DOWN]), "the text's padding is masked"
    assert t.maps().reference_mass[MID] == pytest.approx(share(products[MID], 1, 4), rel=1e-5)


@pytest.mark.parametrize("same", ["one_prompt", "one_picture"])
def test_either_of_text_and_picture_tells_the_halves_apart(same):
    t, products = traced(small_unet("text_image_proj"), "text_image_proj", 3, **{same: True})
    assert t.images == 3
    assert_maps_equal_in_a_row(t.maps(2), products, 5, 10)


def test_tokens_without_a_grid_are_one_row():
    maps = traced(small_unet(), "image_proj")[0].maps()
    assert maps.r2g.unified.sum() == pytest.approx(1, abs=1e-5)
    assert maps.undefined_place == "the reference tokens have no grid"
    assert maps.g2r.unified.shape == maps.specific(0, 0).shape == (1, 32)


def test_layers_that_read_only_what_is_given():
    unet = small_unet("text_image_proj", only_cross_attention=True, mid_block_only_cross_attention=True)
    t, products = traced(unet, "text_image_proj")
    assert {p.k.shape[2] for p in products[MID]} == {10 + TEXT}
    assert_maps_equal_in_a_row(t.maps(), products, 1, 10)
    assert t.maps().reference_mass[MID] == pytest.approx(share(products[MID], 1, 10), rel=1e-5)


def test_the_number_of_tokens_is_a_setting():
    t, products = traced(small_unet(None), None, family=AddedKeyValue(reference_tokens=3))
    assert_maps_equal_in_a_row(t.maps(), products, 1, 3)
    with pytest.raises(UnsupportedModel, match=r"'down_blocks.1.attentions.0' has 11 keys .* fewer than the 12"):
        traced(small_unet(None), None, family=AddedKeyValue(reference_tokens=12))


@pytest.mark.parametrize("images", [1, 3])
def test_the_pipeline_of_kandinsky_2_2(images):
    pipeline = KandinskyV22Pipeline(
        unet=small_unet(addition_embed_type="image"),
        scheduler=DDPMScheduler(),
        movq=VQModel(block_out_channels=(4,), norm_num_groups=2, latent_channels=4),
    )
    pipeline.set_progress_bar_config(disable=True)

    def call() -> torch.Tensor:
        draw = torch.Generator().manual_seed(3)
        picture, negative = torch.randn(2, images, EMBED, generator=draw)
        return pipeline(
            image_embeds=picture,
            negative_image_embeds=negative,
            height=8,
            width=12,
            num_inference_steps=2,
            output_type="latent",
            generator=draw,
        ).images

    plain = call()
    with recorded_products(FAMILY.layers(pipeline.unet)) as products, trace(pipeline, family=FAMILY) as t:
        looked_at = call()
    assert torch.equal(plain, looked_at)
    assert t.images == images and t.maps().steps == (0, 1)
    for image in range(images):
        assert_maps_equal_in_a_row(t.maps(image), products, images + image, 32)
        mass = t.maps(image).reference_mass[MID]
        assert mass == pytest.approx(share(products[MID], images + image, 32), rel=1e-5)


@pytest.mark.parametrize("change", ["LoRA", "compiled block", "compiled unet"])
def test_lora_and_compiled_modules_are_captured(change):
    unet = small_unet("text_image_proj")
    if change == "LoRA":
        targets = ["to_q", "to_k", "add_k_proj"]
        unet.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
        t, products = traced(unet, "text_image_proj")
        assert_maps_equal_in_a_row(t.maps(), products, 1, 10)
        return
    expected = traced(unet, "text_image_proj")[0].maps().g2r.unified
    if change == "compiled block":
        unet.mid_block = torch.compile(unet.mid_block, backend="eager")
    else:
        unet = torch.compile(unet, backend="eager")
    with trace(unet, family=FAMILY) as t:
        generate(unet, "text_image_proj")
    assert MID in t.maps().layers
    assert np.allclose(t.maps().g2r.unified, expected, rtol=1e-6)


@pytest.mark.parametrize("processor", [AttnAddedKVProcessor(), SlicedAttnAddedKVProcessor(1)])
def test_attention_that_bypasses_torch_is_an_error_and_never_the_own_keys_alone(processor):
    unet = small_unet()
    FAMILY.layers(unet)[MID].set_processor(processor)
    with pytest.raises(NothingCaptured, match=rf"'{MID}'.*AttnAddedKVProcessor"):
        traced(unet, "image_proj")
    with trace(unet, plan=CapturePlan(exclude=(MID,)), family=FAMILY) as t:
        generate(unet, "image_proj")
    assert MID not in t.maps().layers


def test_what_is_not_its_own_is_refused():
    assert "no attention module of it has added keys" in FAMILY.refuses(None, torch.nn.Linear(2, 2))
    ordinary = UNet2DConditionModel(
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=WIDTH,
        norm_num_groups=4,
        attention_head_dim=2,
    )
    assert "no attention module of it has added keys" in FAMILY.refuses(ordinary, ordinary)
    floyd = small_unet("text_proj")
    assert "'text_proj'" in FAMILY.refuses(floyd, floyd)
    for prior in ("prior", "prior_prior"):
        assert "out of the prompt" in FAMILY.refuses(Pipeline(**{prior: torch.nn.Linear(2, 2)}), small_unet())


@KINDS
def test_it_alone_knows_its_models(kind):
    unet = small_unet(kind)
    assert FAMILY.refuses(unet, unet) is None
    assert {f.name for f in registered() if f.refuses(unet, unet) is None} <= {FAMILY.name}


def test_another_number_of_tokens_in_the_pipeline_is_named():
    decoder = small_unet(None)
    projection = UnCLIPTextProjModel(
        clip_extra_context_tokens=6, clip_embeddings_dim=EMBED, time_embed_dim=32, cross_attention_dim=WIDTH
    )
    pipeline = Pipeline(text_proj=projection)
    assert "AddedKeyValue(reference_tokens=6)" in FAMILY.refuses(pipeline, decoder)
    assert AddedKeyValue(reference_tokens=6).refuses(pipeline, decoder) is None
    assert FAMILY.refuses(decoder, decoder) is None
