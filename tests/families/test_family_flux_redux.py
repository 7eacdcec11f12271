"""Flux Redux: the reference's tokens at the end of the prompt's."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxPriorReduxPipeline,
    FluxTransformer2DModel,
)
from diffusers.models.transformers import transformer_flux
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from oracle import assert_maps_equal, recorded_products, sharpened
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

from i2am_debug import trace
from i2am_debug.errors import NothingCaptured, UnsupportedModel
from i2am_debug.families.flux_redux import FluxRedux

TEXT, GENERATED, REFERENCE = 6, (4, 6), (3, 5)
FAMILY = FluxRedux(text_tokens=TEXT, reference_grid=REFERENCE)


def tiny_transformer(**changes) -> FluxTransformer2DModel:
    torch.manual_seed(0)
    settings = dict(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=True,
    )
    model = FluxTransformer2DModel(**{**settings, **changes}).eval()
    return sharpened(model, "norm_q", "norm_k", "norm_added_q", "norm_added_k", factor=1.5)


def blocks(transformer) -> dict[str, torch.nn.Module]:
    return {
        "transformer_blocks.0": transformer.transformer_blocks[0].attn,
        "single_transformer_blocks.0": transformer.single_transformer_blocks[0].attn,
    }


@torch.no_grad()
def denoise(transformer, tokens: tuple[int, ...], *, images: int = 1) -> list[torch.Tensor]:
    """Two sampler steps as in FluxPipeline: timestep / 1000; one forward for each prompt of so many tokens (with
    true_cfg_scale the negative one comes second)."""
    random = torch.Generator().manual_seed(1)
    channels = transformer.config.in_channels
    latents = torch.randn(images, 24, channels, generator=random)
    prompts = [torch.randn(images, count, 12, generator=random) for count in tokens]
    ids = torch.tensor([(0, y, x) for y in range(GENERATED[0]) for x in range(GENERATED[1])]).float()
    return [
        transformer(
            hidden_states=latents,
            timestep=torch.full((images,), t) / 1000,
            guidance=torch.full((images,), 3.5),
            pooled_projections=torch.zeros(images, 8),
            encoder_hidden_states=prompt,
            txt_ids=torch.zeros(prompt.shape[1], 3),
            img_ids=ids,
            joint_attention_kwargs={},
            return_dict=False,
        )[0]
        for t in (1000.0, 600.0)
        for prompt in prompts
    ]


def assert_captured(
    t, products, queries: slice, keys: dict[int, slice], grid: tuple[int, int], images: int = 1
) -> None:
    """Maps and reference mass of every reference and image."""
    assert t.images == images and t.references == tuple(keys)
    for image in range(images):
        row = slice(image, image + 1)
        for number, own in keys.items():
            maps = t.maps(image, number)
            assert_maps_equal(maps, {n: [p.logits(row, queries, own)[0] for p in ps] for n, ps in products.items()})
            assert (maps.r2g.unified.shape, maps.g2r.unified.shape) == (GENERATED, grid)
            for layer, found in products.items():
                mass = [float(p.weights(row, queries)[..., own].sum(-1).mean()) for p in found]
                assert maps.reference_mass[layer] == pytest.approx(sum(mass) / len(mass), rel=1e-5)


@pytest.mark.parametrize("in_channels", [16, 40], ids=["Flux", "Flux Fill"])
@pytest.mark.parametrize("images", [1, 3])
def test_maps_and_reference_mass_are_those_of_the_conditional_forward(images, in_channels):
    transformer = tiny_transformer(in_channels=in_channels, out_channels=16)
    tokens = (TEXT + 15, TEXT)  # a negative prompt without a picture
    with recorded_products(blocks(transformer)) as products:
        plain = denoise(transformer, tokens, images=images)
    with trace(transformer, family=FAMILY) as t:
        seen = denoise(transformer, tokens, images=images)
    assert all(map(torch.equal, plain, seen))
    conditional = {n: found[::2] for n, found in products.items()}
    assert_captured(t, conditional, slice(21, 45), {0: slice(6, 21)}, REFERENCE, images)
    assert t.maps().total_steps == 2


def test_a_negative_prompt_with_a_picture_is_left_out_too():
    transformer = tiny_transformer()
    with recorded_products(blocks(transformer)) as products:
        denoise(transformer, (TEXT + 15, TEXT + 15))
    with trace(transformer, family=FAMILY) as t:
        denoise(transformer, (TEXT + 15, TEXT + 15))
    conditional = {n: found[::2] for n, found in products.items()}
    assert_captured(t, conditional, slice(21, 45), {0: slice(6, 21)}, REFERENCE)


def test_several_pictures_are_references_of_their_own():
    transformer = tiny_transformer()
    with recorded_products(blocks(transformer)) as products:
        denoise(transformer, (TEXT + 30,))
    with trace(transformer, family=FAMILY) as t:
        denoise(transformer, (TEXT + 30,))
    assert_captured(t, products, slice(36, 60), {0: slice(6, 21), 1: slice(21, 36)}, REFERENCE)


@pytest.mark.parametrize("generated, reference", [((1, 4), (2, 1)), ((3, 0), (0, 3))])
def test_the_specific_map_of_a_planted_copy_peaks_at_its_key(monkeypatch, generated, reference):
    transformer = tiny_transformer()
    real = transformer_flux.dispatch_attention_fn
    query = TEXT + 15 + generated[0] * GENERATED[1] + generated[1]
    key = TEXT + reference[0] * REFERENCE[1] + reference[1]

    def planted(q, k, v, **kwargs):  # (B, tokens, heads, d), after the rotary embedding
        q = q.clone()
        q[:, query] = 6 * k[:, key]
        return real(q, k, v, **kwargs)

    monkeypatch.setattr(transformer_flux, "dispatch_attention_fn", planted)
    with trace(transformer, family=FAMILY) as t:
        denoise(transformer, (TEXT + 15,))
    for layer in blocks(transformer):
        row = t.maps().specific(*generated, layer=layer)
        assert np.unravel_index(row.argmax(), row.shape) == reference and row.max() > 0.9
        assert t.maps().specific(2, 5, layer=layer).max() < 0.8


def test_a_prompt_of_text_alone_or_of_unknown_tokens_is_told():
    transformer = tiny_transformer()
    for tokens in (TEXT, TEXT - 2):
        with trace(transformer, family=FAMILY) as t:
            denoise(transformer, (tokens,))
        with pytest.raises(NothingCaptured, match=r"'flux_redux' found reference tokens in none"):
            t.maps()
    words = r"has 28 tokens; less text_tokens=6 they are 22, no multiple of the 15 of a 3x5 picture.*FluxRedux\(text_tokens="
    with pytest.raises(UnsupportedModel, match=words), trace(transformer, family=FAMILY):
        denoise(transformer, (28,))


def test_what_the_family_refuses():
    transformer = tiny_transformer()
    assert "can't be seen from the model" in FluxRedux().refuses(transformer, transformer)
    assert "no FluxTransformer2DModel" in FluxRedux().refuses(None, torch.nn.Linear(2, 2))
    pipeline = SimpleNamespace(components={"transformer": transformer, "image_embedder": ReduxImageEncoder(2, 2)})
    assert FluxRedux().refuses(pipeline, transformer) is None


@pytest.mark.parametrize("images", [1, 3])
def test_the_pipelines(images):
    """FluxPriorReduxPipeline's 512 text and 27x27 picture tokens through FluxPipeline."""
    torch.manual_seed(3)
    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    prior = FluxPriorReduxPipeline(
        image_encoder=SiglipVisionModel(SiglipVisionConfig(image_size=54, patch_size=2, **small)).eval(),
        feature_extractor=SiglipImageProcessor(size={"height": 54, "width": 54}),
        image_embedder=ReduxImageEncoder(redux_dim=16, txt_in_features=12),
        # Without text encoders the text tokens would have 4096 channels; with one they may be given.
        text_encoder=CLIPTextModel(CLIPTextConfig(vocab_size=9, **small)),
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        norm_num_groups=1,
        shift_factor=0.06,
        scaling_factor=1.5,
    ).eval()
    texts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, transformer=tiny_transformer(), **texts
    )
    pipeline.set_progress_bar_config(disable=True)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    prompt = prior(picture, prompt_embeds=torch.randn(1, 512, 12), pooled_prompt_embeds=torch.randn(1, 8))

    def call() -> torch.Tensor:
        return pipeline(
            prompt_embeds=prompt.prompt_embeds.repeat(images, 1, 1),
            pooled_prompt_embeds=prompt.pooled_prompt_embeds.repeat(images, 1),
            height=64,
            width=96,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(5),
            output_type="pt",
        ).images

    assert prompt.prompt_embeds.shape == (1, 512 + 729, 12)
    assert "FluxRedux()" in FluxRedux().refuses(pipeline, pipeline.transformer)
    with recorded_products(blocks(pipeline.transformer)) as products:
        plain = call()
    with trace(pipeline, family=FluxRedux()) as t:
        seen = call()
    assert torch.equal(plain, seen)
    assert_captured(t, products, slice(1241, 1265), {0: slice(512, 1241)}, (27, 27), images)
