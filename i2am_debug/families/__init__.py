"""Where the generated and the reference tokens sit in an attention product: one file a family, and the registry.

A family answers for one kind of denoiser; `find_family` picks the first that knows the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn

from ..attention import Grid
from ..errors import UnsupportedModel

Tokens: TypeAlias = slice | torch.Tensor
"""Which tokens of a sequence: a slice, or their numbers (int64)."""


@dataclass(frozen=True, kw_only=True)
class Product:
    """One attention product inside a tracked module: what a family is told of it."""

    layer: str
    module: nn.Module
    arguments: Mapping[str, Any]
    """The denoiser's own of the forward call under way, by name."""
    forward: int
    """Number of the denoiser's forward call within its sampler step: 0, and 1 where guidance runs the denoiser twice."""
    call: int
    """Number of the product within the module's run."""
    query_tokens: int
    key_tokens: int


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The tokens of one reference picture among a product's keys."""

    tokens: Tokens
    grid: Grid | None
    """(height, width), None for tokens without one."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where things sit in one attention product."""

    generated: Tokens
    """The generated picture's tokens among the queries."""
    generated_grid: Grid
    references: Mapping[int, Reference]
    """Number of the reference picture → its tokens."""
    conditional: slice
    """The batch rows, one an image, that see the reference."""
    joint: bool = False
    """Other keys compete with the reference's in the same softmax: the reference mass is recorded."""
    branch_scale: float | torch.Tensor | None = None
    """The product's output is added, times this, to those of the module's products without a layout (decoupled
    cross-attention): the share of its norm is recorded."""


@dataclass(frozen=True, kw_only=True)
class About:
    """One line of the table of families: the models, and for each figure "yes" or why not."""

    models: str
    r2g: str = "yes"
    g2r: str = "yes"
    specific: str = "yes"
    imacs: str = "yes"
    reference_mass: str = "1 by construction"


class Family(Protocol):
    """One kind of denoiser. Families hold settings only; what changes from call to call is passed in."""

    @property
    def name(self) -> str:
        """What the family is called in records and errors."""

    @property
    def about(self) -> About:
        """Its line in the table of families."""

    @property
    def projections(self) -> bool:
        """Whether queries and keys may be read off a module's `to_q` and `to_k` when it never calls torch's attention.

        True only where nothing (norm, rotary embedding) comes between projection and product.
        """

    def refuses(self, pipeline: Any, denoiser: nn.Module) -> str | None:
        """Why this family can't answer for the model, or None when it can."""

    def layers(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        """The attention modules that may read the reference, by a name a person recognises."""

    def layout(self, product: Product) -> Layout | None:
        """Where the reference sits, or None when the product holds none (a text call, an unconditional forward)."""


_REGISTERED: list[Family] = []


def register_family(family: Family) -> None:
    """Adds a family of your own; it is asked before the ones that came earlier."""
    _REGISTERED.insert(0, family)


def registered() -> list[Family]:
    """The known families in the order they are asked: the user's own, then those of this package."""
    return [*_REGISTERED, *_of_this_package()]


def _of_this_package() -> list[Family]:
    from .added_key_value import AddedKeyValue
    from .bria_fibo_edit import BriaFiboEdit
    from .flux2 import Flux2
    from .flux_ip_adapter import FluxIPAdapter
    from .flux_kontext import FluxKontext
    from .flux_redux import FluxRedux
    from .ip_adapter import IPAdapter
    from .ldm_cross_attention import LDMCrossAttention
    from .longcat_edit import LongCatImageEdit
    from .omnigen import OmniGen
    from .qwen_image_edit import QwenImageEdit
    from .sd3_ip_adapter import SD3IPAdapter
    from .self_attention_reference import KeyConcatenation, SpatialConcatenation
    from .unet_cross_attention import UNetCrossAttention
    from .wan_image_to_video import WanImageToVideo

    return [
        # What is recognised by a sign of its own comes before the UNets that any such model also is.
        LDMCrossAttention(),
        KeyConcatenation(),
        SpatialConcatenation(),
        IPAdapter(),
        UNetCrossAttention(),
        AddedKeyValue(),
        FluxIPAdapter(),
        FluxKontext(),
        Flux2(),
        FluxRedux(),
        QwenImageEdit(),
        LongCatImageEdit(),
        BriaFiboEdit(),
        OmniGen(),
        SD3IPAdapter(),
        WanImageToVideo(),
    ]


def find_family(pipeline: Any, denoiser: nn.Module) -> Family:
    """The first family that knows the model.

    Raises:
        UnsupportedModel: none does; the text gives each one's reason.
    """
    from . import channel_concatenation

    reasons = []
    for families in (_REGISTERED, _of_this_package()):
        for family in families:
            reason = family.refuses(pipeline, denoiser)
            if reason is None:
                return family
            reasons.append(f"{family.name}: {reason}")
        no_tokens = channel_concatenation.reason(pipeline, denoiser)  # only a family of the user's own may know better
        if no_tokens is not None:
            raise UnsupportedModel(no_tokens)
    model = (
        type(denoiser).__name__ if pipeline is denoiser else f"{type(pipeline).__name__} ({type(denoiser).__name__})"
    )
    raise UnsupportedModel(
        f"no family knows where the reference sits in {model}. "
        + " ".join(reasons)
        + " Needed to support a model: which attention modules read the reference, and which of their key tokens are the "
        "reference's. If you know that a family fits, pass it as family=; to add one, see register_family."
    )


def half_of_guidance(sample: torch.Tensor, states: torch.Tensor, order: tuple[str, str]) -> slice:
    """The conditional rows of a denoiser batch.

    Under classifier-free guidance the batch holds every latent twice with different conditions; then the half that `order`
    names "cond" is taken. Otherwise all rows are conditional.
    """
    half, odd = divmod(len(sample), 2)
    doubled = half > 0 and not odd and len(states) == len(sample)
    if doubled and torch.equal(sample[:half], sample[half:]) and not torch.equal(states[:half], states[half:]):
        start = order.index("cond") * half
        return slice(start, start + half)
    return slice(0, len(sample))


def level_grid(latent: tuple[int, ...], tokens: int) -> Grid:
    """The UNet level whose grid has so many tokens; every level halves the sides, rounding up."""
    h, w = latent
    while h * w > tokens and h * w > 1:
        h, w = -(-h // 2), -(-w // 2)
    if h * w != tokens:
        raise UnsupportedModel(
            f"{tokens} query tokens are no level of a {latent[0]}x{latent[1]} latent halved repeatedly; this UNet samples "
            "down in another way. Write a family of your own that knows its grids."
        )
    return h, w


def patch_grid(latent: tuple[int, ...], tokens: int) -> tuple[Grid, int]:
    """The grid of so many square patches of a latent, and a patch's side."""
    for patch in range(1, min(latent) + 1):
        h, w = latent[0] // patch, latent[1] // patch
        if h * w == tokens:
            return (h, w), patch
    raise UnsupportedModel(
        f"{tokens} tokens are no grid of square patches of a {latent[0]}x{latent[1]} latent; this model embeds its "
        "pictures in another way. Write a family of your own that knows its grids."
    )
