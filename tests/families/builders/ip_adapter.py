"""Tiny models of the family `ip_adapter`, and how a pipeline calls them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.image_processor import IPAdapterMaskProcessor
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from oracle import Recorded, recorded_products, sharpened
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from i2am_debug import trace
from i2am_debug.families.ip_adapter import IPAdapter

TEXT, ENCODER = 12, 10  # channels of the text's and of the image encoder's tokens
PATCHES = (3, 4)  # the full adapter's grid in these tests, with a class token before it
FULL = IPAdapter(reference_grid=PATCHES)


def projection(kind: str) -> dict[str, torch.Tensor]:
    """The image projection's weights as the adapters' own files name them; `_load_ip_adapter_weights` tells kinds by them."""
    if kind == "base":  # 4 tokens out of one embedding
        shapes = {"proj.weight": (4 * TEXT, ENCODER), "proj.bias": (4 * TEXT,)}
        return norm("norm", TEXT) | {name: torch.randn(shape) for name, shape in shapes.items()}
    if kind == "full":  # each of the encoder's tokens by itself
        shapes = {"proj.0": (ENCODER, ENCODER), "proj.2": (TEXT, ENCODER)}
        weights = {f"{n}.weight": torch.randn(s) for n, s in shapes.items()}
        return weights | {f"{n}.bias": torch.zeros(s[0]) for n, s in shapes.items()} | norm("proj.3", TEXT)
    assert kind == "plus"  # 16 learnt queries gather from the encoder's tokens
    resampler = IPAdapterPlusImageProjection(ENCODER, TEXT, hidden_dims=8, heads=1, num_queries=16)
    weights = {}
    for name, value in resampler.state_dict().items():
        own = name.replace("ff.1.net.0.proj", "1.1").replace("ff.1.net.2", "1.3").replace("ff.0", "1.0")
        own = own.replace("ln0", "0.norm1").replace("ln1", "0.norm2").replace("attn.to_out.0", "0.to_out")
        own = own.replace("attn.to_q", "0.to_q")
        if "attn.to_k" in own:
            value = torch.cat([value, resampler.state_dict()[name.replace("to_k", "to_v")]])
        if "attn.to_v" not in own:
            weights[own.replace("attn.to_k", "0.to_kv")] = value
    return weights


def norm(name: str, channels: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.ones(channels), f"{name}.bias": torch.zeros(channels)}


def unet_with(*kinds: str, scales: Sequence[object] = (), **changes) -> UNet2DConditionModel:
    """A small UNet with adapters loaded as `pipeline.load_ip_adapter` does, scales set as `set_ip_adapter_scale` does."""
    torch.manual_seed(0)
    settings = dict(
        sample_size=None,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=TEXT,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    unet = UNet2DConditionModel(**{**settings, **changes}).eval()
    if kinds:
        unet._load_ip_adapter_weights([adapter(unet, kind) for kind in kinds], low_cpu_mem_usage=False)
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            for number, scale in enumerate(scales):
                module.processor.scale[number] = scale
    return sharpened(unet.eval(), "attn2.to_q", "attn2.to_k", *(f"to_k_ip.{i}" for i in range(len(kinds))))


def adapter(unet: UNet2DConditionModel, kind: str) -> dict[str, dict[str, torch.Tensor]]:
    """An adapter's weights as its file holds them: keys and values of each cross-attention, numbered 1, 3, 5, …"""
    keys = {}
    for i, name in enumerate(n for n in unet.attn_processors if "attn2" in n):
        width = unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
        for part in ("to_k_ip", "to_v_ip"):
            keys[f"{1 + 2 * i}.{part}.weight"] = torch.randn(width, TEXT) * TEXT**-0.5
    return {"image_proj": projection(kind), "ip_adapter": keys}


def pictures(kind: str, images: int = 1, count: int = 1, tokens: int = 1 + PATCHES[0] * PATCHES[1]) -> torch.Tensor:
    """What the pipeline hands one adapter: (images, pictures, …) of the image encoder."""
    if kind == "base":
        return torch.randn(images, count, ENCODER)
    return torch.randn(images, count, tokens, ENCODER)


def guided(embeds: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.cat([torch.zeros_like(e), e]) for e in embeds]


def run(unet, sample, text, embeds, **cross_attention) -> list[torch.Tensor]:
    """The call of `StableDiffusionPipeline` (and of the XL, inpainting and ControlNet ones) at two noise times."""
    with torch.no_grad():
        return [
            unet(
                sample,
                t,
                encoder_hidden_states=text,
                cross_attention_kwargs=cross_attention or None,
                added_cond_kwargs={"image_embeds": embeds},
                return_dict=False,
            )[0]
            for t in (800, 400)
        ]


def traced(unet, *inputs, family=FULL, **cross_attention):
    """The trace and, layer by layer, the products the layer made; both see the same call."""
    with recorded_products(family.layers(unet)) as products, trace(unet, family=family) as t:
        run(unet, *inputs, **cross_attention)
    return t, products


