"""UNets whose cross-attention reads reference tokens: Paint-by-Example, image variation, patch-token inpainting and try-on.

Every `attn2` takes its keys from `encoder_hidden_states`, which are the reference encoder's tokens and nothing else.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..errors import UnsupportedModel
from ..grids import Grid
from .family import About, Layout, Product, Reference
from .latents import every_row, half_of_guidance, level_grid

_SUFFIX = ".attn2"


@dataclass(frozen=True, kw_only=True)
class UNetCrossAttention:
    """diffusers UNets (`UNet2DConditionModel` and its like) with reference tokens in `encoder_hidden_states`."""

    reference_grid: Grid | None = None
    """(height, width) of the reference tokens; by default a square, with one class token before it where that fits."""
    reference_tokens: slice | None = None
    """Which of the key tokens belong to the reference; by default all, less a class token."""
    guidance: bool = True
    """False: every row of a batch is a picture of its own. By default a batch that holds each latent twice, under other
    conditions, is taken for classifier-free guidance: two references of one picture under one noise look just like it."""
    name: ClassVar[str] = "unet_cross_attention"
    about: ClassVar[About] = About(
        models="UNets whose cross-attention reads reference tokens: Paint-by-Example, image variation, try-on and inpainting "
        "by example with patch tokens",
        g2r="yes; undefined with one reference token (Paint-by-Example, image variation)",
        specific="as G2R",
        imacs="IMACS_g; IMACS_r as G2R",
    )
    projections: ClassVar[bool] = True
    reads_encoder: ClassVar[bool] = True

    def refuses(self, pipeline: Any, denoiser: nn.Module) -> str | None:
        if not self.layers(denoiser):
            return "it has no cross-attention module named attn2."
        parameters = inspect.signature(type(denoiser).forward).parameters
        wrapped = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
        if not wrapped and not {"sample", "encoder_hidden_states"} <= parameters.keys():
            return "its forward does not take sample and encoder_hidden_states, as the UNets of diffusers do."
        components = getattr(pipeline, "components", {})
        text_only = components.get("text_encoder") is not None and components.get("image_encoder") is None
        if text_only and not self._set_by_hand():
            return (
                "its cross-attention reads text (there is a text_encoder and no image_encoder), so no reference tokens "
                "exist: a picture that comes in by channel concatenation leaves no attention to look at. If the "
                "cross-attention does read a reference, pass family=UNetCrossAttention(reference_grid=(h, w))."
            )
        return None

    def layers(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        found = {n: m for n, m in denoiser.named_modules() if n.endswith(_SUFFIX) and hasattr(m, "processor")}
        found = {n.replace("_orig_mod.", ""): m for n, m in found.items()}
        single = not any(".transformer_blocks.1." in n for n in found)
        return {_short(n) if single else n.removesuffix(_SUFFIX): m for n, m in found.items()}

    def layout(self, product: Product) -> Layout | None:
        if product.call > 0:
            return None
        sample, states = product.arguments["sample"], product.arguments["encoder_hidden_states"]
        tokens, grid = self._reference(product.key_tokens)
        return Layout(
            generated=slice(0, product.query_tokens),
            generated_grid=level_grid(sample.shape[-2:], product.query_tokens),
            references={0: Reference(tokens=tokens, grid=grid)},
            conditional=product.once(half_of_guidance, sample, states, ("uncond", "cond"))
            if self.guidance
            else every_row(sample),
        )

    def _set_by_hand(self) -> bool:
        return self.reference_grid is not None or self.reference_tokens is not None

    def _reference(self, key_tokens: int) -> tuple[slice, Grid | None]:
        tokens = self.reference_tokens or slice(0, key_tokens)
        count = len(range(*tokens.indices(key_tokens)))
        if self.reference_grid is not None:
            h, w = self.reference_grid
            if count == h * w + 1 and self.reference_tokens is None:
                return slice(1, key_tokens), (h, w)  # class token first
            if count != h * w:
                raise UnsupportedModel(
                    f"reference_grid={self.reference_grid} has {h * w} tokens, the model's cross-attention reads {count}; "
                    "pass the encoder's own grid, or reference_tokens=slice(…) to say which of them are patches"
                )
            return tokens, (h, w)
        side = math.isqrt(count)
        if count > 1 and side * side == count:
            return tokens, (side, side)
        side = math.isqrt(count - 1)
        if count > 2 and side * side == count - 1 and self.reference_tokens is None:
            return slice(1, key_tokens), (side, side)
        return tokens, None


def _short(name: str) -> str:
    return name.removesuffix(_SUFFIX).removesuffix(".transformer_blocks.0")
