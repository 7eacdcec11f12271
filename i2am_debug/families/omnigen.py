"""OmniGen: the input images' latents stand inside the prompt, in place of its image tags.

Every layer has one attention module and one product over [padding · prompt with input images · time · generated]. The
spans of the input images are read off `input_image_sizes` (batch row → spans), their grids off `input_img_latents`, one
for each span in the same order. The model's mask is causal in the prompt, but generated tokens see all of it except the
padding. Reference numbers follow the image tags in the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..errors import UnsupportedModel
from ..grids import Grid
from .family import About, Layout, Product, Reference
from .latents import patch_grid

_DENOISER, _SUFFIX = "OmniGenTransformer2DModel", ".self_attn"


@dataclass(frozen=True, kw_only=True)
class OmniGen:
    """`OmniGenTransformer2DModel` with input images in its prompt."""

    name: ClassVar[str] = "omnigen"
    about: ClassVar[About] = About(models="OmniGen (several references)", reference_mass="yes")
    projections: ClassVar[bool] = False

    def refuses(self, pipeline: Any, denoiser: nn.Module) -> str | None:
        if any(c.__name__ == _DENOISER for c in type(denoiser).__mro__):
            return None
        return f"it is no {_DENOISER}."

    def layers(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        found = {n.replace("_orig_mod.", ""): m for n, m in denoiser.named_modules() if n.endswith(_SUFFIX)}
        return {n.removesuffix(_SUFFIX): m for n, m in found.items()}

    def layout(self, product: Product) -> Layout | None:
        arguments = product.arguments
        sample, spans = arguments["hidden_states"], arguments["input_image_sizes"]
        if product.forward > 0 or not any((spans or {}).values()):  # the pipeline runs all conditions in one batch
            return None
        start = arguments["input_ids"].shape[1] + 1  # the time token comes between prompt and generated picture
        grid, patch = patch_grid(sample.shape[-2:], product.query_tokens - start)
        latents = iter(arguments["input_img_latents"])
        references = {
            row: [(a, b, _grid(next(latents).shape[-2:], patch)) for a, b in of_row] for row, of_row in spans.items()
        }
        conditional = _first_with_images(sample, {row for row, of_row in references.items() if of_row})
        first = references[conditional.start]
        if any(references[row] != first for row in range(conditional.start, conditional.stop)):
            raise UnsupportedModel(
                "the prompts of one OmniGen batch have their input images in different places or sizes; run one prompt at "
                "a time (batch_size=1; several images of one prompt are fine)"
            )
        return Layout(
            generated=slice(start, product.query_tokens),
            generated_grid=grid,
            references={i: Reference(tokens=slice(a, b), grid=its) for i, (a, b, its) in enumerate(first)},
            conditional=conditional,
            joint=True,
        )


def _grid(latent: tuple[int, ...], patch: int) -> Grid:
    return latent[0] // patch, latent[1] // patch


def _first_with_images(sample: torch.Tensor, seen: set[int]) -> slice:
    """The first block of rows that holds input images: under guidance the batch is [full, without any, images alone]."""
    for blocks in (1, 2, 3):
        size, odd = divmod(len(sample), blocks)
        if odd or any(not torch.equal(sample[:size], part) for part in sample.split(size)):
            continue
        full = [b for b in range(blocks) if seen >= set(range(b * size, (b + 1) * size))]
        if full and len(full) * size == len(seen):
            return slice(full[0] * size, (full[0] + 1) * size)
    raise UnsupportedModel(
        f"of {len(sample)} rows in the OmniGen batch only {sorted(seen)} have input images; give each prompt of a batch "
        "input images, or run one prompt at a time"
    )
