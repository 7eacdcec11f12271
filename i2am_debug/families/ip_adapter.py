"""UNets with IP-Adapter: every `attn2` attends to the text first, then to the reference pictures with keys of their own.

Which product belongs to which adapter and picture is read off the processor's scales (an adapter at scale 0 is not called) and
the forward call's arguments: how many pictures each adapter was given, and its masks (an adapter with masks is called once a
picture, one without attends to all its pictures at once). Pictures are numbered across adapters, in the adapters' order; a
number stays the same where another adapter is left out. Masks act on what the attention gives: maps are of the attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..errors import UnsupportedModel
from ..grids import Grid
from .family import About, Layout, Product, Reference
from .latents import every_row, half_of_guidance, level_grid
from .unet_cross_attention import UNetCrossAttention

_FULL = 257  # tokens of IP-Adapter full: CLIP's class token and 16x16 patches


@dataclass(frozen=True, kw_only=True)
class IPAdapter:
    """Stable Diffusion 1.5, SDXL and Kolors UNets with one or more IP-Adapters loaded."""

    reference_grid: Grid | None = None
    """(height, width) of one picture's tokens; by default a square, with one class token before it where that fits, if the
    adapter keeps the image encoder's tokens as they are (IP-Adapter full). Other adapters' tokens have no place."""
    guidance: bool = True
    """False: every row of a batch is a picture of its own. By default a batch that holds each latent twice, under other
    conditions, is taken for classifier-free guidance: two references of one picture under one noise look just like it."""
    name: ClassVar[str] = "ip_adapter"
    about: ClassVar[About] = About(
        models="Stable Diffusion 1.5, SDXL and Kolors with IP-Adapter: several adapters, several pictures, adapter masks",
        g2r="yes; a row of tokens without a grid for base, plus and FaceID",
        specific="as G2R",
        imacs="IMACS_g; IMACS_r with IP-Adapter full (257 tokens)",
        reference_mass="the branch's share of the norm; between several pictures of one adapter",
    )
    projections: ClassVar[bool] = False
    reads_encoder: ClassVar[bool] = True

    def refuses(self, pipeline: Any, denoiser: nn.Module) -> str | None:
        if not self.layers(denoiser):
            return "no attn2 of it has an IP-Adapter's keys (to_k_ip): no IP-Adapter is loaded."
        if any("Joint" in type(m.processor).__name__ for m in self.layers(denoiser).values()):
            return "its adapter's keys stand beside the picture's own in joint attention (Stable Diffusion 3)."
        if any("motion_modules" in name for name, _ in denoiser.named_modules()):
            return "it makes videos with motion modules: which batch rows belong to which frame is not known here."
        return None

    def layers(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        modules = UNetCrossAttention().layers(denoiser)
        return {name: m for name, m in modules.items() if hasattr(m.processor, "to_k_ip")}

    def layout(self, product: Product) -> Layout | None:
        if product.call == 0:
            return None  # the text
        sample, text = product.arguments["sample"], product.arguments["encoder_hidden_states"]
        embeds = _embeds(product.arguments)
        masks = (product.arguments.get("cross_attention_kwargs") or {}).get("ip_adapter_masks")
        branches = _branches(product.module.processor, [e.shape[1] for e in embeds] or [1], masks)
        if product.call > len(branches):
            raise UnsupportedModel(
                f"{type(product.module.processor).__name__} in {product.layer!r} attends more than {1 + len(branches)} times, "
                "which no IP-Adapter processor of diffusers does; pass family= with one that knows it"
            )
        adapter, first, count, scale, mask = branches[product.call - 1]
        shown = first + count if scale else first  # a picture attended to but added 0 times is not looked at
        tokens = product.key_tokens // count
        if embeds:  # as many tokens as the image encoder gave: each has kept its place
            placed = embeds[adapter].shape[2:-1] == (tokens,) and not _resampled(product.arguments.get("self"), adapter)
        else:
            placed = self.reference_grid is not None or tokens == _FULL
        starts = {number: (number - first) * tokens for number in range(first, shown)}
        return Layout(
            generated=slice(0, product.query_tokens),
            generated_grid=level_grid(sample.shape[-2:], product.query_tokens),
            references={
                number: patch_reference(start, tokens, self.reference_grid)
                if placed
                else Reference(tokens=slice(start, start + tokens), grid=None)
                for number, start in starts.items()
            },
            conditional=product.once(_conditional, sample, text, *embeds) if self.guidance else every_row(sample),
            joint=shown - first > 1,
            branch_scale=scale if mask is None else scale * _at_tokens(mask, product.query_tokens),
        )


def patch_reference(start: int, tokens: int, grid: Grid | None) -> Reference:
    """One picture's patches among the keys from `start` on, less a class token; without `grid` a square, where that fits."""
    side = math.isqrt(tokens)
    h, w = grid or (side, side)
    extra = tokens - h * w
    if extra in (0, 1):
        return Reference(tokens=slice(start + extra, start + tokens), grid=(h, w))
    if grid is None:
        return Reference(tokens=slice(start, start + tokens), grid=None)
    raise UnsupportedModel(
        f"reference_grid={grid} has {h * w} tokens, the model has {tokens} a picture; pass the image encoder's own grid"
    )


