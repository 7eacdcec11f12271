"""UNets whose self-attention (`attn1`) reads the reference: its features behind the layer's own tokens, or the two pictures in
one latent.

Every UNet has self-attention, so most of these models can't be told from others: choose the family by hand.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ..errors import UnsupportedModel
from ..grids import Grid
from .family import About, Layout, Product, Reference, Tokens
from .latents import level_grid

_REFERENCE_NETWORKS = ("referencenet", "reference_unet")
"""Under which names a pipeline has, or its call takes, the network that makes the reference's features (MimicBrush)."""
_FEATURE_ARGUMENTS = {"garment_features": "last", "spatial_attn_inputs": "first"}
"""Arguments of a UNet's forward that hand it a reference's features (IDM-VTON, OOTDiffusion) → the part of a guidance batch
that sees it."""


@dataclass(frozen=True, kw_only=True)
class KeyConcatenation:
    """Reference features behind a layer's own tokens, in its keys or in queries and keys: IDM-VTON, OOTDiffusion, MimicBrush.

    Recognised by what IDM-VTON's and OOTDiffusion's UNets take, by a pipeline's reference network, and in a denoiser by itself
    by the lists (`bank`) that MimicBrush and others keep reference features in from their first call on. Products without such
    features are passed over; MimicBrush averages what the two kinds give, and the reference mass is that of the products with
    them.
    """

    references: int = 1
    """How many reference pictures follow the layer's own tokens. Needed only where the queries are as many as the keys. With 3
    of the generated picture's size every layer must have them: a coarse layer then has as many tokens as a finer one."""
    reference_latent: Grid | None = None
    """(height, width) of a reference's latent, halved from level to level; by default the generated picture's."""
    guidance_parts: int | None = None
    """How often guidance puts each image into the batch, 1 without guidance; by default found from what is repeated in it."""
    conditional: Literal["first", "last"] | None = None
    """Which of these parts sees the reference; by default the last, in OOTDiffusion the first."""
    name: ClassVar[str] = "key_concatenation"
    about: ClassVar[About] = About(
        models="reference features concatenated to self-attention's keys: IDM-VTON, OOTDiffusion, MimicBrush, reference-only",
        reference_mass="yes",
    )
    projections: ClassVar[bool] = True

    def refuses(self, pipeline: Any, denoiser: nn.Module) -> str | None:
        if not self.layers(denoiser):
            return "it has no self-attention module named attn1."
        takes = inspect.signature(type(denoiser).forward).parameters
        if not _FEATURE_ARGUMENTS.keys().isdisjoint(takes):
            return None
        if _has_reference_network(pipeline):
            return None
        if self.shows_in_a_call(denoiser):
            return None
        return (
            "nothing in it says that reference features are concatenated to its self-attention's keys; if they are, pass "
            "family=KeyConcatenation()."
        )

    def shows_in_a_call(self, denoiser: nn.Module) -> bool:
        """Whether it has lists for reference features: MimicBrush's pipeline puts them there when it is first called."""
        return any(isinstance(vars(module).get("bank"), list) for module in denoiser.modules())

    def layers(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        return _self_attention(denoiser)

    def layout(self, product: Product) -> Layout | None:
        sample = _sample(product)
        found = None if product.call else self._found(product, sample)
        if found is None:
            return None
        own, reference, count = found
        first, tokens = math.prod(own), math.prod(reference)
        given = next((n for n in _FEATURE_ARGUMENTS if product.arguments.get(n) is not None), "")
        conditions = [product.arguments.get("encoder_hidden_states"), *product.arguments.get(given, ())]
        return Layout(
            generated=slice(0, first),
            generated_grid=own,
            references={
                n: Reference(tokens=slice(first + n * tokens, first + (n + 1) * tokens), grid=reference)
                for n in range(count)
            },
            conditional=_conditional_rows(
                sample, conditions, self.guidance_parts, self.conditional or _FEATURE_ARGUMENTS.get(given, "last")
            ),
            joint=True,
        )

    def _found(self, product: Product, sample: torch.Tensor) -> tuple[Grid, Grid, int] | None:
        """Grid of the layer's own tokens, of a reference's, and number of references; None where there are none."""
        queries, keys = product.query_tokens, product.key_tokens
        latent: Grid = tuple(sample.shape[-2:])
        levels = list(zip(_halved(latent), _halved(self.reference_latent or latent), strict=False))
        for own, reference in levels:
            count, rest = divmod(keys - math.prod(own), math.prod(reference))
            if queries == math.prod(own) and count > 0 and not rest:
                return own, reference, count
            if queries == keys and count == self.references and not rest:
                return own, reference, count
        if queries == keys and any(queries == math.prod(own) for own, _ in levels):
            return None
        raise UnsupportedModel(
            f"attention module {product.layer!r} has {queries} queries and {keys} keys, which fits no level of a "
            f"{latent[0]}x{latent[1]} latent followed by {self.references} of {' x '.join(map(str, levels[0][1]))}; pass "
            "family=KeyConcatenation(references=…, reference_latent=(height, width)) with the number and size of the "
            "references' latents"
        )


@dataclass(frozen=True, kw_only=True)
class SpatialConcatenation:
    """Generated picture and reference side by side in one latent, the generated first: CatVTON (one above the other),
    DreamLite (left and right).

    Recognised by CatVTON's skipped cross-attention and by DreamLite's own UNet class.
    """

    axis: Literal["height", "width"] | None = None
    """The side of the latent along which the two follow each other; by default the width in DreamLite, else the height."""
    guidance_parts: int | None = None
    """How often guidance puts each image into the batch, 1 without guidance; by default found from what is repeated in it."""
    conditional: Literal["first", "last"] = "last"
    """Which of these parts sees the reference."""
    name: ClassVar[str] = "spatial_concatenation"
    about: ClassVar[About] = About(
        models="generated picture and reference in one latent: CatVTON (along the height), DreamLite (along the width)",
        reference_mass="yes",
    )
    projections: ClassVar[bool] = False  # DreamLite normalises queries and keys

    def refuses(self, pipeline: Any, denoiser: nn.Module) -> str | None:
        if not self.layers(denoiser):
            return "it has no self-attention module named attn1."
        if any(c.__name__ == "DreamLiteUNetModel" for c in type(denoiser).__mro__):
            return None
        cross = [m for n, m in denoiser.named_modules() if n.endswith(".attn2") and hasattr(m, "processor")]
        skipped = [type(m.processor).__name__ == "SkipAttnProcessor" for m in cross]
        if skipped and all(skipped):
            return None
        return (
            "nothing in it says that generated picture and reference share one latent; if they do, pass "
            'family=SpatialConcatenation(axis="height") or axis="width".'
        )

    def layers(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        return _self_attention(denoiser)

    def layout(self, product: Product) -> Layout | None:
        sample = _sample(product)
        if product.call > 0 or product.key_tokens != product.query_tokens:
            return None
        grid = level_grid(sample.shape[-2:], product.query_tokens)
        dreamlite = type(getattr(product.module, "processor", None)).__name__.startswith("DreamLite")
        axis = self.axis or ("width" if dreamlite else "height")
        dim = ("height", "width").index(axis)
        if grid[dim] % 2 or sample.shape[dim - 2] % 2:
            raise UnsupportedModel(
                f"attention module {product.layer!r} works on a grid of {grid[0]}x{grid[1]}, which can't be halved along its "
                f"{axis}: a token there belongs to both pictures. Leave the layer out with CapturePlan(exclude=(…)), take "
                f"pictures of another {axis}, or pass SpatialConcatenation(axis=…) if they follow each other the other way"
            )
        own, other = sample.chunk(2, dim - 2)
        generated, reference = _halves(grid, dim, sample.device)
        half = (grid[0] // 2, grid[1]) if dim == 0 else (grid[0], grid[1] // 2)
        rows = _conditional_rows(
            own, [other, product.arguments.get("encoder_hidden_states")], self.guidance_parts, self.conditional
        )
        if not bool(other[rows].any()):
            return None  # DreamLite without a picture: that half is zeros
        return Layout(
            generated=generated,
            generated_grid=half,
            references={0: Reference(tokens=reference, grid=half)},
            conditional=rows,
            joint=True,
        )


def _has_reference_network(pipeline: Any) -> bool:
    takes = inspect.signature(type(pipeline).__call__).parameters if callable(pipeline) else {}
    return any(n in takes or isinstance(getattr(pipeline, n, None), nn.Module) for n in _REFERENCE_NETWORKS)


def _sample(product: Product) -> torch.Tensor:
    sample = product.arguments.get("sample")
    if isinstance(sample, torch.Tensor) and sample.ndim == 4:
        return sample
    raise UnsupportedModel(
        f"the denoiser of {product.layer!r} was not called with a sample of (batch, channels, height, width); its grids are "
        "not known, write a family of your own for it"
    )


def _self_attention(denoiser: nn.Module) -> dict[str, nn.Module]:
    named = {n.replace("_orig_mod.", "").removesuffix("._orig_mod"): m for n, m in denoiser.named_modules()}
    found = {n: m for n, m in named.items() if n.endswith(".attn1") and hasattr(m, "to_q")}
    single = not any(".transformer_blocks.1." in n for n in found)
    short = {n.removesuffix(".attn1"): m for n, m in found.items()}
    return {n.removesuffix(".transformer_blocks.0") if single else n: m for n, m in short.items()}


def _halved(grid: Grid) -> Iterator[Grid]:
    """The grid and those of the coarser levels, each side rounded up; endless at 1x1 so that two can be zipped."""
    for _ in itertools.repeat(None, 16):
        yield grid
        grid = (-(-grid[0] // 2), -(-grid[1] // 2))


def _halves(grid: Grid, dim: int, device: torch.device) -> tuple[Tokens, Tokens]:
    """The tokens of the two halves of a grid."""
    count = math.prod(grid) // 2
    if dim == 0:
        return slice(0, count), slice(count, 2 * count)
    left, right = torch.arange(2 * count, device=device).view(grid).chunk(2, 1)
    return left.flatten(), right.flatten()


def _conditional_rows(
    sample: torch.Tensor, conditions: list[torch.Tensor | None], parts: int | None, conditional: str
) -> slice:
    """The part of a guidance batch that sees the reference: the batch holds each image several times with other conditions.

    With `parts` None, the images are taken to be repeated where the sample is and one of the conditions is not.
    """
    if parts is None:
        of_rows = [c for c in conditions if c is not None and len(c) == len(sample)]
        parts = next((n for n in (3, 2) if _repeats(sample, n) and not all(_repeats(c, n) for c in of_rows)), 1)
    size = len(sample) // parts
    start = 0 if conditional == "first" else len(sample) - size
    return slice(start, start + size)


def _repeats(x: torch.Tensor, times: int) -> bool:
    if len(x) % times:
        return False
    first, *others = x.chunk(times)
    return all(torch.equal(first, other) for other in others)
