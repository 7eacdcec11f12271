"""Wan image-to-video: the picture's product of each layer, one grid out of the frames, and the conditional forward of two."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builders.wan_image_to_video import (
    CHANNELS,
    FAMILY,
    FRAMES,
    PATCHES,
    TEXT,
    H,
    W,
    assert_shares,
    logits,
    picture,
    run,
    small,
    text,
    tiny_pipeline,
    traced,
    video,
)
from diffusers import (
    ChronoEditTransformer3DModel,
    FluxTransformer2DModel,
    SkyReelsV2Transformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from oracle import assert_maps_equal, recorded_products
from peft import LoraConfig
from PIL import Image

from i2am_debug import trace
from i2am_debug.errors import NothingCaptured, UnsupportedModel
from i2am_debug.families.wan_image_to_video import WanImageToVideo


@pytest.mark.parametrize("model", [WanTransformer3DModel, SkyReelsV2Transformer3DModel])
def test_maps_equal_the_oracle_without_the_text_and_the_class_token(model):
    t, products = traced(small(model), video(2), text(2), picture(2))
    assert {len(found) for found in products.values()} == {4}, "two forwards of picture and text"
    for row in (0, 1):
        maps = t.maps(row)
        assert maps.layers == ("blocks.0", "blocks.1")
        assert_maps_equal(maps, logits(products, 1, row, slice(1, None)))
        assert_shares(maps, products, 1, row)
        assert maps.r2g.unified.shape == (FRAMES * H, W) and maps.g2r.unified.shape == PATCHES
        assert not maps.reference_mass


def test_by_default_257_tokens_are_a_class_token_and_16x16_patches():
    t, products = traced(small(), video(), text(), picture(tokens=257), family=WanImageToVideo())
    assert_maps_equal(t.maps(), logits(products, 1, 0, slice(1, None)))
    assert t.maps().g2r.unified.shape == (16, 16)


@pytest.mark.parametrize("videos", [1, 3])
def test_of_the_two_forwards_of_guidance_the_conditional_one_counts(videos):
    t, products = traced(small(), video(videos), text(videos), picture(videos), text(videos))
    assert t.images == videos and {len(found) for found in products.values()} == {8}
    for row in range(videos):
        assert_maps_equal(t.maps(row), logits(products, 2, row, slice(1, None)))
        assert_shares(t.maps(row), products, 2, row)
    assert t.maps().steps == (0, 1)


@pytest.mark.parametrize(("frame", "index"), [(0, 0), (1, 1), (-1, 2)])
def test_one_frame_has_a_grid_of_its_own(frame, index):
    family = WanImageToVideo(reference_grid=PATCHES, frame=frame)
    t, products = traced(small(), video(), text(), picture(), family=family)
    own = slice(index * H * W, (index + 1) * H * W)
    assert_maps_equal(t.maps(), logits(products, 1, 0, slice(1, None), own))
    assert_shares(t.maps(), products, 1, 0, own)
    assert t.maps().r2g.unified.shape == (H, W)


@pytest.mark.parametrize("frame", [3, -4])
def test_a_frame_that_the_video_lacks_is_named(frame):
    family = WanImageToVideo(reference_grid=PATCHES, frame=frame)
    with pytest.raises(UnsupportedModel, match=f"frame={frame}: the video has 3 latent frames"):
        traced(small(), video(), text(), picture(), family=family)


def test_chronoedit_shows_its_last_frame_also_when_the_others_are_dropped():
    """Temporal reasoning starts with all frames and goes on with the first and the last."""
    model = small(ChronoEditTransformer3DModel)
    prompt, embeds = text(), picture()
    with recorded_products(FAMILY.layers(model)) as products, trace(model, family=FAMILY) as t, torch.no_grad():
        for frames, time in ((4, 800), (2, 400)):
            for states in (prompt, torch.zeros_like(prompt)):
                model(video(frames=frames), torch.tensor([time]), states, embeds)
    expected = {}
    for layer, found in products.items():
        expected[layer] = [found[0].logits(queries=slice(3 * H * W, None), keys=slice(1, None))[0]]
        expected[layer] += [found[4].logits(queries=slice(H * W, None), keys=slice(1, None))[0]]
    assert_maps_equal(t.maps(), expected)
    assert t.maps().r2g.unified.shape == (H, W) and t.maps().steps == (0, 1)
    first = WanImageToVideo(reference_grid=PATCHES, frame=0)
    t, products = traced(model, video(frames=2), prompt, embeds, family=first)
    assert_maps_equal(t.maps(), logits(products, 1, 0, slice(1, None), slice(0, H * W)))


@pytest.mark.parametrize("videos", [1, 3])
def test_the_pictures_of_the_first_and_the_last_frame_share_a_product(videos):
    model = small(pos_embed_seq_len=26)
    t, products = traced(model, video(videos), text(videos), picture(2 * videos), text(videos))
    assert t.references == (0, 1) and t.images == videos
    for number, own in ((0, slice(1, 13)), (1, slice(14, 26))):
        maps = t.maps(videos - 1, number)
        assert_maps_equal(maps, logits(products, 2, videos - 1, own))
        assert_shares(maps, products, 2, videos - 1)
        for layer, found in products.items():
            rows = slice(videos - 1, videos)
            mass = torch.stack([p.weights(rows)[..., own].sum(-1).mean() for p in found[::4]]).mean()
            assert maps.reference_mass[layer] == pytest.approx(float(mass), rel=1e-5)


@pytest.mark.parametrize("model", [ChronoEditTransformer3DModel])
def test_output_is_bit_identical(model):
    inputs, transformer = (video(2), text(2), picture(2), text(2)), small(model)
    plain = run(transformer, *inputs)
    with trace(transformer, family=FAMILY) as t:
        looked_at = run(transformer, *inputs)
    assert t.images == 2 and all(map(torch.equal, plain, looked_at))


@pytest.mark.parametrize("last", [False, True], ids=["first frame", "first and last frame"])
@pytest.mark.parametrize("count", [1, 3])
def test_the_pipeline_itself_with_guidance(count, last):
    pipeline = tiny_pipeline(pos_embed_seq_len=20) if last else tiny_pipeline()
    noise = np.random.default_rng(0)
    pictures = [Image.fromarray(noise.integers(0, 255, (32, 48, 3), np.uint8)) for _ in range(1 + last)]

    def generate() -> torch.Tensor:
        random = torch.Generator().manual_seed(2)
        return pipeline(
            image=pictures[0],
            last_image=pictures[1] if last else None,
            prompt_embeds=torch.randn(count, 512, TEXT, generator=random),
            negative_prompt_embeds=torch.randn(count, 512, TEXT, generator=random),
            height=32,
            width=48,
            num_frames=5,
            num_inference_steps=2,
            generator=random,
            output_type="latent",
        ).frames

    plain = generate()
    with recorded_products(FAMILY.layers(pipeline.transformer)) as products, trace(pipeline) as t:
        looked_at = generate()
    assert torch.equal(plain, looked_at) and t.family == WanImageToVideo()
    assert t.images == count and t.references == tuple(range(1 + last)) and t.maps().steps == (0, 1)
    assert {len(found) for found in products.values()} == {8}, "two steps of two forwards of picture and text"
    for row in range(count):
        for number in t.references:
            maps = t.maps(row, number)
            assert_maps_equal(maps, logits(products, 2, row, slice(10 * number + 1, 10 * (number + 1))))
            assert_shares(maps, products, 2, row)
            assert maps.r2g.unified.shape == (2 * 2, 3) and maps.g2r.unified.shape == (3, 3)


@pytest.mark.parametrize("change", ["fused", "LoRA", "compiled", "compiled block"])
def test_fused_lora_and_compiled_models_are_captured(change):
    model = small()
    if change == "fused":
        model.fuse_qkv_projections()
        assert model.blocks[0].attn2.fused_projections
    elif change == "LoRA":
        model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "add_k_proj"], init_lora_weights=False))
    elif change == "compiled block":
        model.blocks[0] = torch.compile(model.blocks[0], backend="eager")
    inputs = video(), text(), picture()
    t, products = traced(model, *inputs)
    assert_maps_equal(t.maps(), logits(products, 1, 0, slice(1, None)))
    assert t.maps().layers == ("blocks.0", "blocks.1")
    if change == "compiled":
        compiled = torch.compile(model, backend="eager")
        with trace(compiled, family=FAMILY) as again:
            run(compiled, *inputs)
        assert np.array_equal(again.maps().g2r.unified, t.maps().g2r.unified)


def test_what_is_not_its_own_is_refused():
    family = WanImageToVideo()
    assert family.refuses(None, small()) is None
    assert "channel concatenation" in family.refuses(None, small(image_dim=None, added_kv_proj_dim=None))
    vace = small(WanVACETransformer3DModel, vace_layers=[0], vace_in_channels=CHANNELS)
    assert "none of WanTransformer3DModel" in family.refuses(None, vace)
    flux = FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        in_channels=4,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    )
    assert "none of WanTransformer3DModel" in family.refuses(SimpleNamespace(transformer=flux), flux)


def test_a_text_of_another_length_and_a_grid_that_does_not_fit_are_named():
    with pytest.raises(UnsupportedModel, match=r"the text has 500 tokens.*max_sequence_length=512"):
        traced(small(), video(), text(tokens=500), picture())
    with pytest.raises(UnsupportedModel, match=r"reference_grid=\(4, 5\) has 20 tokens, the model has 13 a picture"):
        traced(small(), video(), text(), picture(), family=WanImageToVideo(reference_grid=(4, 5)))


def test_a_call_without_a_picture_captures_nothing():
    t, products = traced(small(), video(), text(), None)
    assert products
    with pytest.raises(NothingCaptured, match="reference tokens in none"):
        t.maps()
