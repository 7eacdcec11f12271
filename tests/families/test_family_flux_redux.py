"""Flux Redux: the reference's tokens at the end of the prompt's."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builders.flux_redux import FAMILY, REFERENCE, TEXT, assert_captured, blocks, denoise, tiny_transformer
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxPriorReduxPipeline,
)
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from oracle import recorded_products
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

from i2am_debug import trace
from i2am_debug.errors import NothingCaptured, UnsupportedModel
from i2am_debug.families.flux_redux import FluxRedux


@pytest.mark.parametrize("in_channels", [40], ids=["Flux Fill"])
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
