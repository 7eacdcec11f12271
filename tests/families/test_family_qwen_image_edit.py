"""Qwen-Image-Edit, Edit-Plus and Layered: the maps are those of the transformer's own attention.

The transformer is called as `QwenImageEditPipeline`, `QwenImageEditPlusPipeline` and `QwenImageLayeredPipeline` call it
(the pipelines themselves need a Qwen2.5-VL text encoder): latents and reference latents in one sequence, the noise time
divided by 1000, `img_shapes` and `return_dict=False`; the conditional forward first, then the negative prompt's at the same
noise time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders.qwen_image_edit import FAMILY, GENERATED, REFERENCES, TEXT, edit, modules, small_transformer, spans
from diffusers import UNet2DConditionModel
from oracle import assert_maps_equal, recorded_products

from i2am_debug import trace
from i2am_debug.errors import NothingCaptured, UnsupportedModel
from i2am_debug.families.family import Product
from i2am_debug.families.qwen_image_edit import QwenImageEdit


def test_padding_in_the_prompt_changes_the_reference_mass():
    """The mask is part of the truth above; here the check that it matters."""
    model = small_transformer()
    masses = []
    for masked in (True, False):
        with trace(model, family=FAMILY) as t:
            edit(model, 3, masked=masked)
        masses.append(t.maps(2).reference_mass["transformer_blocks.0"])
    assert abs(masses[0] - masses[1]) > 1e-3


@pytest.mark.parametrize("picture", [0, 2])
def test_layered_generates_several_pictures_and_the_reference_is_the_last(picture):
    model = small_transformer(use_layer3d_rope=True, use_additional_t_cond=True)
    grids = (*(GENERATED,) * 3, REFERENCES[0])
    more = dict(additional_t_cond=torch.tensor([0]))
    with recorded_products(modules(model)) as products:
        edit(model, 1, grids, **more)
    with trace(model, family=QwenImageEdit(generated_picture=picture)) as t:
        edit(model, 1, grids, **more)
    assert t.references == (0,)
    where = spans(grids)
    assert_maps_equal(
        t.maps(), {name: [p.logits([0], where[picture], where[3])[0] for p in e] for name, e in products.items()}
    )


def test_a_generated_picture_that_does_not_exist_is_an_error():
    model = small_transformer()
    with (
        pytest.raises(UnsupportedModel, match=r"generated_picture=1, the model generates 1 .*QwenImageEdit\("),
        trace(model, family=QwenImageEdit(generated_picture=1)),
    ):
        edit(model)


@pytest.mark.parametrize("flat", [False, True], ids=["text to image", "as the ControlNet pipelines pass it"])
def test_one_shape_means_no_reference(flat):
    model = small_transformer()
    shape = (1, *GENERATED)
    arguments = dict(
        hidden_states=torch.randn(1, 15, 8),
        timestep=torch.tensor([0.5]),
        encoder_hidden_states=torch.randn(1, TEXT, 12),
        img_shapes=[shape] if flat else [[shape]],
    )
    with trace(model, family=FAMILY) as t, torch.no_grad():
        model(**arguments)
    with pytest.raises(NothingCaptured, match="'qwen_image_edit' found reference tokens in none"):
        t.maps()
    product = Product(
        layer="", module=model, arguments=arguments, forward=0, call=0, query_tokens=TEXT + 15, key_tokens=TEXT + 15
    )
    assert FAMILY.layout(product) is None


def test_a_sequence_that_is_not_what_the_shapes_say_is_an_error():
    """As under context parallelism, where a module sees a part of the sequence."""
    model = small_transformer()
    attention = model.transformer_blocks[0].attn
    whole = attention.processor

    class Part:
        def __call__(self, attn, hidden_states, image_rotary_emb, **kwargs):
            rotary = (image_rotary_emb[0][:-2], image_rotary_emb[1])
            picture, text = whole(attn, hidden_states[:, :-2], image_rotary_emb=rotary, **kwargs)
            return F.pad(picture, (0, 0, 0, 2)), text

    attention.processor = Part()
    with (
        pytest.raises(UnsupportedModel, match=r"has 41 tokens, expected 6 of text and .*context parallelism"),
        trace(model, family=FAMILY),
    ):
        edit(model)


def test_what_is_refused():
    model = small_transformer()
    assert FAMILY.refuses(model, model) is None

    class QwenImageEditPlusPipeline:
        transformer = model

    class QwenImagePipeline:
        transformer = model

    class Mine(QwenImagePipeline):
        pass

    assert FAMILY.refuses(QwenImageEditPlusPipeline(), model) is None
    for plain in (QwenImagePipeline(), Mine()):
        assert "the generated picture alone, so no reference tokens" in FAMILY.refuses(plain, model)
    assert "no QwenImageTransformer2DModel" in FAMILY.refuses(None, torch.nn.Linear(2, 2))
    unet = UNet2DConditionModel(
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=8,
        attention_head_dim=4,
    )
    assert "no QwenImageTransformer2DModel" in FAMILY.refuses(unet, unet)


def test_compiled_and_fused_models_are_known():
    model = small_transformer()
    names = list(FAMILY.layers(model))
    assert names == ["transformer_blocks.0", "transformer_blocks.1"]
    with trace(model, family=FAMILY) as t:
        edit(model)
    expected = t.maps().g2r.unified
    model.fuse_qkv_projections()
    model.transformer_blocks[0] = torch.compile(model.transformer_blocks[0], backend="eager")
    assert list(FAMILY.layers(model)) == names and FAMILY.refuses(model, model) is None
    with trace(model, family=FAMILY) as t:
        edit(model)
    np.testing.assert_allclose(t.maps().g2r.unified, expected, rtol=1e-5)
