"""Flux Kontext: the reference after the generated picture in one joint sequence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders.flux_kontext import (
    GENERATED,
    KEYS,
    QUERIES,
    REFERENCE,
    blocks,
    compiled,
    compiled_parts,
    denoise,
    fused,
    inputs,
    kontext_pipeline,
    picture,
    pipeline_call,
    tiny_transformer,
    true_logits,
    with_lora,
)
from diffusers import (
    FluxKontextInpaintPipeline,
    FluxKontextPipeline,
)
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from oracle import assert_maps_equal, recorded_products
from PIL import Image

from i2am_debug import trace
from i2am_debug.errors import NothingCaptured, UnsupportedModel
from i2am_debug.families.flux_kontext import FluxKontext


def test_other_pictures_in_the_sequence_are_references_of_their_own():
    """A pipeline derived from Kontext's may number more pictures; what counts is column 0 of img_ids, not the order."""
    transformer = tiny_transformer()
    given = inputs(references={2: (2, 7), 1: REFERENCE})
    with recorded_products(blocks(transformer)) as products:
        denoise(transformer, given, guidance=False)
    with trace(transformer, family=FluxKontext()) as t:
        denoise(transformer, given, guidance=False)
    assert t.references == (0, 1)
    for number, keys in {0: slice(43, 58), 1: slice(29, 43)}.items():
        assert_maps_equal(t.maps(0, number), true_logits(products, 0, QUERIES, keys))
    assert t.maps(0, 1).g2r.unified.shape == (2, 7)


@pytest.mark.parametrize("order", [range(38), [*range(24), *range(24, 39)[::-1]]], ids=["one missing", "backwards"])
def test_reference_tokens_that_fill_no_rectangle_row_by_row_have_no_grid(order):
    transformer, given = tiny_transformer(), inputs()
    order = list(order)
    given["hidden_states"], given["img_ids"] = given["hidden_states"][:, order], given["img_ids"][order]
    with trace(transformer, family=FluxKontext()) as t:
        denoise(transformer, given, guidance=False)
    assert t.maps().r2g.unified.shape == GENERATED
    assert t.maps().undefined_place == "the reference tokens have no grid"
    assert t.maps().g2r.unified.shape == (1, len(order) - 24)


def test_without_a_reference_or_with_unknown_positions_the_trace_says_so():
    transformer = tiny_transformer()
    with trace(transformer, family=FluxKontext()) as t:
        denoise(transformer, inputs(references={}), guidance=True)
    with pytest.raises(NothingCaptured, match=r"'flux_kontext' found reference tokens in none"):
        t.maps()
    given = inputs()
    given["img_ids"] = given["img_ids"].flip(0)
    with (
        pytest.raises(UnsupportedModel, match=r"pictures \[1, 0\].*24 tokens must fill a rectangle"),
        trace(transformer, family=FluxKontext()),
    ):
        denoise(transformer, given, guidance=False)
    given["img_ids"][3, 0] = 0
    with (
        pytest.raises(UnsupportedModel, match=r"numbers the pictures \[1, 0, 1, 0\]"),
        trace(transformer, family=FluxKontext()),
    ):
        denoise(transformer, given, guidance=False)


def test_bfloat16_has_its_positions_in_bfloat16_too():
    transformer = tiny_transformer().bfloat16()
    given = {name: x.bfloat16() if isinstance(x, torch.Tensor) else x for name, x in inputs().items()}
    with recorded_products(blocks(transformer)) as products:
        plain = denoise(transformer, given, guidance=False)
    with trace(transformer, family=FluxKontext()) as t:
        seen = denoise(transformer, given, guidance=False)
    assert all(map(torch.equal, plain, seen))
    assert_maps_equal(t.maps(), true_logits(products, 0, QUERIES, KEYS))


def test_an_ip_adapter_beside_the_reference_is_not_taken_for_one():
    transformer, given = tiny_transformer(), inputs()
    block = transformer.transformer_blocks[0].attn
    block.set_processor(FluxIPAdapterAttnProcessor(hidden_size=32, cross_attention_dim=8, num_tokens=(4,)))
    given["joint_attention_kwargs"] = {"ip_hidden_states": [torch.randn(1, 4, 8)]}
    with recorded_products({"transformer_blocks.0": block}) as products:
        denoise(transformer, given, guidance=False)
    with trace(transformer, family=FluxKontext()) as t:
        denoise(transformer, given, guidance=False)
    joint = products["transformer_blocks.0"][::2]
    assert [p.k.shape[2] for p in products["transformer_blocks.0"]] == [44, 4, 44, 4]
    truth = torch.stack([p.logits(queries=QUERIES, keys=KEYS)[0] for p in joint]).softmax(-1).mean((0, 1, 2))
    ours = t.maps().g2r.by_layer["transformer_blocks.0"].ravel()
    assert np.abs(ours - truth.numpy()).max() <= 1e-5 * float(truth.max())


@pytest.mark.parametrize("change", [with_lora, fused, compiled, compiled_parts])
def test_changed_transformers_are_captured_under_the_same_names(change):
    transformer = tiny_transformer()
    attention = blocks(transformer)
    change(transformer)
    with torch.compiler.set_stance("force_eager"), recorded_products(attention) as products:
        plain = denoise(transformer, inputs(), guidance=False)
    with trace(transformer, family=FluxKontext()) as t:
        seen = denoise(transformer, inputs(), guidance=False)
    assert t.maps().layers == tuple(attention)
    assert_maps_equal(t.maps(), true_logits(products, 0, QUERIES, KEYS))
    assert all(map(torch.equal, plain, seen))


