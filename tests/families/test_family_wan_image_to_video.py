"""Wan image-to-video: the picture's product of each layer, one grid out of the frames, and the conditional forward of two."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKLWan,
    ChronoEditTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    SkyReelsV2Transformer3DModel,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from oracle import assert_maps_equal, recorded_products, sharpened
from peft import LoraConfig
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from i2am_debug import trace
from i2am_debug.errors import NothingCaptured, UnsupportedModel
from i2am_debug.families.wan_image_to_video import WanImageToVideo

CHANNELS, TEXT, ENCODER = 6, 8, 10  # of the latents, the text's tokens and the image encoder's
PATCHES = (3, 4)  # of the picture in these tests, with a class token before them
FAMILY = WanImageToVideo(reference_grid=PATCHES)
FRAMES, H, W = 3, 2, 5  # of the generated video in patches: 3 latent frames of 4x10


def small(model=WanTransformer3DModel, **changes):
    torch.manual_seed(0)
    settings = dict(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=CHANNELS,
        out_channels=4,
        text_dim=TEXT,
        freq_dim=8,
        ffn_dim=16,
        num_layers=2,
        image_dim=ENCODER,
        added_kv_proj_dim=24,
        rope_max_seq_len=32,
    )
    # A norm follows the projections: its weights make the logits larger.
    return sharpened(model(**{**settings, **changes}).eval(), "attn2.norm_q", "attn2.norm_added_k")


def video(videos: int = 1, frames: int = FRAMES) -> torch.Tensor:
    return torch.randn(videos, CHANNELS, frames, 2 * H, 2 * W)


def text(videos: int = 1, tokens: int = 512) -> torch.Tensor:
    return torch.randn(videos, tokens, TEXT)


def picture(videos: int = 1, tokens: int = 1 + PATCHES[0] * PATCHES[1]) -> torch.Tensor:
    """The image encoder's tokens; first and last frame of a video are two rows, one after the other."""
    return torch.randn(videos, tokens, ENCODER)


def run(model, latents, prompt, embeds, negative=None) -> list[torch.Tensor]:
    """The transformer's calls in `WanImageToVideoPipeline` (ChronoEdit's and SkyReels' are alike) at two noise times.

    The pipeline hands over the noise and, as more channels, the first frame's latents; here they are one tensor.
    """
    outputs = []
    with torch.no_grad():
        for time in (800, 400):
            for states in (prompt,) if negative is None else (prompt, negative):
                outputs.append(
                    model(
                        hidden_states=latents,
                        timestep=torch.tensor(time).expand(len(latents)),
                        encoder_hidden_states=states,
                        encoder_hidden_states_image=embeds,
                        attention_kwargs=None,
                        return_dict=False,
                    )[0]
                )
    return outputs


def traced(model, *inputs, family=FAMILY):
    """The trace and, layer by layer, the products the layer made: picture, text, picture, text, …"""
    with recorded_products(family.layers(model)) as products, trace(model, family=family) as t:
        run(model, *inputs)
    return t, products


def logits(products, every: int, row: int, keys: slice, queries: slice = slice(None)):
    """Layer → logits of the picture's product in every `every`th forward."""
    return {
        layer: [p.logits(slice(row, row + 1), queries, keys)[0] for p in found[:: 2 * every]]
        for layer, found in products.items()
    }


def assert_shares(maps, products, every: int, row: int, queries: slice = slice(None)) -> None:
    """Norm of what the picture's product adds over that of picture and text together."""
    assert set(maps.branch_share) == set(products)
    for layer, found in products.items():
        shares = []
        for start in range(0, len(found), 2 * every):
            ours, theirs = (p.output[row][:, queries].double() for p in found[start : start + 2])
            shares.append(ours.norm() / (ours + theirs).norm())
        assert maps.branch_share[layer] == pytest.approx(float(sum(shares) / len(shares)), rel=1e-5)


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


@pytest.mark.parametrize(("patch", "token"), [((3, 4), (2, 1)), ((0, 2), (0, 3)), ((5, 0), (1, 2))])
def test_the_specific_map_of_a_planted_copy_peaks_at_its_key(patch, token):
    """Make one generated token's query the key of one reference token: its row must peak exactly there."""
    model = small()
    attention = model.blocks[1].attn2
    key = 2 * F.normalize(torch.randn(1, 13, 2, 12), dim=-1).flatten(2)
    query = torch.randn(1, FRAMES * H * W, 24) * 0.1
    frame, row = divmod(patch[0], H)
    query[0, frame * H * W + row * W + patch[1]] = 6 * key[0, 1 + token[0] * 4 + token[1]]
    attention.norm_q.forward = lambda x: query
    attention.norm_added_k.forward = lambda x: key
    t, _ = traced(model, video(), text(), picture())
    found = t.maps().specific(*patch, layer="blocks.1")
    assert np.unravel_index(found.argmax(), found.shape) == token
    other = t.maps().specific(2, 2, layer="blocks.1")
    assert other.max() < 0.5 * found.max()


@pytest.mark.parametrize("model", [WanTransformer3DModel, ChronoEditTransformer3DModel])
def test_output_is_bit_identical(model):
    inputs, transformer = (video(2), text(2), picture(2), text(2)), small(model)
    plain = run(transformer, *inputs)
    with trace(transformer, family=FAMILY) as t:
        looked_at = run(transformer, *inputs)
    assert t.images == 2 and all(map(torch.equal, plain, looked_at))


def tiny_pipeline(**changes) -> WanImageToVideoPipeline:
    """The pipeline itself, without text encoder: its calls pass `prompt_embeds`."""
    vision = CLIPVisionConfig(
        hidden_size=ENCODER,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=12,
        patch_size=4,
    )
    pipeline = WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=AutoencoderKLWan(base_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        image_processor=CLIPImageProcessor(size=12, crop_size=12),
        image_encoder=CLIPVisionModel(vision).eval(),
        transformer=small(in_channels=16 + 4 + 16, out_channels=16, **changes),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


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