def _embeds(arguments: Any) -> list[torch.Tensor]:
    """(batch, pictures, …) of each adapter; empty where the pictures' tokens come with the text's, as in training loops."""
    embeds = (arguments.get("added_cond_kwargs") or {}).get("image_embeds")
    if isinstance(embeds, torch.Tensor):  # the older form: one adapter, one picture
        return [embeds[:, None]]
    return list(embeds or ())


def _resampled(denoiser: Any, adapter: int) -> bool:
    """Whether the adapter's tokens come from learnt queries, which have no place in the picture. IDM-VTON hands them over as
    they come out of its projection, so that they can't be told from an image encoder's by their number."""
    projection = getattr(denoiser, "encoder_hid_proj", None)
    layers = getattr(projection, "image_projection_layers", None)
    own = projection if layers is None else layers[adapter] if adapter < len(layers) else None
    return isinstance(getattr(own, "latents", None), torch.Tensor)


_Branch = tuple[int, int, int, float, Any]  # adapter, number of its first picture, pictures, scale, mask or None


def _branches(processor: Any, pictures: Sequence[int], masks: Any) -> list[_Branch]:
    """Each product after the text's, in the processor's order."""
    several = isinstance(processor.to_k_ip, nn.ModuleList)  # else the adapter's own code: one, called at any scale
    scales = processor.scale if several else [processor.scale]
    found, first = [], 0
    for adapter, (scale, count) in enumerate(zip(scales, pictures, strict=False)):
        each = list(scale) if isinstance(scale, (list, tuple)) else [scale] * count
        if several and not any(each):
            pass
        elif masks is not None and masks[adapter] is not None:
            found += [(adapter, first + i, 1, float(each[i]), masks[adapter].flatten(0, -3)[i]) for i in range(count)]
        else:
            found.append((adapter, first, count, float(scale), None))
        first += count
    return found


def _at_tokens(mask: torch.Tensor, tokens: int) -> torch.Tensor:
    """(tokens, 1): how much of each generated token a picture's (height, width) mask lets through."""
    from diffusers.image_processor import IPAdapterMaskProcessor

    return IPAdapterMaskProcessor.downsample(mask[None], 1, tokens, 1)[0]  # as the processor does it


def _conditional(sample: torch.Tensor, *conditions: torch.Tensor) -> slice:
    """As `half_of_guidance`, which would take guidance in three parts for a batch of other pictures."""
    states = torch.cat([s.flatten(1) for s in conditions], dim=1)
    if len(sample) % 3 == 0:
        a, b, c = sample[:, :4].chunk(3)  # what InstructPix2Pix adds behind the latent differs
        _, second, third = states.chunk(3)
        if torch.equal(a, b) and torch.equal(b, c) and torch.equal(second, third):
            raise UnsupportedModel(
                "the batch holds each latent three times (perturbed-attention guidance, InstructPix2Pix); which third sees the "
                "reference is not known here. Trace a call without that guidance (pag_scale=0, guidance_scale=1)"
            )
    return half_of_guidance(sample, states, ("uncond", "cond"))
