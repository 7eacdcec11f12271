"""Flux and Chroma with an IP-Adapter: each double block attends to the reference pictures with keys of their own.

A module's first product is the model's joint one over [text · picture]. After it each adapter has one, in the order they were
loaded: queries are the picture tokens before the rotary embedding, keys what the adapter makes of its reference pictures,
one behind the other. How many pictures an adapter was given is read off `joint_attention_kwargs`, the generated picture's grid
off `img_ids`. Pictures are numbered across adapters; those of an adapter whose scale is 0 in a block are not looked at there.

No branch share is recorded: the adapter's output skips the projection and gate that the joint product's goes through and is
added at the block's end, so a ratio of the two norms would not say how much of the block's output comes from the reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..errors import UnsupportedModel
from .family import About, Layout, Product, Reference
from .flux_kontext import find_transformer, joint_attention, pictures_in

_TRANSFORMERS = ("FluxTransformer2DModel", "ChromaTransformer2DModel")
_ROW = "a row of tokens without a grid"


@dataclass(frozen=True, kw_only=True)
class FluxIPAdapter:
    """`FluxTransformer2DModel` and `ChromaTransformer2DModel` with one or more IP-Adapters loaded."""

    name: ClassVar[str] = "flux_ip_adapter"
    about: ClassVar[About] = About(
        models="Flux and Chroma with an IP-Adapter: several adapters, several pictures",
        g2r=_ROW,
        specific=_ROW,
        imacs="IMACS_g; IMACS_r undefined: the reference tokens have no grid",
        reference_mass="between several pictures of one adapter; no branch share, as the branch is added elsewhere",
    )
    projections: ClassVar[bool] = False
    reads_encoder: ClassVar[bool] = True

    def refuses(self, pipeline: Any, denoiser: nn.Module) -> str | None:
        if all(find_transformer(denoiser, name) is None for name in _TRANSFORMERS):
            return f"the denoiser is neither {' nor '.join(_TRANSFORMERS)}."
        if not self.layers(denoiser):
            return "no double block has an IP-Adapter's keys (to_k_ip); load one with pipeline.load_ip_adapter(…)."
        if pipeline is not denoiser and "Kontext" in type(pipeline).__name__:
            return (
                f"{type(pipeline).__name__} has a reference picture in the sequence too, which is looked at; for the "
                "IP-Adapter's, pass family=FluxIPAdapter()."
            )
        return None

    def layers(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        return {name: m for name, m in joint_attention(denoiser).items() if hasattr(m.processor, "to_k_ip")}

    def layout(self, product: Product) -> Layout | None:
        if product.call == 0 or product.forward > 0:
            return None  # the joint product; the negative prompt with the negative picture
        scales, counts = product.module.processor.scale, _pictures(product.arguments)
        adapter = product.call - 1
        if adapter >= min(len(scales), len(counts)):
            raise UnsupportedModel(
                f"{type(product.module.processor).__name__} in {product.layer!r} attends {product.call + 1} times with "
                f"{len(scales)} adapters and pictures for {len(counts)}; FluxIPAdapterAttnProcessor does so once, and once an "
                "adapter. Write a family of your own that knows it."
            )
        if not scales[adapter]:
            return None  # attended to, but added 0 times
        first, count = sum(counts[:adapter]), counts[adapter]
        tokens = product.key_tokens // count
        start, generated, grid = pictures_in(product).get(0, (0, 0, None))
        if grid is None:
            raise UnsupportedModel(
                f"img_ids numbers the generated picture 0, and its {generated} tokens must fill a rectangle row by row, which "
                "they don't. Write a family of your own that knows their grid."
            )
        start -= product.arguments["encoder_hidden_states"].shape[1]  # the text has no queries here
        return Layout(
            generated=slice(start, start + generated),
            generated_grid=grid,
            references={
                first + i: Reference(tokens=slice(i * tokens, (i + 1) * tokens), grid=None) for i in range(count)
            },
            conditional=slice(0, len(product.arguments["hidden_states"])),
            joint=count > 1,
        )


def _pictures(arguments: Mapping[str, Any]) -> list[int]:
    """How many reference pictures each adapter was given.

    The transformer takes the image encoder's features out of the dictionary and puts the adapters' tokens in; which of
    them it still holds depends on whether it is the caller's own or a copy.
    """
    given = arguments.get("joint_attention_kwargs") or {}
    features = given.get("ip_adapter_image_embeds")
    if isinstance(features, torch.Tensor):
        return [1]  # the older form: one adapter, one picture
    if features is not None:
        return [f.shape[1] for f in features]  # (batch, pictures, …)
    return [
        h.shape[1] if h.ndim == 4 else 1 for h in given.get("ip_hidden_states", ())
    ]  # (batch, [pictures,] tokens, …)
