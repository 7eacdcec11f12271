"""Flux Kontext: one joint sequence [text · generated · reference] in double and single blocks.

Read off `img_ids`, the position that each picture token has: column 0 numbers the picture (0 generated, 1 reference), columns 1
and 2 are its row and column. The number of text tokens is that of `encoder_hidden_states`. The same transformer without a
reference (plain Flux) has the picture 0 only; then no product has a layout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..errors import UnsupportedModel
from ..grids import Grid
from .family import About, Layout, Product, Reference

_BLOCK = re.compile(r"((?:single_)?transformer_blocks\.\d+)\.attn$")


@dataclass(frozen=True, kw_only=True)
class FluxKontext:
    """`FluxTransformer2DModel` with reference tokens after the generated ones: Flux Kontext, Kontext inpainting."""

    name: ClassVar[str] = "flux_kontext"
    about: ClassVar[About] = About(models="Flux Kontext, Kontext inpainting", reference_mass="yes")
    projections: ClassVar[bool] = False

    def refuses(self, pipeline: Any, denoiser: nn.Module) -> str | None:
        transformer = find_transformer(denoiser, "FluxTransformer2DModel")
        if transformer is None:
            return "the denoiser is no FluxTransformer2DModel."
        read, written = transformer.config.in_channels, transformer.out_channels
        if read != written:
            return (
                f"its transformer reads {read} channels and writes {written}: a picture comes in by channel concatenation "
                "(Flux Fill, Flux Control), which leaves no reference tokens to look at."
            )
        kind = type(pipeline)
        if "Kontext" in kind.__name__:
            return None
        if pipeline is not denoiser and kind.__module__.startswith("diffusers."):
            return f"{kind.__name__} puts no reference picture into the sequence; FluxKontextPipeline does."
        if getattr(transformer, "encoder_hid_proj", None) is not None:
            return (
                "an IP-Adapter is loaded, whose tokens are not in the joint sequence; if a reference is, pass "
                "family=FluxKontext()."
            )
        return None

    def layers(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        return joint_attention(denoiser)

    def layout(self, product: Product) -> Layout | None:
        if product.forward > 0:
            return None  # true classifier-free guidance: the second forward has the negative prompt
        pictures = pictures_in(product)
        return joint_layout(product, pictures, [pictures[number] for number in sorted(pictures) if number != 0])

    def reference_latents(self, arguments: Mapping[str, Any]) -> torch.Tensor | None:
        """(B, tokens, channels) of the reference in the denoiser's input; None without one."""
        pictures = pictures_of(arguments)
        return latents_of(arguments, [pictures[number] for number in sorted(pictures) if number != 0])


Picture = tuple[int, int, Grid | None]
"""First key, number of tokens, (height, width)."""


def pictures_of(arguments: Mapping[str, Any]) -> dict[int, Picture]:
    """Number of the picture → where it lies among the keys [text · pictures], in their order."""
    return _pictures(arguments["img_ids"], arguments["encoder_hidden_states"].shape[1])


def _pictures(ids: torch.Tensor, text: int) -> dict[int, Picture]:
    """From the tokens' positions (tokens, 3) and the number of tokens of text."""
    ids = ids[0] if ids.ndim == 3 else ids  # as the transformers themselves do
    numbers, counts = (found.tolist() for found in torch.unique_consecutive(ids[:, 0], return_counts=True))
    if len(set(numbers)) < len(numbers):
        raise UnsupportedModel(
            f"img_ids numbers the pictures {[int(n) for n in numbers]}, so one of them lies in several pieces. Write a family "
            "of your own that knows them."
        )
    starts = [text + sum(counts[:i]) for i in range(len(counts))]
    grids = [_raster(positions) for positions in ids[:, 1:3].split(counts)]
    return {int(n): (a, count, grid) for n, a, count, grid in zip(numbers, starts, counts, grids, strict=True)}


def pictures_in(product: Product) -> dict[int, Picture]:
    """The same in a product's forward call, read once a trace."""
    arguments = product.arguments
    return product.once(_pictures, arguments["img_ids"], arguments["encoder_hidden_states"].shape[1])


def latents_of(arguments: Mapping[str, Any], references: Sequence[Picture]) -> torch.Tensor | None:
    """(B, tokens, channels) of the first reference in `hidden_states`, which holds the pictures without the text."""
    if not references:
        return None
    start, count, _ = references[0]
    first = start - arguments["encoder_hidden_states"].shape[1]
    return arguments["hidden_states"][:, first : first + count]


def joint_layout(product: Product, pictures: Mapping[int, Picture], references: Sequence[Picture]) -> Layout | None:
    """Where things sit among the keys [text · pictures]; None without references, and for a product of other keys.

    Keys that have no query, as in a cache, lie before the generated picture.

    Raises:
        UnsupportedModel: the generated picture, number 0, is no whole rectangle.
    """
    if not references or product.key_tokens != max(start + count for start, count, _ in pictures.values()):
        return None
    start, count, grid = pictures.get(0, (0, 0, None))
    if grid is None:
        raise UnsupportedModel(
            f"of the pictures {list(pictures)} in img_ids, 0 is the generated one and its {count} tokens must fill a rectangle "
            "row by row, which they don't. Write a family of your own that knows their grid."
        )
    first = start - (product.key_tokens - product.query_tokens)
    return Layout(
        generated=slice(first, first + count),
        generated_grid=grid,
        references={i: Reference(tokens=slice(a, a + n), grid=own) for i, (a, n, own) in enumerate(references)},
        conditional=slice(0, len(product.arguments["hidden_states"])),
        joint=True,
    )


def _raster(positions: torch.Tensor) -> Grid | None:
    """(height, width) of positions (n, 2) that fill a rectangle row by row, else None."""
    rows, columns = positions[:, 0].unique(), positions[:, 1].unique()
    whole = len(rows) * len(columns) == len(positions)
    return (len(rows), len(columns)) if whole and torch.equal(torch.cartesian_prod(rows, columns), positions) else None


def find_transformer(denoiser: nn.Module, name: str) -> Any:
    """The module of the class `name` or one derived from it, also inside wrappers (peft, DDP); None when there is none."""
    return next((m for m in denoiser.modules() if any(c.__name__ == name for c in type(m).__mro__)), None)


def joint_attention(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Block → its attention, of double and single blocks; the names hold no wrapper's prefix."""
    found = {}
    for name, module in denoiser.named_modules():
        block = _BLOCK.search(name.replace("._orig_mod", ""))
        if block and hasattr(module, "processor"):
            found[block[1]] = module
    return found