def test_what_the_family_refuses():
    class FluxPipeline:
        def __init__(self, transformer):
            self.transformer = transformer

    family, plain = FluxKontext(), tiny_transformer()
    assert family.refuses(plain, plain) is None
    assert family.refuses(FluxPipeline(plain), plain) is None  # not diffusers' own: may well pass a reference
    FluxPipeline.__module__ = "diffusers.pipelines.flux.pipeline_flux"
    assert "FluxPipeline puts no reference picture into the sequence" in family.refuses(FluxPipeline(plain), plain)
    fill = tiny_transformer(in_channels=40, out_channels=16)
    assert "reads 40 channels and writes 16" in family.refuses(fill, fill)
    assert "no FluxTransformer2DModel" in family.refuses(None, torch.nn.Linear(2, 2))
    plain.encoder_hid_proj = torch.nn.Linear(2, 2)  # what load_ip_adapter leaves
    assert "IP-Adapter is loaded" in family.refuses(plain, plain)


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("true_cfg_scale", [1.0, 2.0])
def test_the_pipeline(images, true_cfg_scale):
    pipeline = kontext_pipeline(FluxKontextPipeline)
    arguments = dict(image=picture(REFERENCE, 0), true_cfg_scale=true_cfg_scale)
    with recorded_products(blocks(pipeline.transformer)) as products:
        plain = pipeline_call(pipeline, images, **arguments)
    with trace(pipeline, family=FluxKontext()) as t:
        seen = pipeline_call(pipeline, images, **arguments)
    assert torch.equal(plain, seen) and t.images == images and t.maps().total_steps == 2
    for image in range(images):
        maps = t.maps(image)
        assert_maps_equal(maps, true_logits(products, image, QUERIES, KEYS, every=1 + (true_cfg_scale > 1)))
        assert maps.r2g.unified.shape == GENERATED and maps.g2r.unified.shape == REFERENCE


def test_inpainting_reads_its_reference_picture_or_else_the_picture_itself():
    pipeline = kontext_pipeline(FluxKontextInpaintPipeline)
    hole = Image.fromarray(np.pad(np.full((32, 32), 255, np.uint8), ((16, 16), (32, 32))))
    arguments = dict(image=picture(GENERATED, 1), mask_image=hole)
    for reference, grid in ({"image_reference": picture(REFERENCE, 0)}, REFERENCE), ({}, GENERATED):
        with recorded_products(blocks(pipeline.transformer)) as products:
            plain = pipeline_call(pipeline, 1, **arguments, **reference)
        with trace(pipeline, family=FluxKontext()) as t:
            seen = pipeline_call(pipeline, 1, **arguments, **reference)
        assert torch.equal(plain, seen) and t.maps().g2r.unified.shape == grid and t.references == (0,)
        assert_maps_equal(t.maps(), true_logits(products, 0, QUERIES, slice(QUERIES.stop, None)))


def test_the_pipeline_without_a_reference_says_so():
    pipeline = kontext_pipeline(FluxKontextPipeline)
    with trace(pipeline, family=FluxKontext()) as t:
        pipeline_call(pipeline, 1)
    with pytest.raises(NothingCaptured, match="was the pipeline called with a reference"):
        t.maps()


def test_the_mass_inside_and_outside_the_region_is_the_model_s_own():
    """Of each image's own region; the second image has none, all of it is inside."""
    transformer, given = tiny_transformer(), inputs(images=2)
    region = np.zeros((8, 12), dtype=bool)  # 2x2 pixels a token
    region[:3, :5] = True
    inside = np.zeros(GENERATED)
    inside[:1, :2], inside[0, 2], inside[1, :2], inside[1, 2] = 1, 0.5, 0.5, 0.25
    inside = torch.from_numpy(inside).flatten()
    with recorded_products(blocks(transformer)) as products:
        denoise(transformer, given, guidance=False)
    with trace(transformer, family=FluxKontext(), mask=[region, None]) as t:
        denoise(transformer, given, guidance=False)
    for layer, found in products.items():
        per_token = [
            torch.stack(
                [p.weights(slice(i, i + 1), QUERIES)[0].double()[..., KEYS].sum(-1).mean(0) for p in found]
            ).mean(0)
            for i in range(2)
        ]
        ours, second = t.maps(0), t.maps(1)
        expected = (per_token[0] @ inside / inside.sum(), per_token[0] @ (1 - inside) / (1 - inside).sum())
        assert ours.reference_mass[layer] == pytest.approx(float(per_token[0].mean()), rel=1e-5)
        assert ours.reference_mass_inside[layer] == pytest.approx(float(expected[0]), rel=1e-5)
        assert ours.reference_mass_outside[layer] == pytest.approx(float(expected[1]), rel=1e-5)
        assert abs(float(expected[0] - expected[1])) > 1e-3
        assert second.reference_mass_inside[layer] == second.reference_mass[layer]
        assert second.reference_mass_outside == {}
    with trace(transformer, family=FluxKontext()) as t:
        denoise(transformer, given, guidance=False)
    assert t.maps(0).reference_mass_inside == t.maps(0).reference_mass_outside == {}
    with (
        pytest.raises(UnsupportedModel, match="differ in size; use batch_size=1"),
        trace(transformer, family=FluxKontext(), mask=[region, None, region.T]),
    ):
        pass
