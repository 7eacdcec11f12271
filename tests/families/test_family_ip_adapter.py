"""IP-Adapter on UNets: which product is which adapter's and picture's, and its share of what the layer adds together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders.ip_adapter import (
    ENCODER,
    FULL,
    PATCHES,
    TEXT,
    OwnCode,
    assert_masked_share,
    assert_shares,
    colours,
    generate,
    guided,
    logits,
    masks,
    pictures,
    run,
    tiny_pipeline,
    traced,
    unet_with,
)
from diffusers import (
    StableDiffusionPAGPipeline,
    UNetMotionModel,
)
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor
from oracle import assert_maps_equal, recorded_products, sharpened
from peft import LoraConfig

from i2am_debug import trace
from i2am_debug.errors import NothingCaptured, UnsupportedModel
from i2am_debug.families.ip_adapter import IPAdapter


def test_full_adapter_maps_equal_the_oracle_without_the_text_and_the_class_token():
    unet = unet_with("full", scales=[0.7])
    t, products = traced(unet, torch.randn(2, 4, 6, 10), torch.randn(2, 7, TEXT), [pictures("full", 2)])
    assert {len(found) for found in products.values()} == {4}, "two runs of text and picture"
    for image in (0, 1):
        maps = t.maps(image)
        assert_maps_equal(maps, logits(products, 1, 2, image, slice(1, None)))
        assert_shares(maps, products, 2, 1, [0.7], image)
        assert maps.g2r.unified.shape == PATCHES and not maps.reference_mass
        assert {maps.r2g.by_layer[la].shape for la in maps.layers} == {(6, 10), (3, 5)}


def test_by_default_257_tokens_are_a_class_token_and_16x16_patches():
    unet = unet_with("full")
    inputs = torch.randn(1, 4, 6, 10), torch.randn(1, 7, TEXT), [pictures("full", tokens=257)]
    t, products = traced(unet, *inputs, family=IPAdapter())
    assert_maps_equal(t.maps(), logits(products, 1, 2, 0, slice(1, None)))
    assert t.maps().g2r.unified.shape == (16, 16)
    t, products = traced(unet, inputs[0], inputs[1], [pictures("full", tokens=16)], family=IPAdapter())
    assert_maps_equal(t.maps(), logits(products, 1, 2, 0))
    assert t.maps().g2r.unified.shape == (4, 4), "an image encoder without a class token"
    t, _ = traced(unet, inputs[0], inputs[1], [pictures("full", tokens=15)], family=IPAdapter())
    assert t.maps().undefined_place == "the reference tokens have no grid" and t.maps().g2r.unified.shape == (1, 15)


@pytest.mark.parametrize(("kind", "tokens"), [("base", 4), ("plus", 16)])
def test_tokens_without_a_place_are_one_row(kind, tokens):
    unet = unet_with(kind)
    t, products = traced(
        unet, torch.randn(1, 4, 6, 10), torch.randn(1, 7, TEXT), [pictures(kind, tokens=257)], family=IPAdapter()
    )
    maps = t.maps()
    for layer, steps in logits(products, 1, 2, 0).items():
        assert steps[0].shape[-1] == tokens
        truth = torch.stack(steps).softmax(2).mean((0, 1, 3)).numpy()
        assert np.abs(maps.r2g.by_layer[layer].ravel() - truth).max() <= 1e-5 * truth.max()
        assert truth.max() > 1.01 * truth.min()
    assert_shares(maps, products, 2, 1, [1.0], 0)
    assert maps.undefined_place == "the reference tokens have no grid"
    assert maps.g2r.unified.shape == maps.specific(0, 0).shape == (1, tokens)


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("told_by", ["picture", "text", "both"])
def test_guidance_batches_show_their_conditional_rows(images, told_by):
    """`[negative, positive]`; with the prompt "" both texts are equal, and only the picture tells the halves apart."""
    unet = unet_with("full")
    sample, text = torch.randn(images, 4, 8, 6).repeat(2, 1, 1, 1), torch.randn(2 * images, 7, TEXT)
    embeds = guided([pictures("full", images)])
    if told_by == "picture":
        text = text[:images].repeat(2, 1, 1)
    elif told_by == "text":
        embeds = [embeds[0][images:].repeat(2, 1, 1, 1)]
    t, products = traced(unet, sample, text, embeds)
    assert t.images == images
    for image in range(images):
        assert_maps_equal(t.maps(image), logits(products, 1, 2, images + image, slice(1, None)))
        assert_shares(t.maps(image), products, 2, 1, [1.0], images + image)


def test_guidance_in_three_parts_is_refused_and_three_equal_latents_are_not():
    unet = unet_with("full")
    latents, text, embed = torch.randn(1, 4, 8, 8).repeat(3, 1, 1, 1), torch.randn(3, 7, TEXT), pictures("full", 3)
    assert traced(unet, latents, text, [embed])[0].images == 3
    perturbed = [torch.cat([torch.zeros(1, 1, 13, ENCODER), *[embed[:1]] * 2])]
    with pytest.raises(UnsupportedModel, match=r"three times.*pag_scale=0"):
        traced(unet, latents, text[[0, 1, 1]], perturbed)


def test_several_pictures_of_one_adapter_share_a_product():
    unet = unet_with("full", scales=[0.6])
    t, products = traced(unet, torch.randn(1, 4, 6, 10), torch.randn(1, 7, TEXT), [pictures("full", count=3)])
    assert t.references == (0, 1, 2) and {p.k.shape[2] for p in products["mid_block.attentions.0"][1::2]} == {39}
    for number in range(3):
        maps, own = t.maps(reference=number), slice(13 * number + 1, 13 * (number + 1))
        assert_maps_equal(maps, logits(products, 1, 2, 0, own))
        assert_shares(maps, products, 2, 1, [0.6], 0)  # of their common branch
        for layer, found in products.items():
            mass = torch.stack([p.weights(slice(0, 1))[..., own].sum(-1).mean() for p in found[1::2]]).mean()
            assert maps.reference_mass[layer] == pytest.approx(float(mass), rel=1e-5)


def test_pictures_are_numbered_across_adapters():
    unet = unet_with("base", "full", "plus", scales=[0.4, 0.9, 0.5])
    embeds = [pictures("base", 2, count=2), pictures("full", 2, count=2), pictures("plus", 2)]
    t, products = traced(unet, torch.randn(2, 4, 6, 10), torch.randn(2, 7, TEXT), embeds)
    assert t.references == (0, 1, 2, 3, 4)
    for number, own in ((2, slice(1, 13)), (3, slice(14, 26))):
        assert_maps_equal(t.maps(1, number), logits(products, 2, 4, 1, own))
        assert_shares(t.maps(1, number), products, 4, 2, [0.4, 0.9, 0.5], 1)
    for number, call in ((0, 1), (1, 1), (4, 3)):
        assert_shares(t.maps(1, number), products, 4, call, [0.4, 0.9, 0.5], 1)
        assert t.maps(1, number).undefined_place == "the reference tokens have no grid"


def test_an_adapter_at_scale_0_is_skipped_and_numbers_stay():
    unet = unet_with("base", "full", scales=[0, 0.8])
    inputs = torch.randn(1, 4, 6, 10), torch.randn(1, 7, TEXT), [pictures("base", count=2), pictures("full")]
    t, products = traced(unet, *inputs)
    assert {len(found) for found in products.values()} == {4} and t.references == (2,)
    assert_maps_equal(t.maps(reference=2), logits(products, 1, 2, 0, slice(1, None)))
    assert_shares(t.maps(reference=2), products, 2, 1, [0.8], 0)

    only = unet.mid_block.attentions[0].transformer_blocks[0].attn2  # as set_ip_adapter_scale({"mid": 1.0}) does
    for module in FULL.layers(unet).values():
        module.processor.scale = [0.3, 0.0] if module is only else [0.0, 0.0]
    t, products = traced(unet, *inputs)
    assert t.references == (0, 1) and t.maps().layers == ("mid_block.attentions.0",)
    only.processor.scale = [0.0, 0.0]
    with pytest.raises(NothingCaptured, match="scale above 0"):
        traced(unet, *inputs)[0].maps()


def test_masked_pictures_are_products_of_their_own_each_with_a_scale():
    unet = unet_with("full", "base", scales=[[0.5, 0.9], 0.7])
    inputs = torch.randn(1, 4, 6, 10), torch.randn(1, 7, TEXT), [pictures("full", count=2), pictures("base")]
    t, products = traced(unet, *inputs, ip_adapter_masks=[masks(2), masks(1)])
    assert {len(found) for found in products.values()} == {8} and t.references == (0, 1, 2)
    for number in (0, 1):
        assert_maps_equal(t.maps(reference=number), logits(products, 1 + number, 4, 0, slice(1, None)))
        assert not t.maps(reference=number).reference_mass
    weights = [(0.5, masks(2)[0, 0]), (0.9, masks(2)[0, 1]), (0.7, masks(1)[0, 0])]
    for number in range(3):
        assert_masked_share(t.maps(reference=number), products, weights, number)
    assert t.maps(reference=2).undefined_place == "the reference tokens have no grid"

    for module in FULL.layers(unet).values():  # a picture at scale 0 beside one that is not: attended to, added 0 times
        module.processor.scale = [[0.0, 0.9], 0.0]
    t, products = traced(unet, *inputs, ip_adapter_masks=[masks(2), masks(1)])
    assert {len(found) for found in products.values()} == {6} and t.references == (1,)
    assert_maps_equal(t.maps(reference=1), logits(products, 2, 3, 0, slice(1, None)))


def test_an_adapter_without_a_mask_beside_a_masked_one_attends_once():
    unet = unet_with("full", "full", scales=[0.5, 0.5])
    inputs = torch.randn(1, 4, 6, 10), torch.randn(1, 7, TEXT), [pictures("full", count=2), pictures("full", count=2)]
    t, products = traced(unet, *inputs, ip_adapter_masks=[None, masks(2)])
    assert {len(found) for found in products.values()} == {8} and t.references == (0, 1, 2, 3)
    for number, call, start in ((0, 1, 1), (1, 1, 14), (2, 2, 1), (3, 3, 1)):
        expected = logits(products, call, 4, 0, slice(start, start + 12))
        assert_maps_equal(t.maps(reference=number), expected)
        assert 0 < min(t.maps(reference=number).branch_share.values()) < 1


def test_the_older_tensor_of_pictures_is_one_picture_of_one_adapter():
    unet = unet_with("full")
    sample, text, embeds = torch.randn(1, 4, 6, 10), torch.randn(1, 7, TEXT), pictures("full")
    t, products = traced(unet, sample, text, embeds[:, 0])
    assert_maps_equal(t.maps(), logits(products, 1, 2, 0, slice(1, None)))


@pytest.mark.parametrize("images", [1, 3])
def test_tokens_that_come_behind_the_text_as_in_training_code(images):
    unet = unet_with()
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            module.set_processor(OwnCode(module.to_q.out_features, 257, 0.6))
    sharpened(unet, "to_k_ip")
    sample = torch.randn(images, 4, 6, 10).repeat(2, 1, 1, 1)
    text = torch.randn(images, 7, TEXT).repeat(2, 1, 1)
    states = torch.cat([text, torch.cat([torch.zeros(images, 257, TEXT), torch.randn(images, 257, TEXT)])], 1)

    def call():
        with torch.no_grad():
            unet(sample, 800, states)

    with recorded_products(FULL.layers(unet)) as products, trace(unet, family=IPAdapter()) as t:
        call()
    assert t.images == images
    assert_maps_equal(t.maps(images - 1), logits(products, 1, 2, 2 * images - 1, slice(1, None)))
    assert_shares(t.maps(images - 1), products, 2, 1, [0.6], 2 * images - 1)
    for module in FULL.layers(unet).values():
        module.processor.scale = 0.0
    with trace(unet, family=IPAdapter()) as t:
        call()
    with pytest.raises(NothingCaptured, match="scale above 0"):
        t.maps()


@pytest.mark.parametrize(("patch", "token"), [((3, 7), (2, 1)), ((0, 9), (0, 3)), ((5, 0), (1, 2))])
@pytest.mark.parametrize("picture", [0, 1])
def test_the_specific_map_of_a_planted_copy_peaks_at_its_key(patch, token, picture):
    """Make one generated token's query the key of one reference token: its row must peak exactly there."""
    unet = unet_with("full")
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    key = 2 * F.normalize(torch.randn(2, 13, 4, 2), dim=-2).transpose(2, 3).flatten(
        2
    )  # 2 pictures, 2 heads of 4 channels
    query = torch.randn(1, 60, 8) * 0.1
    query[0, patch[0] * 10 + patch[1]] = 6 * key[picture, 1 + token[0] * 4 + token[1]]
    attention.to_q.forward = lambda x: query
    attention.processor.to_k_ip[0].forward = lambda x: key[None]
    t, _ = traced(unet, torch.randn(1, 4, 6, 10), torch.randn(1, 7, TEXT), [pictures("full", count=2)])
    row = t.maps(reference=picture).specific(*patch, layer="down_blocks.0.attentions.0")
    assert np.unravel_index(row.argmax(), row.shape) == token
    other = t.maps(reference=picture).specific(2, 2, layer="down_blocks.0.attentions.0")
    assert other.max() < 0.5 * row.max()


