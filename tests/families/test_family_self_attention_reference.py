"""References that self-attention reads: features behind the layer's own tokens, and two pictures in one latent.

DreamLite is a pipeline of diffusers. IDM-VTON, OOTDiffusion, MimicBrush and CatVTON are not: here they are its UNet with a
forward, a processor or a block that takes and places the reference as theirs do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from builders.self_attention_reference import (
    AXES,
    TEXT,
    AppendsKeys,
    AppendsTokens,
    OOTDiffusion,
    ReadsBank,
    assert_halves,
    assert_rows_are,
    catvton,
    compiled_in_parts,
    dreamlite,
    edit,
    features_for,
    fused,
    give,
    own_tokens,
    run_twice,
    self_attention,
    side_by_side,
    small,
    with_adapters,
)
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor2_0
from oracle import assert_maps_equal, recorded_products
from torch import nn

from i2am_debug import CapturePlan, trace
from i2am_debug.errors import NothingCaptured, UnsupportedModel
from i2am_debug.families.self_attention_reference import KeyConcatenation, SpatialConcatenation


@pytest.mark.parametrize("processor", [AppendsKeys, AppendsTokens])
@pytest.mark.parametrize(("references", "latent"), [(1, None), (2, None), (1, (4, 7)), (2, (5, 3))])
def test_maps_and_mass_of_appended_features_equal_the_models_own_attention(processor, references, latent):
    unet = small(processor=processor)
    height, width = latent or (6, 10)
    levels = {8: (height, width), 16: (-(-height // 2), -(-width // 2))}
    give(unet, features_for(unet, 2, references, levels))
    sample, text = torch.randn(2, 4, 6, 10), torch.randn(2, 5, TEXT)
    plain = run_twice(unet, sample, text)
    with trace(unet, family=KeyConcatenation(references=references, reference_latent=latent)) as t:
        looked_at = run_twice(unet, sample, text)
    assert all(map(torch.equal, plain, looked_at))
    with recorded_products(self_attention(unet)) as products:
        run_twice(unet, sample, text)
    own, grids = own_tokens(unet), {n: levels[m.to_q.in_features] for n, m in self_attention(unet).items()}
    assert t.images == 2 and t.references == tuple(range(references))
    for image in (0, 1):
        for number in range(references):
            maps, truth = t.maps(image, reference=number), {}
            for layer, each in products.items():
                first = own[layer] + number * math.prod(grids[layer])
                keys = slice(first, first + math.prod(grids[layer]))
                truth[layer] = [p.logits([image], slice(0, own[layer]), keys)[0] for p in each]
                mass = np.mean(
                    [float(p.weights([image], slice(0, own[layer]))[..., keys].sum(-1).mean()) for p in each]
                )
                assert maps.reference_mass[layer] == pytest.approx(mass, rel=1e-5)
            assert_maps_equal(maps, truth)
            assert {la: m.shape for la, m in maps.g2r.by_layer.items()} == grids
            assert maps.r2g.unified.shape == (6, 10)


def test_layers_without_features_are_passed_over():
    unet = small(processor=AppendsKeys)
    give(unet, features_for(unet))
    unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor.features = None
    with trace(unet, family=KeyConcatenation()) as t:
        run_twice(unet, torch.randn(1, 4, 6, 10), torch.randn(1, 5, TEXT))
    assert set(t.maps().layers) == set(self_attention(unet)) - {"mid_block.attentions.0"}
    give(unet, [None] * len(self_attention(unet)))
    with trace(unet, family=KeyConcatenation()) as t:
        run_twice(unet, torch.randn(1, 4, 6, 10), torch.randn(1, 5, TEXT))
    with pytest.raises(NothingCaptured, match="found reference tokens in none"):
        t.maps()


@pytest.mark.parametrize("images", [1, 3])
def test_ootdiffusion_shows_the_first_half(images):
    """Its pipeline: the same prompt in both halves, and the features of [garment, a picture of zeros]."""
    unet = small(OOTDiffusion, in_channels=8)
    sample, text = torch.randn(images, 8, 6, 10).repeat(2, 1, 1, 1), torch.randn(images, 5, TEXT).repeat(2, 1, 1)
    features = features_for(unet, 2 * images)
    assert KeyConcatenation().refuses(unet, unet) is None
    with trace(unet, family=KeyConcatenation()) as t:
        run_twice(unet, sample, text, spatial_attn_inputs=features)
    with recorded_products(self_attention(unet)) as products:
        run_twice(unet, sample, text, spatial_attn_inputs=features)
    assert t.images == images
    for image in range(images):
        assert_rows_are(t.maps(image), products, own_tokens(unet), image)


@pytest.mark.parametrize(("conditional", "row"), [("first", 0), ("last", 4)])
def test_the_parts_of_a_guidance_batch_can_be_set(conditional, row):
    unet = small()  # the features are not among the arguments, and the text is the same everywhere
    give(unet, features_for(unet, 6))
    sample, text = torch.randn(2, 4, 6, 10).repeat(3, 1, 1, 1), torch.randn(1, 5, TEXT).expand(6, 5, TEXT)
    with trace(unet, family=KeyConcatenation(guidance_parts=3, conditional=conditional)) as t:
        run_twice(unet, sample, text)
    with recorded_products(self_attention(unet)) as products:
        run_twice(unet, sample, text)
    assert t.images == 2
    for image in (0, 1):
        assert_rows_are(t.maps(image), products, own_tokens(unet), row + image)


@pytest.mark.parametrize("images", [1, 3])
def test_mimicbrush_is_recognised_by_its_banks(images):
    unet = small(processor=AttnProcessor2_0)
    assert KeyConcatenation().refuses(unet, unet) is not None
    blocks = [module for module in unet.modules() if isinstance(module, BasicTransformerBlock)]
    for block, features in zip(blocks, features_for(unet, images), strict=True):
        block.__class__, block.bank = ReadsBank, [features.repeat(2, 1, 1)]
    assert KeyConcatenation().refuses(unet, unet) is None
    sample, text = torch.randn(images, 4, 6, 10).repeat(2, 1, 1, 1), torch.randn(2 * images, 5, TEXT)
    with trace(unet, family=KeyConcatenation()) as t:
        run_twice(unet, sample, text)
    with recorded_products(self_attention(unet)) as products:
        run_twice(unet, sample, text)
    with_features = {layer: each[::2] for layer, each in products.items()}
    for image in range(images):
        assert_rows_are(t.maps(image), with_features, own_tokens(unet), images + image)


@pytest.mark.parametrize("processor", [AppendsKeys, AppendsTokens])
@pytest.mark.parametrize(("generated", "reference"), [((2, 7), (3, 1)), ((5, 0), (0, 4))])
def test_a_reference_patchs_key_as_a_query_is_found_at_its_place(processor, generated, reference):
    unet = small(processor=processor)
    features = features_for(unet, 1, levels={8: (4, 7), 16: (2, 4)})
    place = reference[0] * 7 + reference[1]
    features[0][:, place] *= 3  # else another key may point the same way and be longer
    give(unet, features)
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    projected = attention.to_q.forward

    def planted(x):
        query = 0.1 * projected(x)
        query[:, generated[0] * 10 + generated[1]] = 5 * attention.to_k(features[0][:, place])
        return query

    attention.to_q.forward = planted
    with trace(unet, family=KeyConcatenation(reference_latent=(4, 7))) as t:
        run_twice(unet, torch.randn(1, 4, 6, 10), torch.randn(1, 5, TEXT))
    row = t.maps().specific(*generated, layer="down_blocks.0.attentions.0")
    assert row.shape == (4, 7) and np.unravel_index(row.argmax(), row.shape) == reference
    assert t.maps().specific(3, 3, layer="down_blocks.0.attentions.0").max() < 0.5 * row.max()


@pytest.mark.parametrize("processor", [AppendsKeys, AppendsTokens])
def test_features_of_an_unknown_size_are_an_error_that_names_the_cure(processor):
    unet = small(processor=processor)
    give(unet, features_for(unet, levels={8: (4, 7), 16: (2, 4)}))
    with (
        pytest.raises(
            UnsupportedModel, match=r"88 keys, which fits no level of a 6x10 latent followed by 1 of 6 x 10; pass"
        ),
        trace(unet, family=KeyConcatenation()),
    ):
        run_twice(unet, torch.randn(1, 4, 6, 10), torch.randn(1, 5, TEXT))


@pytest.mark.parametrize("axis", ["height"])
@pytest.mark.parametrize(("images", "guidance"), [(1, False), (2, False), (1, True), (3, True)])
def test_two_pictures_in_one_latent(axis, images, guidance):
    unet = catvton()
    dim, *levels = AXES[axis]
    sample = side_by_side(images, dim, guidance)
    plain = run_twice(unet, sample, None)
    with trace(unet, family=SpatialConcatenation(axis=axis)) as t:
        looked_at = run_twice(unet, sample, None)
    assert all(map(torch.equal, plain, looked_at))
    with recorded_products(self_attention(unet)) as products:
        run_twice(unet, sample, None)
    grids = {n: levels[(8, 16).index(m.to_q.in_features)] for n, m in self_attention(unet).items()}
    assert t.images == images
    for image in range(images):
        maps = t.maps(image)
        assert_halves(maps, products, grids, axis, image + images * guidance)
        assert maps.r2g.unified.shape == maps.g2r.unified.shape == (6, 10)
        coarse = {m.shape for la, m in maps.r2g.by_layer.items() if la.startswith("mid")}
        assert coarse == {(3, 5)}


@pytest.mark.parametrize("change", [fused, with_adapters, compiled_in_parts])
def test_changed_attention_modules_are_found_and_read(change):
    unet = catvton()
    layers = list(SpatialConcatenation().layers(unet))
    modules = self_attention(unet)
    change(unet)
    assert list(SpatialConcatenation().layers(unet)) == list(KeyConcatenation().layers(unet)) == layers
    sample = side_by_side(1, -2, True)
    with torch.compiler.set_stance("force_eager"), recorded_products(modules) as products:
        run_twice(unet, sample, None)
    with trace(unet, family=SpatialConcatenation()) as t:
        run_twice(unet, sample, None)
    grids = {n: AXES["height"][1:][(8, 16).index(m.to_out[0].out_features)] for n, m in modules.items()}
    assert_halves(t.maps(), products, grids, "height", 1)


def test_a_layer_whose_tokens_belong_to_both_pictures_is_named_and_can_be_left_out():
    unet = catvton()
    sample = torch.randn(1, 9, 6, 10)  # 5 tokens wide at the second level
    with (
        pytest.raises(UnsupportedModel, match=r"'down_blocks.1.attentions.0' works on a grid of 3x5.*along its width"),
        trace(unet, family=SpatialConcatenation(axis="width")),
    ):
        run_twice(unet, sample, None)
    plan = CapturePlan.full(exclude=("down_blocks.1*", "mid_block*", "up_blocks.0*"))
    with trace(unet, plan=plan, family=SpatialConcatenation(axis="width")) as t:
        run_twice(unet, sample, None)
    assert t.maps().g2r.unified.shape == (6, 5)


@pytest.mark.parametrize(("name", "row"), [("DreamLitePipeline", 2), ("DreamLiteMobilePipeline", 0)])
def test_dreamlite_reads_its_picture_on_the_right(name, row):
    """Its batch is [nothing, picture, picture and prompt] of one image; the mobile one has no guidance."""
    pipeline = dreamlite(name)
    family = SpatialConcatenation()
    assert family.refuses(pipeline, pipeline.unet) is None and family.refuses(pipeline.unet, pipeline.unet) is None
    plain = edit(pipeline)
    with trace(pipeline, family=family) as t:
        looked_at = edit(pipeline)
    assert torch.equal(plain, looked_at)
    with recorded_products(self_attention(pipeline.unet)) as products:
        edit(pipeline)
    assert t.images == 1 and t.maps().steps == (0, 1) and len(products) == 4
    assert_halves(t.maps(), products, dict.fromkeys(products, (3, 10)), "width", row)
    assert t.maps().g2r.unified.shape == (3, 5)


@pytest.mark.parametrize("name", ["DreamLitePipeline", "DreamLiteMobilePipeline"])
def test_dreamlite_without_a_picture_holds_no_reference(name):
    pipeline = dreamlite(name)
    with trace(pipeline, family=SpatialConcatenation()) as t:
        edit(pipeline, picture=False)
    with pytest.raises(NothingCaptured, match="found reference tokens in none"):
        t.maps()


def test_other_models_are_refused_and_the_text_says_that_the_family_must_be_chosen():
    unet = small()
    assert "pass family=KeyConcatenation()" in KeyConcatenation().refuses(unet, unet)
    assert 'pass family=SpatialConcatenation(axis="height")' in SpatialConcatenation().refuses(unet, unet)
    unet = catvton()
    assert SpatialConcatenation().refuses(unet, unet) is None
    assert KeyConcatenation().refuses(unet, unet) is not None
    linear = nn.Linear(2, 2)
    for family in (KeyConcatenation(), SpatialConcatenation()):
        assert family.refuses(linear, linear) == "it has no self-attention module named attn1."


def test_a_denoiser_without_a_picture_shaped_sample_is_named():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([BasicTransformerBlock(8, 2, 4)])

        def forward(self, hidden_states):
            return self.blocks[0](hidden_states)

    other = Other()
    for family in (KeyConcatenation(), SpatialConcatenation()):
        with (
            pytest.raises(UnsupportedModel, match="of 'blocks.0' was not called with a sample of"),
            trace(other, family=family),
        ):
            other(torch.randn(1, 6, 8))
