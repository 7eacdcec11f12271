"""Where the generated and the reference tokens sit in an attention product: one file a family, and the registry.

A family answers for one kind of denoiser; `find_family` picks the first that knows the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ..attention import Grid
from ..errors import UnsupportedModel


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where things sit in one attention product.

    `generated` and `reference` are slices of the query and key tokens, the grids their (height, width), None for tokens
    without one; `conditional` are the batch rows, one an image, that see the reference.
    """

    generated: slice
    reference: slice
    generated_grid: Grid
    reference_grid: Grid | None
    conditional: slice


class Family(Protocol):
    """One kind of denoiser. Families hold settings only; what changes from call to call is passed in."""

    @property
    def name(self) -> str:
        """What the family is called in records and errors."""

    def refuses(self, pipeline: Any, denoiser: nn.Module) -> str | None:
        """Why this family can't answer for the model, or None when it can."""

    def layers(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        """The attention modules that may read the reference, by a name a person recognises."""

    def layout(self, arguments: dict[str, Any], query_tokens: int, key_tokens: int, call_index: int) -> Layout | None:
        """Layout of the module's `call_index`-th product, or None when it holds no reference.

        `arguments` are the denoiser's own of the forward call under way, by name.
        """


def registered() -> Iterator[Family]:
    """An instance of each known family, in the order they are tried."""
    from .unet_cross_attention import UNetCrossAttention

    yield UNetCrossAttention()


def find_family(pipeline: Any, denoiser: nn.Module) -> Family:
    """The first family that knows the model.

    Raises:
        UnsupportedModel: none does; the text gives each one's reason.
    """
    reasons = []
    for family in registered():
        reason = family.refuses(pipeline, denoiser)
        if reason is None:
            return family
        reasons.append(f"{family.name}: {reason}")
    model = (
        type(denoiser).__name__ if pipeline is denoiser else f"{type(pipeline).__name__} ({type(denoiser).__name__})"
    )
    raise UnsupportedModel(
        f"no family knows where the reference sits in {model}. "
        + " ".join(reasons)
        + " Needed to support a model: which "
        "attention modules read the reference, and which of their key tokens are the reference's. "
        "If you know that a family fits, pass it as family=."
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