@pytest.mark.parametrize("masked", [True])
def test_output_is_bit_identical(masked):
    unet = unet_with("full", "base", scales=[0.5, 0.7])
    inputs = torch.randn(2, 4, 6, 10), torch.randn(2, 7, TEXT), [pictures("full", 2, 2), pictures("base", 2)]
    changes = {"ip_adapter_masks": [masks(2), masks(1)]} if masked else {}
    plain = run(unet, *inputs, **changes)
    with trace(unet, family=FULL) as t:
        looked_at = run(unet, *inputs, **changes)
    assert t.references == (0, 1, 2) and all(map(torch.equal, plain, looked_at))


@pytest.mark.parametrize("count", [1, 3])
def test_the_pipeline_itself_with_two_pictures_and_guidance(count):
    pipeline = tiny_pipeline("full")
    plain = generate(pipeline, count)
    with recorded_products(FULL.layers(pipeline.unet)) as products, trace(pipeline) as t:
        looked_at = generate(pipeline, count)
    assert torch.equal(plain, looked_at) and t.family == IPAdapter()
    assert t.images == count and t.references == (0, 1) and t.maps().steps == (0, 1)
    for image in range(count):
        for number in (0, 1):
            maps, own = t.maps(image, number), slice(10 * number + 1, 10 * (number + 1))
            assert_maps_equal(maps, logits(products, 1, 2, count + image, own))
            assert_shares(maps, products, 2, 1, [0.6], count + image)
            assert maps.r2g.unified.shape == (8, 16) and maps.g2r.unified.shape == (3, 3)


