"""Qwen-Image-Edit, Edit-Plus and Layered: the maps are those of the transformer's own attention.

The transformer is called as `QwenImageEditPipeline`, `QwenImageEditPlusPipeline` and `QwenImageLayeredPipeline` call it
(the pipelines themselves need a Qwen2.5-VL text encoder): latents and reference latents in one sequence, the noise time
divided by 1000, `img_shapes` and `return_dict=False`; the conditional forward first, then the negative prompt's at the same
noise time.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import QwenImageTransformer2DModel, UNet2DConditionModel
from oracle import assert_maps_equal, recorded_products, sharpened

from i2am_debug import trace
from i2am_debug.errors import NothingCaptured, UnsupportedModel
from i2am_debug.families.family import Product
from i2am_debug.families.qwen_image_edit import QwenImageEdit

TEXT, GENERATED, REFERENCES = 6, (3, 5), [(4, 2), (2, 7)]
FAMILY = QwenImageEdit()


def small_transformer(**changes) -> QwenImageTransformer2DModel:
    torch.manual_seed(0)
    settings = dict(
        in_channels=8,
        out_channels=2,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=12,
        axes_dims_rope=(4, 6, 6),
    )
    model = QwenImageTransformer2DModel(**{**settings, **changes}).eval()
    return sharpened(
        model, "norm_q", "norm_k", "norm_added_q", "norm_added_k", factor=2
    )  # to_q, to_k are normalised away


def edit(model, images=1, grids=(GENERATED, *REFERENCES), *, guidance=False, masked=True, **more) -> list[torch.Tensor]:
    """Two sampler steps of the edit pipelines, on random latents and prompts; the denoiser's outputs."""
    draw = torch.Generator().manual_seed(1)
    tokens = sum(math.prod(g) for g in grids)
    prompt, negative = (torch.randn(images, n, 12, generator=draw) for n in (TEXT, TEXT - 2))
    mask = torch.arange(TEXT) < torch.arange(TEXT, TEXT - images, -1)[:, None] - 1  # prompts of unequal length
    prompts = [(prompt, mask.long() if masked else None)] + [(negative, None)] * guidance
    outputs = []
    for time in (900.0, 300.0):
        latents = torch.randn(images, tokens, 8, generator=draw)
        for states, states_mask in prompts:
            with torch.no_grad():
                output = model(
                    hidden_states=latents,
                    timestep=torch.full((images,), time) / 1000,
                    guidance=None,
                    encoder_hidden_states_mask=states_mask,
                    encoder_hidden_states=states,
                    img_shapes=[[(1, *g) for g in grids]] * images,
                    attention_kwargs={},
                    return_dict=False,
                    **more,
                )[0]
            outputs.append(output)
    return outputs


def modules(model) -> dict[str, torch.nn.Module]:
    return {f"transformer_blocks.{i}": block.attn for i, block in enumerate(model.transformer_blocks)}


def spans(grids) -> list[slice]:
    """Where the pictures sit in the joint sequence."""
    ends = itertools.accumulate([TEXT, *(h * w for h, w in grids)])
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


@pytest.mark.parametrize("guidance", [False, True], ids=["conditional only", "two forwards"])
@pytest.mark.parametrize("images", [1, 3])
def test_maps_and_reference_mass_equal_a_materialised_softmax_for_each_reference(images, guidance):
    model = small_transformer()
    with recorded_products(modules(model)) as products:
        edit(model, images, guidance=guidance)
    with trace(model, family=FAMILY) as t:
        edit(model, images, guidance=guidance)
    assert t.images == images and t.references == (0, 1)
    generated, *references = spans((GENERATED, *REFERENCES))
    for number, reference in enumerate(references):
        for image in range(images):
            maps = t.maps(image, number)
            conditional = {name: each[:: 1 + guidance] for name, each in products.items()}
            logits = {n: [p.logits([image], generated, reference)[0] for p in e] for n, e in conditional.items()}
            assert_maps_equal(maps, logits)
            assert maps.steps == (0, 1)
            assert maps.r2g.unified.shape == GENERATED and maps.g2r.unified.shape == REFERENCES[number]
            for name, each in conditional.items():
                share = [p.weights([image], generated)[..., reference].sum(-1).mean() for p in each]
                assert maps.reference_mass[name] == pytest.approx(float(sum(share)) / 2, rel=1e-5)


def test_padding_in_the_prompt_changes_the_reference_mass():
    """The mask is part of the truth above; here the check that it matters."""
    model = small_transformer()
    masses = []
    for masked in (True, False):
        with trace(model, family=FAMILY) as t:
            edit(model, 3, masked=masked)
        masses.append(t.maps(2).reference_mass["transformer_blocks.0"])
    assert abs(masses[0] - masses[1]) > 1e-3


@pytest.mark.parametrize("guidance", [False, True])
def test_output_is_bit_identical(guidance):
    model = small_transformer(zero_cond_t=True)  # as Edit-2511 has it: the references are modulated at time 0
    plain = edit(model, guidance=guidance)
    with trace(model, family=FAMILY):
        looked_at = edit(model, guidance=guidance)
    assert len(plain) == 2 + 2 * guidance and all(map(torch.equal, plain, looked_at))


@pytest.mark.parametrize(
    ("patch", "reference", "key"), [((2, 3), 0, (3, 0)), ((2, 3), 1, (0, 5)), ((0, 4), 1, (1, 2)), ((1, 0), 0, (0, 1))]
)
def test_the_specific_map_of_a_planted_copy_peaks_at_its_key(patch, reference, key):
    """One generated token's query is made the key of one reference token, seen through both tokens' rotary embedding."""
    model = small_transformer()
    grids = (GENERATED, *REFERENCES)
    rotary = model.pos_embed([[(1, *g) for g in grids]], max_txt_seq_len=TEXT, device=torch.device("cpu"))[0]
    generated, *references = (slice(s.start - TEXT, s.stop - TEXT) for s in spans(grids))
    ours = generated.start + patch[0] * GENERATED[1] + patch[1]
    theirs = references[reference].start + key[0] * REFERENCES[reference][1] + key[1]
    keys = 2 * F.normalize(torch.randn(1, len(rotary), 3, 16), dim=-1)
    queries = 0.1 * torch.randn(1, len(rotary), 3, 16)
    turned = torch.view_as_complex(keys[0, theirs].unflatten(-1, (-1, 2))) * rotary[theirs] / rotary[ours]
    queries[0, ours] = 6 * torch.view_as_real(turned).flatten(-2)
    attention = model.transformer_blocks[1].attn
    attention.norm_q.register_forward_hook(lambda *_: queries)
    attention.norm_k.register_forward_hook(lambda *_: keys)
    with trace(model, family=FAMILY) as t:
        edit(model)
    maps = t.maps(reference=reference)
    row = maps.specific(*patch, layer="transformer_blocks.1")
    assert row.shape == REFERENCES[reference]
    assert np.unravel_index(row.argmax(), row.shape) == key
    other = maps.specific((patch[0] + 1) % GENERATED[0], patch[1], layer="transformer_blocks.1")
    assert other.max() < 0.5 * row.max()


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
