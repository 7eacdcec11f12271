"""Flux 1: Kontext, IP-Adapter, Redux; and Chroma."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxKontextInpaintPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxPriorReduxPipeline,
    FluxTransformer2DModel,
)
from diffusers.models.embeddings import ImageProjection
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder

from i2am_debug import ValidationPair
from i2am_debug.families.flux_redux import FluxRedux

from .case import HEIGHT, STEPS, WIDTH, PipelineCase, pair, quiet
from .pictures import (
    ENCODER,
    clip_image_encoder,
    clip_image_processor,
    flux_autoencoder,
    siglip,
    siglip_processor,
)
from .text import clip_text_encoder, clip_tokenizer, t5_text_encoder, t5_tokenizer

TEXT, POOLED, IP_TOKENS, T5_TOKENS = 12, 8, 4, 16
SMALL = dict(height=HEIGHT, width=WIDTH, max_sequence_length=T5_TOKENS)
SMALL_KONTEXT = dict(SMALL, max_area=HEIGHT * WIDTH, _auto_resize=False)
"""Else Kontext brings everything to about a megapixel."""
COMMON = dict(
    patch_size=1,
    in_channels=16,
    num_layers=2,
    num_single_layers=1,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=TEXT,
    axes_dims_rope=(4, 6, 6),
)


def texts() -> dict[str, Any]:
    return dict(
        text_encoder=clip_text_encoder(POOLED),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_text_encoder(TEXT),
        tokenizer_2=t5_tokenizer(),
    )


def shifting_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """As Flux ships with it: noise times that depend on the picture's size."""
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0, base_shift=0.5, max_shift=1.15)


def flux(kind: type, **components: Any) -> Any:
    own = texts()
    torch.manual_seed(0)
    return quiet(
        kind(
            scheduler=shifting_scheduler(),
            vae=flux_autoencoder(),
            transformer=FluxTransformer2DModel(**COMMON, pooled_projection_dim=POOLED, guidance_embeds=True),
            **own,
            **components,
        )
    )


def eyes() -> dict[str, Any]:
    return dict(image_encoder=clip_image_encoder(), feature_extractor=clip_image_processor())


def load_ip_adapter(pipeline: Any) -> Any:
    """From a state dict in the layout of the adapters' files."""
    torch.manual_seed(1)
    fresh = [FluxIPAdapterAttnProcessor(hidden_size=32, cross_attention_dim=TEXT) for _ in range(COMMON["num_layers"])]
    weights = {f"{i}.{n.replace('.0.', '.')}": v for i, p in enumerate(fresh) for n, v in p.state_dict().items()}
    projection = ImageProjection(ENCODER, TEXT, IP_TOKENS).state_dict()
    projection = {name.replace("image_embeds", "proj"): value for name, value in projection.items()}
    pipeline.load_ip_adapter({"image_proj": projection, "ip_adapter": weights}, weight_name="")
    return quiet(pipeline)


def chroma() -> Any:
    torch.manual_seed(0)
    settings = dict(approximator_num_channels=16, approximator_hidden_dim=8, approximator_layers=1)
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_beta_sigmas=True),
        vae=flux_autoencoder(),
        transformer=ChromaTransformer2DModel(**COMMON, **settings),
        text_encoder=t5_text_encoder(TEXT),
        tokenizer=t5_tokenizer(),
        **eyes(),
    )


def redux_prior() -> FluxPriorReduxPipeline:
    own = texts()
    torch.manual_seed(2)
    return quiet(
        FluxPriorReduxPipeline(
            image_encoder=siglip(),
            feature_extractor=siglip_processor(),
            image_embedder=ReduxImageEncoder(redux_dim=ENCODER, txt_in_features=TEXT),
            **own,
        )
    )


def with_redux() -> Any:
    """A call in two stages, as users write it: what the prior makes of the reference is the prompt."""
    prior = redux_prior()

    def call(pipeline: Any, pair: ValidationPair, generator: torch.Generator) -> Any:
        prompt = prior(pair.reference, prompt=pair.prompt)
        return pipeline(**prompt, **pair.extra, num_inference_steps=STEPS, generator=generator)

    return call


def encode_with_vae(pipeline: Any, pair: ValidationPair) -> torch.Tensor:
    """As `encode_packed`, for pipelines that never encode a picture: what their decoding is the reverse of."""
    config = pipeline.vae.config
    pixels = pipeline.image_processor.preprocess(pair.target, HEIGHT, WIDTH)
    encoded = (pipeline.vae.encode(pixels).latent_dist.mode() - config.shift_factor) * config.scaling_factor
    return pipeline._pack_latents(encoded, *encoded.shape)


def encode_packed(pipeline: Any, pair: ValidationPair) -> torch.Tensor:
    """(1, tokens, channels) of a target that is as large as the generated picture."""
    pixels = pipeline.image_processor.preprocess(pair.target, HEIGHT, WIDTH)
    encoded = pipeline._encode_vae_image(pixels, torch.Generator().manual_seed(0))
    return pipeline._pack_latents(encoded, *encoded.shape)


def kontext_pairs() -> list[ValidationPair]:
    """One to be edited, one whose reference has another size, one with true guidance."""
    guided = dict(SMALL_KONTEXT, negative_prompt="a dog", true_cfg_scale=2.0)
    return [
        pair(0, extra=SMALL_KONTEXT),
        pair(1, reference=(80, 48), extra=SMALL_KONTEXT),
        pair(2, extra=guided),
    ]


CASES = [
    PipelineCase(
        name="FluxKontextPipeline",
        build=lambda: flux(FluxKontextPipeline),
        family="flux_kontext",
        pairs=kontext_pairs,
        encode=encode_packed,
    ),
    PipelineCase(
        name="FluxKontextInpaintPipeline",
        build=lambda: flux(FluxKontextInpaintPipeline),
        family="flux_kontext",
        pairs=lambda: [pair(n, masked=True, extra=SMALL_KONTEXT) for n in range(2)],
        encode=encode_packed,
    ),
    PipelineCase(
        name="FluxPipeline, IP-Adapter",
        build=lambda: load_ip_adapter(flux(FluxPipeline, **eyes())),
        family="flux_ip_adapter",
        pairs=lambda: [
            pair(0, reference=(48, 48), extra=SMALL),
            pair(1, extra=dict(SMALL, negative_prompt="a dog", true_cfg_scale=2.0)),
        ],
        encode=encode_with_vae,
    ),
    PipelineCase(
        name="FluxImg2ImgPipeline, IP-Adapter",
        build=lambda: load_ip_adapter(flux(FluxImg2ImgPipeline, **eyes())),
        family="flux_ip_adapter",
        pairs=lambda: [pair(n, reference=(48, 48), extra=SMALL) for n in range(2)],
        encode=encode_packed,
        tolerance=1e-3,  # this pipeline draws from the autoencoder's distribution
    ),
    PipelineCase(
        name="FluxPipeline, Redux",
        build=lambda: flux(FluxPipeline),
        family="flux_redux",
        asked_for=FluxRedux(text_tokens=512, reference_grid=(3, 3)),
        call=with_redux,
        pairs=lambda: [pair(n, reference=(48, 48), extra=dict(height=HEIGHT, width=WIDTH)) for n in range(2)],
        encode=encode_with_vae,
    ),
    PipelineCase(
        name="ChromaPipeline, IP-Adapter",
        build=lambda: load_ip_adapter(chroma()),
        family="flux_ip_adapter",
        pairs=lambda: [pair(n, reference=(48, 48), extra=SMALL) for n in range(2)],
        encode=encode_with_vae,
    ),
]