def test_the_pipeline_without_guidance_and_with_perturbed_attention():
    pipeline = tiny_pipeline("base")
    with recorded_products(FULL.layers(pipeline.unet)) as products, trace(pipeline) as t:
        generate(pipeline, 2, guidance_scale=1.0, ip_adapter_image=colours(0))
    assert t.images == 2
    assert_maps_equal(t.maps(1), logits(products, 1, 2, 1))
    perturbed = tiny_pipeline("base", StableDiffusionPAGPipeline)
    with trace(perturbed) as t:
        generate(perturbed, 2, ip_adapter_image=colours(0), pag_scale=0.0)
    assert t.images == 2
    with pytest.raises(UnsupportedModel, match="pag_scale=0"), trace(perturbed):
        generate(perturbed, 2, ip_adapter_image=colours(0), pag_scale=3.0)


def test_xl_unets_name_each_transformer_block():
    """SDXL: several transformer blocks to an attention, linear projections, pooled text and sizes beside the pictures."""
    unet = unet_with(
        "full",
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=2,
        projection_class_embeddings_input_dim=6 * 2 + 5,
    )
    sample, text, embeds = torch.randn(1, 4, 6, 10), torch.randn(1, 7, TEXT), [pictures("full")]
    added = {"image_embeds": embeds, "text_embeds": torch.randn(1, 5), "time_ids": torch.ones(1, 6)}
    with recorded_products(FULL.layers(unet)) as products, trace(unet, family=FULL) as t, torch.no_grad():
        unet(sample, 800, text, added_cond_kwargs=added)
    assert_maps_equal(t.maps(), logits(products, 1, 2, 0, slice(1, None)))
    assert "mid_block.attentions.0.transformer_blocks.1" in t.maps().layers


