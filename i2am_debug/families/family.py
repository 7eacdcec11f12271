"""What a family answers: where the generated and the reference tokens sit in one attention product."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
from torch import nn

from ..grids import Grid

Answer = TypeVar("Answer")

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
    repeat: int = 0
    """How many forward calls just before it, in the same sampler step, were given the same latent; counted where the family
    has a `latent`, else the number of the forward call. Not so many as `forward`, where a sampler looks ahead (PLMS)."""
    call: int
    """Number of the product within the module's run."""
    query_tokens: int
    key_tokens: int
    read: MutableMapping[Any, Any] = field(default_factory=dict)
    """What `once` has been told in the trace."""

    def once(self, ask: Callable[..., Answer], *arguments: Any) -> Answer:
        """`ask(*arguments)`, asked once a trace for each number of the forward call and shape of the tensors among `arguments`.

        For what is read off the numbers in a tensor and is the same at all sampler steps, such as which half of a batch is
        conditional: each look at them keeps a device waiting.
        """
        shapes = tuple(tuple(a.shape) if isinstance(a, torch.Tensor) else a for a in arguments)
        key = ask, self.forward, shapes
        if key not in self.read:
            self.read[key] = ask(*arguments)
        return self.read[key]


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
    """One kind of denoiser. Families hold settings only; what changes from call to call is passed in.

    A family whose denoiser gets generated picture and reference as one sequence may also have
    `reference_latents(arguments)`, which gives (B, tokens, channels) of reference 0 in the arguments of a forward call, or None
    without one: the truth's latents are read there (evaluation/truth.py). A family whose reference is read by an image encoder
    says `reads_encoder = True`: "no reference" is then what that encoder's own preparation makes zeros of. A family that has
    `shows_in_a_call(denoiser)` says whether the denoiser has a sign of it that only a pipeline's call puts there; one with
    `latent(arguments)`, which gives the noisy latent in the arguments of a forward call, is told in `Product.repeat` which
    forwards of a step are of the same one.
    """

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
