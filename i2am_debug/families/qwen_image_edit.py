"""Qwen-Image-Edit, Edit-Plus, Edit-Inpaint and Layered: the reference's latents are appended to the generated picture's.

Every block has one attention module and one product over [text · generated · reference 0 · reference 1 …]. The pictures'
sizes in tokens are read off `img_shapes`: the generated picture first, then the references; with `additional_t_cond`
(Layered) all but the last are generated. The text encoder sees the references too: what comes in through the text tokens
is not part of the maps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from torch import nn

from ..errors import UnsupportedModel
from .family import About, Layout, Product, Reference

_DENOISER, _SUFFIX = "QwenImageTransformer2DModel", ".attn"
_WITHOUT_REFERENCE = {
    "QwenImagePipeline",
    "QwenImageImg2ImgPipeline",
    "QwenImageInpaintPipeline",
    "QwenImageControlNetPipeline",
    "QwenImageControlNetInpaintPipeline",
}


@dataclass(frozen=True, kw_only=True)
class QwenImageEdit:
    """`QwenImageTransformer2DModel` with reference latents in its sequence."""

    generated_picture: int = 0
    """Which of the generated pictures is looked at. Only Layered makes several: 0 is the whole, 1 the first layer."""
    name: ClassVar[str] = "qwen_image_edit"
    about: ClassVar[About] = About(
        models="Qwen-Image-Edit, Edit-Plus (several references), Edit-Inpaint, Layered", reference_mass="yes"
    )
    projections: ClassVar[bool] = False

    def refuses(self, pipeline: Any, denoiser: nn.Module) -> str | None:
        if not any(c.__name__ == _DENOISER for c in type(denoiser).__mro__):
            return f"it is no {_DENOISER}."
        if any(c.__name__ in _WITHOUT_REFERENCE for c in type(pipeline).__mro__):
            return (
                f"{type(pipeline).__name__} gives the transformer the generated picture alone, so no reference tokens exist; "
                "QwenImageEditPipeline and QwenImageEditPlusPipeline append the reference's."
            )
        return None

    def layers(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        found = {n.replace("_orig_mod.", ""): m for n, m in denoiser.named_modules() if n.endswith(_SUFFIX)}
        return {n.removesuffix(_SUFFIX): m for n, m in found.items() if hasattr(m, "add_k_proj")}

    def layout(self, product: Product) -> Layout | None:
        if product.forward > 0:  # the pipelines run the negative prompt second, at the same noise time
            return None
        arguments = product.arguments
        shapes = arguments["img_shapes"][0]  # the model takes every row to be like the first
        shapes = shapes if isinstance(shapes[0], Sequence) else [shapes]
        made = len(shapes) - 1 if arguments.get("additional_t_cond") is not None else 1
        if len(shapes) == made:
            return None
        if not 0 <= self.generated_picture < made:
            raise UnsupportedModel(
                f"generated_picture={self.generated_picture}, the model generates {made} (numbers 0 to {made - 1}); "
                f"pass family=QwenImageEdit(generated_picture=…) with one of these"
            )
        text, pictures = arguments["encoder_hidden_states"].shape[1], [math.prod(s) for s in shapes]
        if product.query_tokens != text + sum(pictures) or any(frames != 1 for frames, _, _ in shapes):
            raise UnsupportedModel(
                f"attention module {product.layer!r} has {product.query_tokens} tokens, expected {text} of text and "
                f"pictures of one frame each with (frames, height, width) {[tuple(s) for s in shapes]}; look at the model "
                "without context parallelism"
            )
        spans = [slice(a, b) for a, b in pairwise(accumulate(pictures, initial=text))]
        grids = [(height, width) for _, height, width in shapes]
        return Layout(
            generated=spans[self.generated_picture],
            generated_grid=grids[self.generated_picture],
            references={
                i: Reference(tokens=span, grid=grid)
                for i, (span, grid) in enumerate(zip(spans[made:], grids[made:], strict=True))
            },
            conditional=slice(0, len(arguments["hidden_states"])),
            joint=True,
        )

    def reference_latents(self, arguments: Mapping[str, Any]) -> torch.Tensor | None:
        """(B, tokens, channels) of reference 0 in the denoiser's input; None without one."""
        shapes = arguments["img_shapes"][0]
        if not isinstance(shapes[0], Sequence) or arguments.get("additional_t_cond") is not None or len(shapes) < 2:
            return None  # Layered makes several pictures at once: the truth of one says nothing of the others
        first, count = math.prod(shapes[0]), math.prod(shapes[1])
        return arguments["hidden_states"][:, first : first + count]
