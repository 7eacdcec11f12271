"""Flux 2 and Flux 2 Klein: one joint sequence [text · generated · reference 1 · reference 2 …] in double and single blocks.

Read off `img_ids`: column 0 is 0 for the generated picture and 10, 20, … for the references, columns 1 and 2 are row and
column. Klein with a key-value cache has the references' keys before the generated ones, [text · references · generated], and
no queries of theirs beside the others': its first forward ("extract") attends a second time, the references to themselves.
Later forwards ("cached") have the references neither in the sequence nor in `img_ids`, so what the first one said is kept.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from ..errors import UnsupportedModel
from ..grids import Grid
from .family import About, Layout, Product
from .flux_kontext import Picture, find_transformer, joint_attention, joint_layout, latents_of, pictures_of

# Where the pictures lie in the first forward. Its text tokens are the same tensor in all forwards of a pipeline call, and a new
# one in every call, so what is kept here lives as long as the call.
_EXTRACTED: MutableMapping[torch.Tensor, dict[int, Picture]] = WeakTensorKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class Flux2:
    """`Flux2Transformer2DModel` with one or several references."""

    order: tuple[int, ...] | None = None
    """The references' numbers in `img_ids` in the order in which they become references 0, 1, …; others are left out. By
    default all, ascending. Klein's inpainting calls the picture to be inpainted 10 and its `image_reference` 20."""
    cached_grids: tuple[Grid, ...] | None = None
    """(height, width) of the references in a key-value cache; needed only where a plan skips the first sampler step."""
    name: ClassVar[str] = "flux2"
    about: ClassVar[About] = About(models="Flux 2, Flux 2 Klein, also with key-value cache", reference_mass="yes")
    projections: ClassVar[bool] = False

    def refuses(self, pipeline: Any, denoiser: nn.Module) -> str | None:
        if find_transformer(denoiser, "Flux2Transformer2DModel") is None:
            return "the denoiser is no Flux2Transformer2DModel."
        if self.order is None and "image_reference" in inspect.signature(type(pipeline).__call__).parameters:
            return (
                f"{type(pipeline).__name__} also puts the picture to be inpainted into the sequence, as number 10 before its "
                "image_reference, 20; say which of them is reference 0: family=Flux2(order=(20, 10))."
            )
        return None

    def layers(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        return joint_attention(denoiser)

    def layout(self, product: Product) -> Layout | None:
        if product.forward > 0:
            return None  # classifier-free guidance (Klein): the second forward has the empty prompt
        pictures = self._pictures(product.arguments)
        return joint_layout(product, pictures, self._references(pictures))

    def reference_latents(self, arguments: Mapping[str, Any]) -> torch.Tensor | None:
        """(B, tokens, channels) of reference 0 in the denoiser's input; None without one."""
        return latents_of(arguments, self._references(pictures_of(arguments)))

    def _references(self, pictures: Mapping[int, Picture]) -> list[Picture]:
        order = sorted(pictures) if self.order is None else self.order
        return [pictures[n] for n in order if n in pictures and n != 0]

    def _pictures(self, arguments: Mapping[str, Any]) -> dict[int, Picture]:
        """Where the pictures lie among the keys, also those that are in the cache alone."""
        text, pictures = arguments["encoder_hidden_states"], pictures_of(arguments)
        mode, cache = arguments.get("kv_cache_mode"), arguments.get("kv_cache")
        if mode == "extract":
            _EXTRACTED[text] = pictures
        if mode != "cached" or cache is None or 0 not in pictures:
            return pictures
        if text in _EXTRACTED:
            return _EXTRACTED[text]
        start, count, grid = pictures[0]
        cached: dict[int, Picture] = {}
        for i, reference in enumerate(self.cached_grids or ()):
            cached[10 + 10 * i] = start, prod(reference), reference
            start += prod(reference)
        given = start - pictures[0][0]
        if given != cache.num_ref_tokens:
            raise UnsupportedModel(
                f"the cache holds the keys of {cache.num_ref_tokens} reference tokens, whose positions only the first forward "
                f"has, and it was not looked at; cached_grids={self.cached_grids} has {given} tokens. Look at every sampler "
                "step, CapturePlan(sampler_steps=None), or pass family=Flux2(cached_grids=((h, w), …))."
            )
        return {**cached, 0: (start, count, grid)}
