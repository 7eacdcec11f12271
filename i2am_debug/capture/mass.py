"""How much the model draws on the reference at all: its share of the model's own attention, where other keys compete with it in
the same softmax, or of what is added up, where it has a branch of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import UnsupportedModel
from ..families.family import Layout
from .precision import float32_products
from .product import BITS, Buffers, chunk_room, groups, keys_of, slices, taken_heads, units
from .taps import SeenProduct, normaliser_of


def mass_of(reference_BNG: torch.Tensor, whole_BNG: torch.Tensor) -> torch.Tensor:
    """The share from the logarithmic normalisers of the rows over the reference's keys and over all: (B, N, G), in [0, 1]."""
    return torch.exp(reference_BNG - whole_BNG.float()).clamp_max(1)


def mass_means(mass_BG: torch.Tensor, inside_BG: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Means of the reference mass, each (B,): over all generated tokens and, with weights of a region's inside, over those
    inside and those outside of it; NaN where nothing lies there."""
    weights = {"reference_mass": torch.ones_like(mass_BG)}
    if inside_BG is not None:
        weights |= {"reference_mass_inside": inside_BG, "reference_mass_outside": 1 - inside_BG}
    return {name: (mass_BG * weight).sum(-1) / weight.sum(-1) for name, weight in weights.items()}


def whole_normaliser(
    seen: SeenProduct,
    q_BNGH: torch.Tensor,
    k_BNSH: torch.Tensor,
    layout: Layout,
    heads: tuple[int, ...],
    mask: torch.Tensor | None,
) -> torch.Tensor | None:
    """Logarithmic normaliser of the model's own rows over all keys, (B, N, G): for nothing from its own kernel, or else of one
    that is asked for these heads alone; None where no fused kernel can.

    Args:
        q_BNGH, k_BNSH: queries of the generated tokens and all keys, of the conditional rows.
        mask: the model's own for them, broadcastable to (B, 1, G, S).
    """
    if seen.log_normaliser is not None:
        return taken_heads(seen.log_normaliser[layout.conditional], heads)[:, :, layout.generated]
    of_heads = taken_heads(q_BNGH, heads), taken_heads(k_BNSH, keys_of(heads, q_BNGH, k_BNSH))
    return normaliser_of(*of_heads, seen.scale, mask)


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
    buffers: Buffers | None = None,
) -> torch.Tensor:
    """Share of the model's own attention rows that falls on each reference: (references, B, N, G), in [0, 1].

    Args:
        k_BNSH: all S keys of the product, of which `references` are index expressions (slices or index tensors).
        mask: the model's own, broadcastable to (B, 1, G, S): True = seen, or added to the logits.
    """
    (B, N, G, H), S = q_BNGH.shape, k_BNSH.shape[2]
    chosen = range(N) if heads is None else heads
    room, buffers = chunk_bytes or chunk_room(q_BNGH.device), buffers or Buffers()
    shares = torch.zeros(len(references), B, len(chosen), G, device=q_BNGH.device)
    with float32_products(q_BNGH.device.type):
        for images, own in groups(B, len(chosen), 4 * G * S, room):
            q = units(q_BNGH, images, chosen[own]).mul(BITS * (H**-0.5 if scale is None else scale))
            k = units(k_BNSH, images, keys_of(chosen[own], q_BNGH, k_BNSH))
            shape = images.stop - images.start, own.stop - own.start
            for rows in slices(G, room // (4 * S * len(q))):
                seen = None if mask is None else _of_units(mask, images, shape, rows)
                p_UcS = buffers.form(q[:, rows], k, mask=seen).weights
                for i, tokens in enumerate(references):
                    shares[i, images, own, rows] = p_UcS[..., tokens].sum(-1).unflatten(0, shape)
    return shares


@torch.no_grad()
def branch_share(outputs: Sequence[tuple[Any, torch.Tensor]], own: int, where: tuple[Any, Any]) -> torch.Tensor:
    """Norm of one of the outputs that are added up over the norm of their sum, for each image: (B,), in float32.

    Only some heads are worked on at once: float32 copies of whole outputs would take more memory than all else that looks.

    Args:
        outputs: factor, and what it is multiplied with before it is added, (B, N, Q, H).
        where: the images and the queries that count.
    """
    images, tokens = where
    (_, first), device = outputs[0], outputs[0][1].device
    squares = torch.zeros(2, len(first[images]), device=device)
    held = len(outputs) + 3  # float32 copies of each, what they are made of, and their sum
    for heads in slices(first.shape[1], first.shape[1] * chunk_room(device) // (4 * first.numel() * held)):
        added = [(factor * output[:, heads].float())[images][:, :, tokens] for factor, output in outputs]
        for square, x in zip(squares, (added[own], sum(added)), strict=True):
            square += torch.linalg.vector_norm(x, dim=(1, 2, 3)).square_()
    norm, whole = squares.sqrt_()
    return norm / whole.clamp_min(1e-30)


def _of_units(mask: torch.Tensor, images: slice, shape: tuple[int, int], rows: slice) -> torch.Tensor:
    """The part of a mask without heads of its own for some images, heads and generated tokens: (U or 1, c or 1, S)."""
    mask = mask[..., rows, :] if mask.shape[-2] > 1 else mask
    own = mask[:, 0] if mask.shape[0] == 1 else mask[images].expand(*shape, -1, -1).flatten(0, 1)
    return own if own.dtype == torch.bool else own * BITS


def check_mask(own_BNGS: torch.Tensor, layout: Layout, name: str) -> bool:
    """Whether the mask of the generated tokens is one for all heads; it must not touch the reference's keys.

    Raises:
        UnsupportedModel: it does, or the reference mass can't be formed with it.
    """
    for number, reference in layout.references.items():
        part = own_BNGS[..., reference.tokens]
        if not bool(part.all() if part.dtype == torch.bool else (part == 0).all()):
            raise UnsupportedModel(
                f"attention module {name!r} masks some keys of reference {number}; the attribution of masked reference "
                "tokens is not defined"
            )
    for_all = own_BNGS.shape[1] == 1 or bool((own_BNGS == own_BNGS[:, :1]).all())  # or repeated for each head
    if layout.joint and not for_all:
        raise UnsupportedModel(f"attention module {name!r} has a mask for each head; the reference mass is not defined")
    return for_all
