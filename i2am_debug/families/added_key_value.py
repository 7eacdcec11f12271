"""Decoders of UnCLIP and Kandinsky 2: every attention module reads the given tokens and the picture's own, in one softmax.

The keys are [reference · text · own]. The reference is a projection of one image embedding into a few tokens without a
place. Kandinsky 2.1 (`text_image_proj`) puts them before the text, Kandinsky 2.2 (`image_proj`) has no text; both make them
inside the UNet, whose projection knows how many. The decoder of UnCLIP gets them ready made in `encoder_hidden_states`, in
front of the text, so their number is a setting. An embedding that a prior made out of a prompt is no reference; where it is an
argument of the pipeline's call, as in Kandinsky's decoders, only the caller knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..errors import UnsupportedModel
from .family import About, Layout, Product, Reference
from .latents import every_row, half_of_guidance, level_grid

_PROJECTIONS = ("image_proj", "text_image_proj")
_UNCLIP = 4  # image tokens of the UnCLIP decoder that diffusers has (Karlo)
_ROW = "a row of tokens without a grid"


@dataclass(frozen=True, kw_only=True)
class AddedKeyValue:
    """diffusers UNets whose attention has added keys (`AttnAddedKVProcessor2_0`), the first of them a picture's."""

    reference_tokens: int | None = None
    """How many of the leading keys are the picture's. By default what the UNet's own projection makes, and 4 for the decoder of
    UnCLIP: there it is the pipeline's `text_proj.config.clip_extra_context_tokens`."""
    guidance: bool = True
    """False: every row of a batch is a picture of its own. By default a batch that holds each latent twice, under other
    conditions, is taken for classifier-free guidance: two references of one picture under one noise look just like it."""
    name: ClassVar[str] = "added_key_value"
    about: ClassVar[About] = About(
        models="decoders of Kandinsky 2.1 and 2.2 and of UnCLIP image variation",
        g2r=_ROW,
        specific=_ROW,
        imacs="IMACS_g; IMACS_r undefined: the reference tokens have no grid",
        reference_mass="yes",
    )
    projections: ClassVar[bool] = False  # to_k gives the picture's own keys only
    reads_encoder: ClassVar[bool] = True

    def refuses(self, pipeline: Any, denoiser: nn.Module) -> str | None:
        if not self.layers(denoiser):
            return "no attention module of it has added keys (an AttnAddedKVProcessor2_0)."
        config = getattr(denoiser, "config", None)
        kind = getattr(config, "encoder_hid_dim_type", None)
        unclip = kind is None and getattr(config, "class_embed_type", None) == "identity"
        if kind not in _PROJECTIONS and not unclip:
            return (
                f"its added keys are a text's (encoder_hid_dim_type={kind!r}): it has no projection of a picture, "
                f"{' or '.join(_PROJECTIONS)}."
            )
        components = getattr(pipeline, "components", {})
        if any(components.get(prior) is not None for prior in ("prior", "prior_prior")):
            return (
                "its prior makes the image embedding out of the prompt, so no token comes from a reference; if the embedding "
                "is a picture's after all, pass family=AddedKeyValue()."
            )
        made = getattr(getattr(components.get("text_proj"), "config", None), "clip_extra_context_tokens", None)
        expected = self.reference_tokens or _UNCLIP
        if unclip and made not in (None, expected):
            return (
                f"its text_proj makes {made} tokens of the picture, not {expected}; "
                f"pass family=AddedKeyValue(reference_tokens={made})."
            )
        return None

    def layers(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        return {n.replace("_orig_mod.", ""): m for n, m in denoiser.named_modules() if _has_added_keys(m)}

    def layout(self, product: Product) -> Layout | None:
        arguments = product.arguments
        tokens, sample = self._tokens(arguments["self"]), arguments["sample"]
        given = product.key_tokens - (0 if product.module.only_cross_attention else product.query_tokens)
        if given < tokens:
            raise UnsupportedModel(
                f"attention module {product.layer!r} has {max(given, 0)} keys beside the picture's own, fewer than the "
                f"{tokens} of the reference; pass family=AddedKeyValue(reference_tokens=…) with their number"
            )
        return Layout(
            generated=slice(0, product.query_tokens),
            generated_grid=level_grid(sample.shape[-2:], product.query_tokens),
            references={0: Reference(tokens=slice(0, tokens), grid=None)},
            conditional=product.once(half_of_guidance, sample, _conditions(arguments), ("uncond", "cond"))
            if self.guidance
            else every_row(sample),
            joint=True,
        )

    def _tokens(self, denoiser: nn.Module) -> int:
        made = getattr(getattr(denoiser, "encoder_hid_proj", None), "num_image_text_embeds", _UNCLIP)
        return self.reference_tokens or made


def _has_added_keys(module: nn.Module) -> bool:
    return any("AddedKV" in c.__name__ for c in type(getattr(module, "processor", None)).__mro__)


def _conditions(arguments: Any) -> torch.Tensor:
    """All that tells the halves of a guidance batch apart, a row an image: the prompt may be the same in both, or absent."""
    picture = (arguments.get("added_cond_kwargs") or {}).get("image_embeds")
    given = [s for s in (arguments.get("encoder_hidden_states"), picture) if s is not None]
    return torch.cat([s.flatten(1).float() for s in given], dim=1)