@pytest.mark.parametrize("change", ["LoRA", "compiled block", "compiled unet"])
def test_lora_and_compiled_modules_are_captured(change):
    unet = unet_with("full")
    inputs = torch.randn(1, 4, 6, 10), torch.randn(1, 7, TEXT), [pictures("full")]
    if change == "LoRA":
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False))
        t, products = traced(unet, *inputs)
        assert_maps_equal(t.maps(), logits(products, 1, 2, 0, slice(1, None)))
        return
    expected = traced(unet, *inputs)[0].maps().g2r.unified
    if change == "compiled block":
        unet.mid_block.attentions[0].transformer_blocks[0].compile(backend="eager")
        run(unet, *inputs)
    else:
        unet = torch.compile(unet, backend="eager")
    with trace(unet, family=FULL) as t:
        run(unet, *inputs)
    assert np.array_equal(t.maps().g2r.unified, expected)


def test_attention_that_bypasses_torch_is_an_error_and_never_the_text():
    unet = unet_with("full")
    module = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    einsum = IPAdapterAttnProcessor(module.to_q.out_features, TEXT, num_tokens=[13], scale=[1.0])
    module.set_processor(einsum)
    with pytest.raises(NothingCaptured, match=r"'mid_block.attentions.0'.*IPAdapterAttnProcessor"):
        traced(unet, torch.randn(1, 4, 6, 10), torch.randn(1, 7, TEXT), [pictures("full")])


