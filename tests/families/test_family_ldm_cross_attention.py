"""Latent diffusion code before diffusers, StableVITON and PASD, on small modules built as their papers describe them.

diffusers has none of these models. What is kept of them: the names of the modules, which module reads what, what the UNet's
forward takes, and attention by einsum and softmax. PASD's blocks are diffusers' own transformers, as in PASD."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders.ldm_cross_attention import (
    CONTEXT,
    BasicTransformerBlock,
    PASDUNet,
    SpatialTransformer,
    StableVITON,
    cross,
    recorded,
    run_twice,
    sample_step,
    small,
    viton_inputs,
)
from diffusers import UNet2DConditionModel
from oracle import assert_maps_equal, recorded_products
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from i2am_debug import trace
from i2am_debug.errors import NothingCaptured, UndefinedFigure, UnsupportedModel
from i2am_debug.families.ldm_cross_attention import LDMCrossAttention


@pytest.mark.parametrize("scale", [0.6, None], ids=["scale", "no scale"])
def test_maps_equal_a_written_out_softmax_on_uneven_grids(scale):
    unet = small(scale=scale)
    x, context = torch.randn(2, 4, 6, 10), torch.randn(2, 12, CONTEXT)
    with trace(unet, family=LDMCrossAttention(reference_grid=(3, 4))) as t:
        run_twice(unet, x, context)
    logits = cross(recorded(unet, lambda: run_twice(unet, x, context)))
    assert {"input_blocks.1.1", "middle_block.0", "output_blocks.1.1"} <= set(logits)
    for image in (0, 1):
        maps = t.maps(image)
        assert_maps_equal(maps, {layer: [each[image] for each in runs] for layer, runs in logits.items()})
        assert {maps.r2g.by_layer[la].shape for la in maps.layers} == {(6, 10), (3, 5)}
        assert maps.g2r.unified.shape == (3, 4)
        assert maps.reference_mass == {} and maps.branch_share == {}


@pytest.mark.parametrize(
    ("tokens", "grid", "first"), [(9, (3, 3), 0), (10, (3, 3), 1), (16, (4, 4), 0), (257, (16, 16), 1)]
)
def test_by_default_the_reference_is_a_square_after_a_class_token(tokens, grid, first):
    unet = small()
    x, context = torch.randn(1, 4, 6, 10), torch.randn(1, tokens, CONTEXT)
    with trace(unet, family=LDMCrossAttention()) as t:
        run_twice(unet, x, context)
    assert t.maps().g2r.unified.shape == grid
    logits = cross(recorded(unet, lambda: run_twice(unet, x, context)))
    assert_maps_equal(t.maps(), {layer: [each[0, :, :, first:] for each in runs] for layer, runs in logits.items()})


def test_one_token_has_r2g_but_no_g2r():
    unet = small()  # Paint-by-Example and DCI-VTON
    with trace(unet, family=LDMCrossAttention()) as t:
        run_twice(unet, torch.randn(1, 4, 6, 10), torch.randn(1, 1, CONTEXT))
    assert t.maps().r2g.unified.shape == (6, 10)
    with pytest.raises(UndefinedFigure, match="one reference token"):
        _ = t.maps().g2r


@pytest.mark.parametrize("conditional", ["last", "first"])
@pytest.mark.parametrize("images", [1, 3])
def test_guidance_shows_the_half_that_sees_the_reference(images, conditional):
    unet = small()
    x, context, learnt = torch.randn(images, 4, 6, 10), torch.randn(images, 9, CONTEXT), torch.randn(1, 1, CONTEXT)
    halves = [context, learnt.expand(images, 9, CONTEXT)]
    if conditional == "first":
        halves.reverse()

    def run():
        return [sample_step(unet, x, time, *halves) for time in (800, 400)]

    with trace(unet, family=LDMCrossAttention(conditional=conditional)) as t:
        run()
    assert t.images == images
    logits = cross(recorded(unet, run))
    start = images if conditional == "last" else 0
    for image in range(images):
        assert_maps_equal(t.maps(image), {la: [each[start + image] for each in runs] for la, runs in logits.items()})


@pytest.mark.parametrize("images", [1, 3])
def test_stableviton_is_read_off_its_zero_cross_attention_blocks_in_the_conditional_forward(images):
    unet = small(StableVITON)
    x, context, control = viton_inputs(images)
    nothing = [torch.zeros_like(c) for c in control]

    def run(conditional_only=False):
        """PLMS of two steps; the first evaluates the second noise time too. Conditional first, then unconditional."""
        for time, factor in ((800, 1.0), (400, 0.9), (400, 0.8)):
            times = torch.full((images,), time)
            with torch.no_grad():
                unet(x * factor, times, context, control=list(control))
                if not conditional_only:
                    unet(x * factor, times, context, control=list(nothing))

    with trace(unet, family=LDMCrossAttention()) as t:
        run()
    assert t.family.refuses(unet, unet) is None
    logits = {
        n: v for n, v in recorded(unet, lambda: run(True)).items() if n in ("warp_flow_blks.0", "warp_flow_blks.1")
    }
    for image in range(images):
        maps = t.maps(image)
        assert_maps_equal(maps, {layer: [each[image] for each in runs] for layer, runs in logits.items()})
        assert {la: m.shape for la, m in maps.g2r.by_layer.items()} == {
            "warp_flow_blks.0": (3, 5),
            "warp_flow_blks.1": (6, 10),
        }


def test_the_other_modules_of_stableviton_can_be_asked_for():
    unet = small(StableVITON)
    x, context, control = viton_inputs()
    family = LDMCrossAttention(modules="input_blocks.*.attn2", conditional_forward=0)
    with trace(unet, family=family) as t:
        unet(x, torch.tensor([800]), context, control=list(control))
    assert t.maps().layers == ("input_blocks.1.1", "input_blocks.3.1")
    with pytest.raises(UndefinedFigure, match="one reference token"):
        _ = t.maps().g2r


def test_a_feature_map_of_the_layers_grid_is_told_from_the_context():
    unet = small(StableVITON, name="another_name")
    x, _, control = viton_inputs()
    with trace(unet, family=LDMCrossAttention(modules="*.attn2")) as t:
        unet(x, torch.tensor([800]), torch.randn(1, 4, CONTEXT), control=list(control))
    shapes = {la: m.shape for la, m in t.maps().g2r.by_layer.items()}
    assert shapes["another_name.0"] == (3, 5) and shapes["another_name.1"] == (6, 10)
    assert shapes["input_blocks.1.1"] == (2, 2)


@pytest.mark.parametrize("second", [0, 1])
def test_the_forward_that_sees_the_reference_can_be_set(second):
    unet = small()
    x, context = torch.randn(1, 4, 6, 10), torch.randn(2, 1, 9, CONTEXT)

    def run(forwards):
        with torch.no_grad():
            for time in (800, 400):
                for number in forwards:
                    unet(x, torch.tensor([time]), context[number])

    with trace(unet, family=LDMCrossAttention(conditional_forward=second)) as t:
        run((0, 1))
    logits = cross(recorded(unet, lambda: run((second,))))
    assert_maps_equal(t.maps(), {layer: [each[0] for each in runs] for layer, runs in logits.items()})


@pytest.mark.parametrize("images", [1, 3])
def test_pasd_is_read_off_its_pixel_aware_cross_attention(images):
    unet = small(PASDUNet)
    sample, text = torch.randn(images, 4, 6, 10).repeat(2, 1, 1, 1), torch.randn(2 * images, 15, CONTEXT)
    features = [torch.randn(images, 10, *grid).repeat(2, 1, 1, 1) for grid in ((3, 5), (6, 10))]

    def run():
        with torch.no_grad():
            return [unet(sample, time, text, down_block_additional_residuals=features) for time in (800.0, 400.0)]

    plain = run()
    with trace(unet, family=LDMCrossAttention()) as t:
        assert all(map(torch.equal, plain, run()))
    blocks = {f"up_blocks.{n}.pixel_attentions.0": unet.up_blocks[n].pixel_attentions[0] for n in (0, 1)}
    with recorded_products({n: b.transformer_blocks[0].attn2 for n, b in blocks.items()}) as products:
        run()
    assert t.family.refuses(unet, unet) is None and t.images == images
    for image in range(images):  # 15 text tokens are as many as the coarse level's: the name tells the feature map
        maps = t.maps(image)
        assert_maps_equal(maps, {n: [p.logits([images + image])[0] for p in each] for n, each in products.items()})
        assert maps.g2r.unified.shape == (6, 10)


def test_pasd_light_has_the_feature_maps_attention_in_the_text_block():
    unet = small(PASDUNet)
    for block in unet.up_blocks:
        text = block.attentions[0].transformer_blocks[0]
        text.attn2_plus = block.pixel_attentions[0].transformer_blocks[0].attn2
    unet.up_blocks[0].pixel_attentions = unet.up_blocks[1].pixel_attentions = None
    assert set(LDMCrossAttention().layers(unet)) == {
        f"up_blocks.{n}.attentions.0.transformer_blocks.0.attn2_plus" for n in (0, 1)
    }


def test_output_is_bit_identical():
    unet = small()
    x, context = torch.randn(2, 4, 6, 10), torch.randn(2, 12, CONTEXT)
    plain = run_twice(unet, x, context)
    with trace(unet, family=LDMCrossAttention(reference_grid=(3, 4))) as t:
        looked_at = run_twice(unet, x, context)
    assert all(map(torch.equal, plain, looked_at)) and t.images == 2
    unet = small(StableVITON)
    x, context, control = viton_inputs()
    with torch.no_grad():
        plain = unet(x, torch.tensor([800]), context, control=list(control))
        with trace(unet, family=LDMCrossAttention()):
            looked_at = unet(x, torch.tensor([800]), context, control=list(control))
    assert torch.equal(plain, looked_at)


@pytest.mark.parametrize(("generated", "reference"), [((3, 7), (2, 1)), ((5, 0), (0, 3))])
def test_the_specific_map_of_a_planted_copy_peaks_at_its_key(generated, reference):
    unet = small()
    attention = unet.input_blocks[1][1].transformer_blocks[0].attn2
    key = 2 * F.normalize(torch.randn(12, 2, 4), dim=-1).flatten(1)  # 3x4 reference tokens, 2 heads
    query = torch.randn(1, 60, 8) * 0.1
    query[0, generated[0] * 10 + generated[1]] = 6 * key[reference[0] * 4 + reference[1]]
    attention.to_q.forward = lambda x: query
    attention.to_k.forward = lambda x: key[None]
    with trace(unet, family=LDMCrossAttention(reference_grid=(3, 4))) as t:
        run_twice(unet, torch.randn(1, 4, 6, 10), torch.randn(1, 12, CONTEXT))
    row = t.maps().specific(*generated, layer="input_blocks.1.1")
    assert np.unravel_index(row.argmax(), row.shape) == reference
    assert t.maps().specific(2, 4, layer="input_blocks.1.1").max() < 0.5 * row.max()


@pytest.mark.parametrize(("generated", "reference"), [((3, 7), (4, 1)), ((0, 2), (1, 9))])
def test_a_patch_copied_from_stablevitons_clothing_is_found_at_its_place(generated, reference):
    unet = small(StableVITON)
    attention = unet.warp_flow_blks[1].transformer_blocks[0].attn2
    x, context, control = viton_inputs()
    control[0][:, :, reference[0], reference[1]] *= 3  # else another key may point the same way and be longer
    query = torch.randn(1, 60, 8) * 0.1
    clothing = control[0].flatten(2).transpose(1, 2)
    with torch.no_grad():
        key = attention.to_k(clothing[:, reference[0] * 10 + reference[1]])
    query[0, generated[0] * 10 + generated[1]] = 5 * key[0]
    attention.to_q.forward = lambda x: query
    with trace(unet, family=LDMCrossAttention()) as t:
        unet(x, torch.tensor([800]), context, control=list(control))
    row = t.maps().specific(*generated, layer="warp_flow_blks.1")
    assert np.unravel_index(row.argmax(), row.shape) == reference


def test_low_rank_adapters_and_compiled_blocks_are_looked_into():
    unet = small(depth=2)
    layers = list(LDMCrossAttention().layers(unet))
    assert "input_blocks.1.1.transformer_blocks.1" in layers  # two blocks: the number stays in the name
    block = unet.input_blocks[1][1].transformer_blocks[1]
    inject_adapter_in_model(LoraConfig(target_modules=["to_q", "to_k"], init_lora_weights=False), unet)
    x, context = torch.randn(1, 4, 6, 10), torch.randn(1, 9, CONTEXT)
    logits = cross(recorded(unet, lambda: run_twice(unet, x, context)))
    truth = {layer: [each[0] for each in runs] for layer, runs in logits.items()}
    unet.input_blocks[1][1].transformer_blocks[1] = torch.compile(block, backend="eager")
    unet.middle_block[0].transformer_blocks[0].attn2 = torch.compile(
        unet.middle_block[0].transformer_blocks[0].attn2, backend="eager"
    )
    assert list(LDMCrossAttention().layers(unet)) == layers
    with trace(unet, family=LDMCrossAttention()) as t:
        run_twice(unet, x, context)
    assert_maps_equal(t.maps(), truth)


def test_what_is_not_its_own_is_refused():
    family = LDMCrossAttention()
    diffusers_unet = UNet2DConditionModel(
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    for other in (diffusers_unet, nn.Linear(2, 2)):
        assert "no attn2 of latent diffusion code" in family.refuses(other, other)

    class Elsewhere(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = SpatialTransformer(8, 12)

        def forward(self, hidden_states, states):
            return hidden_states

    other = Elsewhere()
    assert "does not take x and context" in family.refuses(other, other)

    unet = small()
    assert family.refuses(unet, unet) is None
    model = nn.Module()
    model.model = nn.Module()
    model.model.diffusion_model = unet
    assert "pass its model.diffusion_model" in family.refuses(model, model)
    text = SimpleNamespace(cond_stage_model=SimpleNamespace(tokenizer=object()))
    image = SimpleNamespace(cond_stage_model=SimpleNamespace(mapper=object()))
    assert "reads text" in family.refuses(text, unet)
    assert family.refuses(image, unet) is None
    assert LDMCrossAttention(reference_grid=(7, 11)).refuses(text, unet) is None
    viton = small(StableVITON)
    assert family.refuses(text, viton) is None


def test_a_wrong_grid_is_named_with_its_cure():
    unet = small()
    with (
        pytest.raises(
            UnsupportedModel, match=r"'input_blocks.1.1' reads 9 reference tokens, a grid of 4x5 has 20; pass"
        ),
        trace(unet, family=LDMCrossAttention(reference_grid=(4, 5))),
    ):
        run_twice(unet, torch.randn(1, 4, 6, 10), torch.randn(1, 9, CONTEXT))
    with (
        pytest.raises(UnsupportedModel, match=r"reads 9 reference tokens, a grid of 6x10 has 60"),
        trace(unet, family=LDMCrossAttention(reference_grid="layer")),
    ):
        run_twice(unet, torch.randn(1, 4, 6, 10), torch.randn(1, 9, CONTEXT))


def test_without_a_context_attn2_is_self_attention_and_holds_no_reference():
    unet = small()
    for layer in unet.modules():
        if isinstance(layer, BasicTransformerBlock):
            layer.attn2.to_k = nn.Linear(8, 8)
            layer.attn2.to_v = nn.Linear(8, 8)
    with trace(unet, family=LDMCrossAttention()) as t:
        run_twice(unet, torch.randn(1, 4, 6, 10), None)
    with pytest.raises(NothingCaptured, match="found reference tokens in none"):
        t.maps()
