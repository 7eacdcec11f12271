"""Pipelines whose picture nothing attends to: they are recognised, and it is true of them."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FluxTransformer2DModel,
    LDMSuperResolutionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor2_0
from oracle import recorded_products

from i2am_debug import trace
from i2am_debug.capture.trace import find_denoiser
from i2am_debug.errors import UnsupportedModel
from i2am_debug.families import channel_concatenation
from i2am_debug.families.channel_concatenation import reason

WAYS = {
    "StableDiffusionInstructPix2PixPipeline": "concatenated to the channels",
    "StableDiffusionXLInstructPix2PixPipeline": "concatenated to the channels",
    "StableDiffusionUpscalePipeline": "concatenated to the channels",
    "StableDiffusionLatentUpscalePipeline": "concatenated to the channels",
    "LDMSuperResolutionPipeline": "concatenated to the channels",
    "FluxFillPipeline": "concatenated to the channels",
    "FluxControlPipeline": "concatenated to the channels",
    "StableUnCLIPPipeline": "a class label",
    "StableUnCLIPImg2ImgPipeline": "a class label",
    "StableDiffusionInpaintPipeline": "or blended into it",
    "StableDiffusionXLInpaintPipeline": "or blended into it",
    "StableDiffusionControlNetPipeline": "second network",
    "StableDiffusionControlNetInpaintPipeline": "second network",
    "StableDiffusionXLControlNetPipeline": "second network",
    "StableDiffusion3ControlNetPipeline": "second network",
    "FluxControlNetPipeline": "second network",
    "QwenImageControlNetPipeline": "second network",
    "StableDiffusionXLAdapterPipeline": "second network",
}
WITH_REFERENCE_OR_WITHOUT_PICTURE = (
    "BlipDiffusionControlNetPipeline",
    "FluxKontextPipeline",
    "FluxPipeline",
    "KandinskyV22ControlnetPipeline",
    "PaintByExamplePipeline",
    "QwenImageEditPipeline",
    "StableDiffusionImageVariationPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "WanImageToVideoPipeline",
)


def small_unet(**changes) -> UNet2DConditionModel:
    torch.manual_seed(0)
    settings = dict(
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return UNet2DConditionModel(**{**settings, **changes}).eval()


def small_transformer() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=8,
        num_layers=1,
        num_single_layers=0,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 6, 6),
    )


def stand_in(cls, **components):
    """An object of the very class, without the components that are too heavy for a test."""
    pipeline = object.__new__(cls)
    for name, value in components.items():
        setattr(pipeline, name, value)
    return pipeline


def of_class(name: str):
    transformer = name.startswith(("Flux", "Qwen", "Wan", "StableDiffusion3"))
    components = {"transformer": small_transformer()} if transformer else {"unet": small_unet()}
    return stand_in(getattr(diffusers, name), **components)


@pytest.mark.parametrize("name", WAYS)
def test_the_reason_says_how_the_picture_comes_in_and_what_that_means(name):
    pipeline = of_class(name)
    text = reason(pipeline, find_denoiser(pipeline))
    assert text.startswith(f"{name} has no reference tokens: ") and WAYS[name] in text
    assert "no attribution map" in text and "denoising loss" in text and "pass family=" in text


@pytest.mark.parametrize("name", WITH_REFERENCE_OR_WITHOUT_PICTURE)
def test_other_pipelines_have_no_such_reason(name):
    pipeline = of_class(name)
    assert reason(pipeline, find_denoiser(pipeline)) is None


def test_every_name_is_one_of_diffusers():
    unknown = [name for name in channel_concatenation._WAYS if not hasattr(diffusers, name)]
    assert unknown == []


def test_a_denoiser_by_itself_has_no_such_reason():
    for denoiser in (small_unet(in_channels=8), small_transformer()):
        assert reason(denoiser, denoiser) is None


def test_an_ip_adapter_brings_reference_tokens():
    pipeline = of_class("StableDiffusionInpaintPipeline")
    assert reason(pipeline, pipeline.unet) is not None
    for name, module in pipeline.unet.named_modules():
        if name.endswith(".attn2"):
            module.set_processor(IPAdapterAttnProcessor2_0(8, 12))
    assert reason(pipeline, pipeline.unet) is None


def test_a_pipeline_with_a_call_of_its_own_is_not_known():
    class Restyled(LDMSuperResolutionPipeline):
        """The library's call is kept."""

    class Rewritten(LDMSuperResolutionPipeline):
        def __call__(self, image, reference):
            return image

    assert reason(stand_in(Restyled), small_unet()).startswith("Restyled has no reference tokens")
    assert reason(stand_in(Rewritten), small_unet()) is None


