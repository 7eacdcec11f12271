"""From a denoiser batch and its latent to rows and grids: what several families share."""

from __future__ import annotations

import torch

from ..errors import UnsupportedModel
from ..grids import Grid


def every_row(sample: torch.Tensor) -> slice:
    """The rows of a denoiser batch without guidance."""
    return slice(0, len(sample))


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
    return every_row(sample)


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
