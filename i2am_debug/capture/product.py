"""The product of queries and keys and its softmax, a chunk that stays in the processor's cache at a time: the only softmax.

Shapes: B batch, N heads, G generated tokens, R reference tokens, H head dim; U units, the heads of some images one after the
other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

BITS = 1 / math.log(2)
"""Factor of logits in nats. In bits, weights are powers of two, which a CPU takes in half the time of those of e."""

_CHUNK_BYTES = {"cpu": 2 * 2**20}  # of the two largest temporaries, by device: what stays in the cache
_CHUNK_BYTES_ELSEWHERE = 16 * 2**20  # fewer, larger kernels


class Buffers:
    """Memory of a product and its softmax that all chunks share, and all calls that are given the same buffers.

    A new block for every chunk would scatter over the heap, which then keeps it, and be filled by the system page by page.
    """

    def __init__(self) -> None:
        self._held: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def free(self) -> None:
        """Gives the memory back until it is needed again."""
        self._held.clear()

    def form(self, q: torch.Tensor, k: torch.Tensor, dim: int = -1, mask: torch.Tensor | None = None) -> Formed:
        """The product and its softmax over `dim`; overwritten by the next.

        Args:
            q: (U, queries, H), scaled so that logits are in bits.
            k: (U, keys, H).
            mask: which keys are seen, or what is added to the logits, in bits.
        """
        shape = (*q.shape[:2], k.shape[1])
        size = math.prod(shape)
        held = self._held.get(q.device)
        if held is None or len(held[0]) < size:
            held = self._held[q.device] = torch.empty(size, device=q.device), torch.empty(size, device=q.device)
        logits, weights = (buffer[:size].view(shape) for buffer in held)
        torch.bmm(q, k.transpose(1, 2), out=logits)
        if mask is not None:
            logits.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else logits.add_(mask)
        top = logits.amax(dim, keepdim=True)
        torch.exp2(logits.sub_(top), out=weights)
        total = weights.sum(dim, keepdim=True)
        weights.mul_(total.reciprocal())
        return Formed(below_top=logits, weights=weights, top=top.squeeze(dim), log_sum=total.log2_().squeeze(dim))


@dataclass(frozen=True, slots=True)
class Formed:
    """One product and its softmax; logits and logarithms in bits."""

    below_top: torch.Tensor
    """(U, queries, keys): logits without the largest of each row, at most 0."""
    weights: torch.Tensor
    """(U, queries, keys): their softmax."""
    top: torch.Tensor
    """(U, queries): those largest logits."""
    log_sum: torch.Tensor
    """(U, queries): logarithm of the row's sum of powers of `below_top`; with `top`, the row's logarithmic normaliser."""


def chunk_room(device: torch.device) -> int:
    """Bytes of the logits that are held at once."""
    return _CHUNK_BYTES.get(device.type, _CHUNK_BYTES_ELSEWHERE)


def groups(images: int, heads: int, bytes_each: int, room: int) -> Iterator[tuple[slice, slice]]:
    """Images and heads that are taken at once: as many whole images as there is room for, or some heads of one."""
    at_once = max(1, min(images, room // (bytes_each * heads)))
    heads_at_once = min(heads, max(1, room // bytes_each))
    for own_images in slices(images, at_once):
        for own_heads in slices(heads, heads_at_once):
            yield own_images, own_heads


def slices(length: int, size: int) -> list[slice]:
    """Consecutive ones of `size`, at least 1, the last one as long as is left."""
    return [slice(a, min(a + max(1, size), length)) for a in range(0, length, max(1, size))]


def units(x_BNTH: torch.Tensor, images: slice, heads: Sequence[int]) -> torch.Tensor:
    """Queries or keys of some images and heads as float32: (U, T, H). May be a view of what was given."""
    return taken_heads(x_BNTH[images], heads).flatten(0, 1).float()


def taken_heads(x_BN: torch.Tensor, heads: Sequence[int]) -> torch.Tensor:
    """Those heads of (B, N, …); a view where they follow each other."""
    first, count = heads[0], len(heads)
    if list(heads) == list(range(first, first + count)):
        return x_BN[:, first : first + count]
    return torch.stack([x_BN[:, head] for head in heads], 1)


def keys_of(heads: Sequence[int], q_BN: torch.Tensor, k_BN: torch.Tensor) -> list[int]:
    """The keys' heads that belong to the queries'; keys may have fewer (grouped queries)."""
    return [head // (q_BN.shape[1] // k_BN.shape[1]) for head in heads]


@lru_cache(maxsize=256)
def shares(weights: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Weights that sum to 1, made once for each device."""
    return normalised(torch.tensor(weights)).to(device)


def normalised(x: torch.Tensor) -> torch.Tensor:
    """Sum 1 over the last dimension."""
    return x / x.sum(-1, keepdim=True).clamp_min(1e-30)