def logits(products: dict[str, list[Recorded]], call: int, calls: int, row: int, keys: slice = slice(None)):
    """Layer → logits of product `call` of each run; a run makes `calls` products."""
    return {
        layer: [p.logits(slice(row, row + 1), keys=keys)[0] for p in found[call::calls]]
        for layer, found in products.items()
    }


def assert_shares(maps, products, calls: int, call: int, scales: Sequence[float], row: int) -> None:
    """Norm of what one product adds over that of everything together."""
    assert set(maps.branch_share) == set(products)
    for layer, found in products.items():
        shares = []
        for start in range(0, len(found), calls):
            parts = [p.output[row].double() for p in found[start : start + calls]]
            whole = parts[0] + sum(s * p for s, p in zip(scales, parts[1:], strict=True))
            shares.append(scales[call - 1] * parts[call].norm() / whole.norm())
        assert maps.branch_share[layer] == pytest.approx(float(sum(shares) / len(shares)), rel=1e-5)


def masks(count: int) -> torch.Tensor:
    """One a picture, as `IPAdapterMaskProcessor.preprocess` gives them, stacked to (1, pictures, height, width)."""
    halves = np.zeros((count, 48, 80), np.float32)
    for i in range(count):
        halves[i, :, 80 * i // count : 80 * (i + 1) // count] = 1
    return IPAdapterMaskProcessor().preprocess(torch.from_numpy(halves)[:, None], 48, 80).transpose(0, 1)


def assert_masked_share(maps, products, weights: Sequence[tuple[float, torch.Tensor]], number: int) -> None:
    """As `assert_shares`, each picture's product added under its mask, brought to the layer's grid."""
    for layer, found in products.items():
        tokens = found[0].q.shape[2]
        grid = {60: (6, 10), 15: (3, 5)}[tokens]
        shares = []
        for start in range(0, len(found), 1 + len(weights)):
            text, *images = (p.output[0].double() for p in found[start : start + 1 + len(weights)])
            added = []
            for image, (scale, mask) in zip(images, weights, strict=True):
                small = torch.nn.functional.interpolate(mask[None, None], size=grid, mode="bicubic").double()
                added.append(scale * small.reshape(1, tokens, 1) * image)
            shares.append(added[number].norm() / (text + sum(added)).norm())
        assert maps.branch_share[layer] == pytest.approx(float(sum(shares) / len(shares)), rel=1e-5)


class OwnCode(torch.nn.Module):
    """As in the adapters' own training code: one adapter, its tokens behind the text's, attended to at any scale."""

    def __init__(self, width: int, tokens: int, scale: float) -> None:
        super().__init__()
        self.to_k_ip, self.to_v_ip = (torch.nn.Linear(TEXT, width, bias=False) for _ in range(2))
        self.num_tokens, self.scale = tokens, scale

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        def heads(x):
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        text, own = encoder_hidden_states.tensor_split([-self.num_tokens], dim=1)
        q = heads(attn.to_q(hidden_states))
        out = F.scaled_dot_product_attention(q, heads(attn.to_k(text)), heads(attn.to_v(text)))
        out = out + self.scale * F.scaled_dot_product_attention(q, heads(self.to_k_ip(own)), heads(self.to_v_ip(own)))
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def tiny_pipeline(kind: str, cls=StableDiffusionPipeline):
    """The pipeline itself, without text encoder: its calls pass `prompt_embeds`. Latents are as large as the picture."""
    unet = unet_with(sample_size=8)
    vision = CLIPVisionConfig(
        hidden_size=ENCODER,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=12,
        patch_size=4,
        projection_dim=ENCODER,
    )
    pipeline = cls(
        vae=AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4),
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=CLIPImageProcessor(size=12, crop_size=12),
        image_encoder=CLIPVisionModelWithProjection(vision).eval(),
        requires_safety_checker=False,
    )
    pipeline.load_ip_adapter(adapter(unet, kind), subfolder="", weight_name="", low_cpu_mem_usage=False)
    pipeline.set_ip_adapter_scale(0.6)
    pipeline.set_progress_bar_config(disable=True)
    sharpened(unet, "to_k_ip.0")
    return pipeline


def colours(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (12, 12, 3), np.uint8))


def generate(pipeline, count: int, **changes) -> torch.Tensor:
    random = torch.Generator().manual_seed(2)
    arguments = {
        "prompt_embeds": torch.randn(count, 7, TEXT, generator=random),
        "negative_prompt_embeds": torch.randn(count, 7, TEXT, generator=random),
        "ip_adapter_image": [[colours(0), colours(1)]],
        "height": 8,
        "width": 16,
        "num_inference_steps": 2,
        "guidance_scale": 5.0,
        "output_type": "latent",
    }
    return pipeline(**{**arguments, **changes}, generator=random).images
