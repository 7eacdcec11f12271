"""Cross-attention in latent diffusion code before diffusers: the original Paint-by-Example, DCI-VTON, StableVITON; and PASD.

The keys of `attn2` are the UNet's `context`, the reference encoder's tokens. StableVITON's zero cross-attention blocks
(`warp_flow_blks`) and PASD's pixel-aware cross-attention (`pixel_attentions`, `attn2_plus`) take theirs from a feature map of
the reference on the layer's own grid; the other `attn2` of those models read one token or text and are left out.
Most of these modules attend by einsum and softmax or by xformers, so queries and keys are what `to_q` and `to_k` give.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ..errors import UnsupportedModel
from ..grids import Grid
from .family import About, Layout, Product, Reference
from .latents import every_row, half_of_guidance, level_grid

_FEATURE_MAPS = {"warp_flow_blks", "pixel_attentions", "attn2_plus"}  # parts of the names of modules that read one


@dataclass(frozen=True, kw_only=True)
class LDMCrossAttention:
    """UNets called as `(x, timesteps, context)` with attention modules of `to_q`, `to_k` and `heads`; PASD's UNets."""

    modules: str | None = None
    """Shell pattern of the attention modules that read the reference, as "input_blocks.*.attn2"; by default the blocks that
    read a feature map where there are some, else every `attn2`."""
    reference_grid: Grid | Literal["layer"] | None = None
    """(height, width) of the reference tokens, "layer" for the layer's own. By default the layer's own for a feature map, else
    a square; with one class token before it where that fits."""
    conditional: Literal["first", "last"] = "last"
    """Which half of a guidance batch sees the reference."""
    conditional_forward: Literal[0, 1] | None = None
    """Which of two forwards with the same latent sees the reference where guidance runs the UNet twice; by default both are
    looked at, in StableVITON the first."""
    guidance: bool = True
    """False: every row of a batch is a picture of its own. By default a batch that holds each latent twice, under other
    conditions, is taken for classifier-free guidance: two references of one picture under one noise look just like it."""
    name: ClassVar[str] = "ldm_cross_attention"
    about: ClassVar[About] = About(
        models="latent diffusion code before diffusers (Paint-by-Example, DCI-VTON), StableVITON's zero cross-attention "
        "blocks, PASD's pixel-aware cross-attention",
        g2r="yes; undefined with one reference token (Paint-by-Example, DCI-VTON)",
        specific="as G2R",
        imacs="IMACS_g; IMACS_r as G2R",
    )
    projections: ClassVar[bool] = True

    def refuses(self, pipeline: Any, denoiser: nn.Module) -> str | None:
        if isinstance(getattr(getattr(denoiser, "model", None), "diffusion_model", None), nn.Module):
            return "the UNet is inside it: pass its model.diffusion_model to trace."
        found = self._found(denoiser)
        if not found:
            return "it has no attn2 of latent diffusion code (to_q, to_k and heads, no processor) and no pixel-aware attention."
        if any(_reads_features(name) for name in found):
            return None
        if not {"x", "context"} <= set(inspect.signature(type(denoiser).forward).parameters):
            return "its forward does not take x and context, as UNets of latent diffusion code do."
        encoder = getattr(pipeline, "cond_stage_model", None)
        if any(hasattr(encoder, name) for name in ("tokenizer", "max_length")) and self == LDMCrossAttention():
            return (
                "its cross-attention reads text (its cond_stage_model takes tokens), so no reference tokens exist. If it does "
                "read a reference, pass family=LDMCrossAttention(reference_grid=(h, w))."
            )
        return None

    def layers(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        found = self._found(denoiser)
        single = not any(".transformer_blocks.1." in name for name in found)
        return {_short(name) if single else name.removesuffix(".attn2"): m for name, m in found.items()}

    def layout(self, product: Product) -> Layout | None:
        wanted = self.conditional_forward
        if wanted is None and product.layer.startswith("warp_flow_blks."):
            wanted = 0
        # Not "forward > 0": at its second noise time PLMS also looks ahead, with another latent.
        if product.call > 0 or (wanted is not None and product.repeat != wanted):
            return None
        sample = self.latent(product.arguments)
        context = _argument(product.arguments, "context", "encoder_hidden_states")
        if context is None and self.modules is None and not _reads_features(product.layer):
            return None  # without a context, attn2 is self-attention
        order = ("uncond", "cond") if self.conditional == "last" else ("cond", "uncond")
        grid = level_grid(sample.shape[-2:], product.query_tokens)
        tokens, reference_grid = self._reference(product, grid, context)
        return Layout(
            generated=slice(0, product.query_tokens),
            generated_grid=grid,
            references={0: Reference(tokens=tokens, grid=reference_grid)},
            conditional=product.once(
                half_of_guidance, sample, context if isinstance(context, torch.Tensor) else sample, order
            )
            if self.guidance
            else every_row(sample),
        )

    def latent(self, arguments: Mapping[str, Any]) -> Any:
        """(B, C, H, W): what is denoised, or None."""
        return _argument(arguments, "x", "sample")

    def _found(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        """Full name, without what compilation adds → module."""
        named = {n.replace("_orig_mod.", "").removesuffix("._orig_mod"): m for n, m in denoiser.named_modules()}
        named = {n: m for n, m in named.items() if all(hasattr(m, part) for part in ("to_q", "to_k", "heads"))}
        if self.modules is not None:
            return {n: m for n, m in named.items() if fnmatch(n, self.modules)}
        cross = {n: m for n, m in named.items() if n.endswith((".attn2", ".attn2_plus"))}
        features = {n: m for n, m in cross.items() if _reads_features(n)}
        return features or {n: m for n, m in cross.items() if not hasattr(m, "processor")}

    def _reference(self, product: Product, grid: Grid, context: Any) -> tuple[slice, Grid | None]:
        count = product.key_tokens
        own = self.reference_grid
        # Keys that are not the context's, as many as the layer's own tokens, are those of a feature map.
        elsewhere = not isinstance(context, torch.Tensor) or context.shape[1] != count
        if own is None and (_reads_features(product.layer) or (elsewhere and count == product.query_tokens)):
            own = "layer"
        if own is None:
            sides = {first: math.isqrt(count - first) for first in (0, 1)}  # a class token comes first
            fits = [first for first, side in sides.items() if side > 1 and side * side == count - first]
            return (slice(fits[0], count), (sides[fits[0]],) * 2) if fits else (slice(0, count), None)
        h, w = grid if own == "layer" else own
        if count - h * w not in (0, 1):
            raise UnsupportedModel(
                f"attention module {product.layer!r} reads {count} reference tokens, a grid of {h}x{w} has {h * w}; pass "
                "family=LDMCrossAttention(reference_grid=(h, w)) with the reference's own grid, and modules= where other "
                "modules read something else"
            )
        return slice(count - h * w, count), (h, w)


def _reads_features(name: str) -> bool:
    return not _FEATURE_MAPS.isdisjoint(name.split("."))


def _short(name: str) -> str:
    return name.removesuffix(".attn2").removesuffix(".transformer_blocks.0")


def _argument(arguments: Mapping[str, Any], *names: str) -> Any:
    return next((arguments[name] for name in names if arguments.get(name) is not None), None)