def products_of(denoiser, run) -> dict:
    modules = {n: m for n, m in denoiser.named_modules() if isinstance(m, Attention)}
    with recorded_products(modules) as products, torch.no_grad():
        run()
    assert products
    return products


def assert_no_keys_of(first: dict, second: dict) -> None:
    """Two runs with other pictures: cross-attention has the very same keys, all other keys are the queries' own tokens."""
    moved = False
    for name, products in first.items():
        for one, other in zip(products, second[name], strict=True):
            moved = moved or not torch.equal(one.q, other.q)
            if name.endswith("attn2"):
                assert torch.equal(one.k, other.k)
            else:
                assert one.k.shape[2] == one.q.shape[2]
    assert moved, "the picture must change something, or the check would prove nothing"


def test_instruct_pix2pix_has_no_keys_of_the_picture():
    torch.manual_seed(0)
    autoencoder = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).eval()
    pipeline = diffusers.StableDiffusionInstructPix2PixPipeline(
        vae=autoencoder,
        text_encoder=None,
        tokenizer=None,
        unet=small_unet(in_channels=8),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    text = torch.randn(2, 1, 5, 12)

    def run(picture):
        generator = torch.Generator().manual_seed(0)
        embeds = {"prompt_embeds": text[0], "negative_prompt_embeds": text[1]}
        pipeline(image=picture, num_inference_steps=2, generator=generator, output_type="latent", **embeds)

    assert_no_keys_of(*(products_of(pipeline.unet, lambda p=picture: run(p)) for picture in torch.rand(2, 1, 3, 8, 8)))
    with pytest.raises(UnsupportedModel, match="StableDiffusionInstructPix2PixPipeline has no reference tokens"):
        trace(pipeline)


def test_a_class_label_gives_no_keys():
    """StableUnCLIPImg2ImgPipeline's call of its UNet; its other components are too heavy."""
    unet = small_unet(class_embed_type="projection", projection_class_embeddings_input_dim=6)
    latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 12)
    calls = [lambda p=picture: unet(latents, 500, text, class_labels=p) for picture in torch.randn(2, 1, 6)]
    assert_no_keys_of(*(products_of(unet, call) for call in calls))


def test_a_real_super_resolution_pipeline_attends_to_its_own_tokens_only():
    torch.manual_seed(0)
    unet = UNet2DModel(
        in_channels=6,
        out_channels=3,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",),
        norm_num_groups=4,
        attention_head_dim=4,
    ).eval()
    autoencoder = diffusers.VQModel(
        block_out_channels=(8,), norm_num_groups=4, num_vq_embeddings=8, vq_embed_dim=3, latent_channels=3
    ).eval()
    pipeline = LDMSuperResolutionPipeline(vqvae=autoencoder, unet=unet, scheduler=DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    assert "LDMSuperResolutionPipeline has no reference tokens" in reason(pipeline, find_denoiser(pipeline))

    def run(seed: int):
        picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        pipeline(picture, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt")

    assert_no_keys_of(*(products_of(unet, lambda s=seed: run(s)) for seed in (1, 2)))
