"""Bria FIBO Edit: one joint sequence [text · generated · reference 0 · reference 1 …] in double and single blocks.

Read off `img_ids`, the position that each picture token has: column 0 numbers the picture (0 generated, then the references,
each of its own size), columns 1 and 2 are its row and column. Under classifier-free guidance one forward holds every image
twice, with the negative prompt first. The same transformer without a reference has the picture 0 only; then no product has a
layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from .family import About, Layout, Product
from .flux_kontext import find_transformer, joint_attention, joint_layout, latents_of, pictures_in, pictures_of
from .latents import half_of_guidance

_DENOISER = "BriaFiboTransformer2DModel"


@dataclass(frozen=True, kw_only=True)
class BriaFiboEdit:
    """`BriaFiboTransformer2DModel` with reference tokens after the generated ones."""

    guidance: bool = True
    """False: every row of a batch is a picture of its own. By default a batch that holds each latent twice, under other
    conditions, is taken for classifier-free guidance: two references of one picture under one noise look just like it."""
    name: ClassVar[str] = "bria_fibo_edit"
    about: ClassVar[About] = About(models="Bria FIBO Edit (several references)", reference_mass="yes")
    projections: ClassVar[bool] = False

    def refuses(self, pipeline: Any, denoiser: nn.Module) -> str | None:
        if find_transformer(denoiser, _DENOISER) is None:
            return f"the denoiser is no {_DENOISER}."
        if type(pipeline).__name__ == "BriaFiboPipeline":
            return "BriaFiboPipeline puts no reference picture into the sequence; BriaFiboEditPipeline does."
        return None

    def layers(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        return joint_attention(denoiser)

    def layout(self, product: Product) -> Layout | None:
        pictures = pictures_in(product)
        references = [pictures[number] for number in sorted(pictures) if number != 0]
        found = joint_layout(product, pictures, references)
        if found is None or not self.guidance:
            return found
        # The sample is [generated · reference] of every image, twice under guidance; only the text differs.
        sample, text = (product.arguments[name] for name in ("hidden_states", "encoder_hidden_states"))
        return replace(found, conditional=product.once(half_of_guidance, sample, text, ("uncond", "cond")))

    def reference_latents(self, arguments: Mapping[str, Any]) -> torch.Tensor | None:
        """(B, tokens, channels) of reference 0 in the denoiser's input; None without one."""
        pictures = pictures_of(arguments)
        return latents_of(arguments, [pictures[number] for number in sorted(pictures) if number != 0])
