"""Tiny models of the family `self_attention_reference`, and how a pipeline calls them."""

from __future__ import annotations

import math

import diffusers
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor2_0, FusedAttnProcessor2_0
from oracle import assert_maps_equal, sharpened
from peft import LoraConfig
from PIL import Image
from torch import nn

TEXT = 12
LEVELS = {8: (6, 10), 16: (3, 5)}  # channels of a level → its grid, for a latent of 6x10


class AppendsKeys(AttnProcessor2_0):
    """Keys of the reference behind the layer's own, as the reference-only way has it."""

    features: torch.Tensor | None = None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        if self.features is None:
            return super().__call__(attn, hidden_states)
        return super().__call__(attn, hidden_states, torch.cat([hidden_states, self.features], dim=1))


class AppendsTokens(AppendsKeys):
    """Queries of the reference too, dropped afterwards, as in IDM-VTON and OOTDiffusion."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        if self.features is None:
            return super().__call__(attn, hidden_states)
        both = torch.cat([hidden_states, self.features], dim=1)
        return AttnProcessor2_0.__call__(self, attn, both)[:, : hidden_states.shape[1]]


class IDMVTON(UNet2DConditionModel):
    def forward(self, sample, timestep, encoder_hidden_states, garment_features=None, **kwargs):
        give(self, garment_features)
        return super().forward(sample, timestep, encoder_hidden_states, **kwargs)


class OOTDiffusion(UNet2DConditionModel):
    def forward(self, sample, spatial_attn_inputs, timestep, encoder_hidden_states, **kwargs):
        give(self, spatial_attn_inputs)
        return super().forward(sample, timestep, encoder_hidden_states, **kwargs)


def small(cls=UNet2DConditionModel, processor=AppendsTokens, **changes):
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
    unet = sharpened(cls(**{**settings, **changes}).eval())
    for module in self_attention(unet).values():
        module.set_processor(processor())
    return unet


def self_attention(unet) -> dict[str, nn.Module]:
    suffix = ".transformer_blocks.0.attn1"
    return {n.removesuffix(suffix): m for n, m in unet.named_modules() if n.endswith(suffix)}


def give(unet, features) -> None:
    for module, each in zip(self_attention(unet).values(), features, strict=True):
        module.processor.features = each


def features_for(unet, rows: int = 1, references: int = 1, levels=LEVELS, seed: int = 1) -> list[torch.Tensor]:
    """What the reference's own UNet gives: one (rows, tokens, channels) for each self-attention."""
    random = torch.Generator().manual_seed(seed)
    channels = [module.to_q.in_features for module in self_attention(unet).values()]
    return [torch.randn(rows, references * math.prod(levels[c]), c, generator=random) for c in channels]


def run_twice(unet, sample, text, **more) -> list[torch.Tensor]:
    with torch.no_grad():
        return [unet(sample, timestep=t, encoder_hidden_states=text, **more).sample for t in (800, 400)]


def own_tokens(unet) -> dict[str, int]:
    return {n: math.prod(LEVELS[m.to_q.in_features]) for n, m in self_attention(unet).items()}


def assert_rows_are(maps, products, own, row: int) -> None:
    """The maps are those of this row of the batch, with the features behind the layer's own tokens."""
    truth = {
        la: [p.logits([row], slice(0, own[la]), slice(own[la], None))[0] for p in each] for la, each in products.items()
    }
    assert_maps_equal(maps, truth)


class ReadsBank(BasicTransformerBlock):
    """A block that mixes self-attention with and without the features in its bank, as MimicBrush's do."""

    def forward(self, hidden_states, encoder_hidden_states=None, **kwargs):
        own = self.norm1(hidden_states)
        both = torch.cat([own, *self.bank], dim=1)
        read = self.attn1(both, encoder_hidden_states=both)[:, : own.shape[1]]
        hidden_states = (read + self.attn1(own)) / 2 + hidden_states
        hidden_states = (
            self.attn2(self.norm2(hidden_states), encoder_hidden_states=encoder_hidden_states) + hidden_states
        )
        return self.ff(self.norm3(hidden_states)) + hidden_states


