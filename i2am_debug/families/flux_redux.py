"""Flux Redux: the reference's tokens come as text, [text · reference · generated], in double and single blocks of Flux.

FluxPriorReduxPipeline appends the reference's SigLIP patches, 27x27 by default, to 512 text tokens, and what it returns goes
to FluxPipeline (or another) as `prompt_embeds`. Nothing but their number tells such tokens from text, so the number of text
tokens is a setting, and the family must be asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from torch import nn

from ..errors import UnsupportedModel
from ..grids import Grid
from .family import About, Layout, Product
from .flux_kontext import find_transformer, joint_attention, joint_layout, pictures_in


@dataclass(frozen=True, kw_only=True)
class FluxRedux:
    """`FluxTransformer2DModel` with one or several pictures' Redux tokens at the end of `encoder_hidden_states`.

    Pictures that FluxPriorReduxPipeline gets in one call are added up, token by token: they are one reference.
    """

    text_tokens: int = 512
    """How many text tokens come before the reference's; FluxPriorReduxPipeline makes 512."""
    reference_grid: Grid = (27, 27)
    """(height, width) of the patches of one picture; the encoder's own."""
    name: ClassVar[str] = "flux_redux"
    about: ClassVar[About] = About(models="Flux Redux (asked for with family=FluxRedux())", reference_mass="yes")
    projections: ClassVar[bool] = False
    reads_encoder: ClassVar[bool] = True

    def refuses(self, pipeline: Any, denoiser: nn.Module) -> str | None:
        if find_transformer(denoiser, "FluxTransformer2DModel") is None:
            return "the denoiser is no FluxTransformer2DModel."
        components = getattr(pipeline, "components", {}).values()
        if not any(type(c).__name__ == "ReduxImageEncoder" for c in components):
            return (
                "whether prompt_embeds hold the tokens of a picture can't be seen from the model; if they come from "
                "FluxPriorReduxPipeline, pass family=FluxRedux()."
            )
        return None

    def layers(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        return joint_attention(denoiser)

    def layout(self, product: Product) -> Layout | None:
        if product.forward > 0:
            return None  # true classifier-free guidance: the second forward has the negative prompt
        prompt, each = product.arguments["encoder_hidden_states"].shape[1], prod(self.reference_grid)
        number, rest = divmod(max(0, prompt - self.text_tokens), each)
        if rest:
            h, w = self.reference_grid
            raise UnsupportedModel(
                f"the prompt has {prompt} tokens; less text_tokens={self.text_tokens} they are {number * each + rest}, no "
                f"multiple of the {each} of a {h}x{w} picture. Say how many are text and what grid the others have: "
                "family=FluxRedux(text_tokens=…, reference_grid=(h, w))."
            )
        references = [(self.text_tokens + i * each, each, self.reference_grid) for i in range(number)]
        return joint_layout(product, pictures_in(product), references)
