"""LongCat-Image-Edit: one joint sequence [text · generated · reference] in double and single blocks.

Read off `img_ids`, the position that each picture token has: column 0 is the modality (1 generated, 2 reference; 0 is the
text's), columns 1 and 2 are row and column, counted from the number of text tokens. The text encoder sees the reference too:
what comes in through the text tokens is not part of the maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..errors import UnsupportedModel
from .family import About, Layout, Product
from .flux_kontext import find_transformer, joint_attention, joint_layout, latents_of, pictures_in, pictures_of

_DENOISER, _GENERATED = "LongCatImageTransformer2DModel", 1


@dataclass(frozen=True, kw_only=True)
class LongCatImageEdit:
    """`LongCatImageTransformer2DModel` with reference tokens after the generated ones."""

    name: ClassVar[str] = "longcat_edit"
    about: ClassVar[About] = About(models="LongCat-Image-Edit", reference_mass="yes")
    projections: ClassVar[bool] = False

    def refuses(self, pipeline: Any, denoiser: nn.Module) -> str | None:
        if find_transformer(denoiser, _DENOISER) is None:
            return f"the denoiser is no {_DENOISER}."
        if type(pipeline).__name__ == "LongCatImagePipeline":
            return "LongCatImagePipeline puts no reference picture into the sequence; LongCatImageEditPipeline does."
        return None

    def layers(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        return joint_attention(denoiser)

    def layout(self, product: Product) -> Layout | None:
        if product.forward > 0:
            return None  # classifier-free guidance: the second forward has the negative prompt
        pictures = pictures_in(product)
        references = [pictures[number] for number in sorted(pictures) if number > _GENERATED]
        _, count, grid = pictures.get(_GENERATED, (0, 0, None))
        if references and grid is None:
            raise UnsupportedModel(
                f"of the modalities {list(pictures)} in img_ids, {_GENERATED} is the generated picture and its {count} tokens "
                "must fill a rectangle row by row, which they don't. Write a family of your own that knows their grid."
            )
        numbered = {number - _GENERATED: picture for number, picture in pictures.items()}
        return joint_layout(product, numbered, references)

    def reference_latents(self, arguments: Mapping[str, Any]) -> torch.Tensor | None:
        """(B, tokens, channels) of the reference in the denoiser's input; None without one."""
        pictures = pictures_of(arguments)
        return latents_of(arguments, [pictures[number] for number in sorted(pictures) if number > _GENERATED])