class SkipAttnProcessor(nn.Module):
    """CatVTON's cross-attention does nothing."""

    def forward(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        return hidden_states


def catvton(**changes) -> UNet2DConditionModel:
    """An inpainting UNet: 4 channels of latent, the mask, 4 of the masked picture."""
    unet = small(in_channels=9, processor=AttnProcessor2_0, **changes)
    for name, module in unet.named_modules():
        if name.endswith(".attn2"):
            module.set_processor(SkipAttnProcessor())
    return unet


def side_by_side(images: int, dim: int, guidance: bool, seed: int = 1) -> torch.Tensor:
    """What CatVTONPipeline gives its UNet: [latents, mask, masked picture and garment], garment zeroed in the first half."""
    random = torch.Generator().manual_seed(seed)
    noise, more_noise, person, garment, mask = (
        torch.randn(images, channels, 6, 10, generator=random) for channels in (4, 4, 4, 4, 1)
    )
    latents = torch.cat([noise, more_noise], dim)
    mask = torch.cat([mask, torch.zeros_like(mask)], dim)
    with_garment = torch.cat([latents, mask, torch.cat([person, garment], dim)], dim=1)
    without = torch.cat([latents, mask, torch.cat([person, torch.zeros_like(garment)], dim)], dim=1)
    return torch.cat([without, with_garment]) if guidance else with_garment


def halves(grid: tuple[int, int], axis: str) -> tuple[list[int], list[int]]:
    """Numbers of the generated and of the reference's tokens of a layer, counted one by one."""
    own, other = [], []
    for y in range(grid[0]):
        for x in range(grid[1]):
            second = y >= grid[0] // 2 if axis == "height" else x >= grid[1] // 2
            (other if second else own).append(y * grid[1] + x)
    return own, other


def assert_halves(maps, products, grids, axis, row: int) -> None:
    """Maps and mass of one row of the batch equal what its generated half makes of the other half."""
    truth = {}
    for layer, each in products.items():
        own, other = halves(grids[layer], axis)
        truth[layer] = [p.logits([row], own, other)[0] for p in each]
        mass = np.mean([float(p.weights([row], own)[..., other].sum(-1).mean()) for p in each])
        assert maps.reference_mass[layer] == pytest.approx(mass, rel=1e-5)
    assert_maps_equal(maps, truth)


AXES = {"height": (-2, (12, 10), (6, 5)), "width": (-1, (6, 20), (3, 10))}  # dim, grid of each level


def fused(unet) -> None:
    for module in self_attention(unet).values():
        module.fuse_projections()
        module.set_processor(FusedAttnProcessor2_0())


def with_adapters(unet) -> None:
    unet.add_adapter(LoraConfig(target_modules=["to_q", "to_k"], init_lora_weights=False))


def compiled_in_parts(unet) -> None:
    block = unet.down_blocks[0].attentions[0].transformer_blocks
    block[0] = torch.compile(block[0], backend="eager")
    middle = unet.mid_block.attentions[0].transformer_blocks[0]
    middle.attn1 = torch.compile(middle.attn1, backend="eager")


class PromptEncoder(nn.Module):
    """Stands in for the Qwen3-VL of DreamLite, which `encode_prompt` below does without."""

    dtype, device = torch.float32, torch.device("cpu")


def dreamlite(name: str = "DreamLitePipeline"):
    """The real pipeline, with a small UNet and autoencoder."""
    if not hasattr(diffusers, name):
        pytest.skip("this diffusers has no DreamLite")
    torch.manual_seed(0)
    unet = diffusers.DreamLiteUNetModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
        up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteCrossAttnNoSelfAttnUpBlock2D"),
        cross_attention_dim=TEXT,
        attention_head_dim=(2, 4),
        norm_num_groups=4,
        use_linear_projection=True,
        ff_mult=2,
    ).eval()
    autoencoder = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).eval()
    pipeline = getattr(diffusers, name)(
        text_encoder=PromptEncoder(),
        tokenizer=None,
        processor=None,
        vae=autoencoder,
        unet=sharpened(unet, "norm_q", "norm_k", factor=3),  # the weights of to_q and to_k are normalised away
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )
    embeds = torch.randn(3, 5, TEXT)
    pipeline.encode_prompt = lambda mode, prompts, **_: (embeds[: len(prompts)], torch.ones(len(prompts), 5))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def edit(pipeline, picture: bool = True) -> torch.Tensor:
    """Two sampler steps on a 6x10 latent, with a picture to edit or from the text alone."""
    noise = np.random.default_rng(2).integers(0, 255, (12, 20, 3), dtype=np.uint8)
    return pipeline(
        "a hat",
        image=Image.fromarray(noise) if picture else None,
        height=12,
        width=20,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images
