"""How much of the model's own attention falls on the reference, where other keys compete with it in the same softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .precision import float32_products
from .product import Work


@torch.no_grad()
def reference_mass(
    q_BNGH: torch.Tensor,
    k_BNSH: torch.Tensor,
    references: Sequence[Any],
    *,
    heads: Sequence[int] | None = None,
    scale: float | None = None,
    mask: torch.Tensor | None = None,
    chunk_bytes: int | None = None,
) -> torch.Tensor:
    """Share of the model's own attention rows that falls on each reference: (references, B, N, G), in [0, 1].

    Args:
        k_BNSH: all S keys of the product, of which `references` are index expressions (slices or index tensors).
        mask: the model's own, broadcastable to (B, 1, G, S): True = seen, or added to the logits.
    """
    with float32_products(q_BNGH.device.type):
        work = Work(q_BNGH, k_BNSH, heads, scale, chunk_bytes)
        shares = q_BNGH.new_zeros(len(references), work.B, work.N, work.G, dtype=torch.float32)
        for images, own in work.groups():
            q, k = work.queries(images, own), work.keys(images, own)
            shape = images.stop - images.start, own.stop - own.start
            for rows in work.query_chunks(len(q)):
                seen = None if mask is None else _of_units(mask, images, shape, rows)
                p_UcS = work.softmax(q[:, rows], k, mask=seen)[1]
                for i, tokens in enumerate(references):
                    shares[i, images, own, rows] = p_UcS[..., tokens].sum(-1).unflatten(0, shape)
    return shares


def _of_units(mask: torch.Tensor, images: slice, shape: tuple[int, int], rows: slice) -> torch.Tensor:
    """The part of a mask without heads of its own for some images, heads and generated tokens: (U or 1, c or 1, S)."""
    mask = mask[..., rows, :] if mask.shape[-2] > 1 else mask
    return mask[:, 0] if mask.shape[0] == 1 else mask[images].expand(*shape, -1, -1).flatten(0, 1)


def mass_of(reference_BNG: torch.Tensor, whole_BNG: torch.Tensor) -> torch.Tensor:
    """The same from the logarithmic normalisers of the rows over the reference's keys and over all: (B, N, G), in [0, 1]."""
    return torch.exp(reference_BNG - whole_BNG.float()).clamp_max(1)