def test_what_is_not_its_own_is_refused():
    unet = unet_with()
    assert "no IP-Adapter is loaded" in IPAdapter().refuses(unet, unet)
    assert "no IP-Adapter is loaded" in IPAdapter().refuses(None, torch.nn.Linear(2, 2))
    assert IPAdapter().refuses(None, unet_with("base")) is None
    unloaded = unet_with("base")
    unloaded.set_attn_processor(AttnProcessor2_0())  # as unload_ip_adapter does
    assert "no IP-Adapter is loaded" in IPAdapter().refuses(None, unloaded)
    video = UNetMotionModel(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        layers_per_block=1,
        cross_attention_dim=TEXT,
        num_attention_heads=2,
        norm_num_groups=4,
        motion_num_attention_heads=2,
    )
    for name, module in video.named_modules():
        if name.endswith("attn2") and "motion_modules" not in name:
            module.set_processor(OwnCode(module.to_q.out_features, 4, 1.0))
    assert "motion modules" in IPAdapter().refuses(None, video)


def test_a_grid_that_does_not_fit_the_patches_and_a_processor_with_more_products_are_named():
    unet = unet_with("full")
    inputs = torch.randn(1, 4, 6, 10), torch.randn(1, 7, TEXT), [pictures("full")]
    with pytest.raises(UnsupportedModel, match=r"\(4, 5\) has 20 tokens, the model has 13 a picture"):
        traced(unet, *inputs, family=IPAdapter(reference_grid=(4, 5)))

    class Twice(torch.nn.Module):
        def __init__(self, processor) -> None:
            super().__init__()
            self.processor, self.to_k_ip, self.scale = processor, processor.to_k_ip, processor.scale

        def __call__(self, *args, **kwargs):
            return self.processor(*args, **kwargs) + self.processor(*args, **kwargs)

    module = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    module.set_processor(Twice(module.processor))
    with pytest.raises(UnsupportedModel, match=r"Twice in 'mid_block.attentions.0' attends more than 2 times"):
        traced(unet, *inputs)
