"""The product of queries and keys and its softmax, a chunk that stays in the processor's cache at a time: the only softmax.

Shapes: B batch, N heads, G generated tokens, R reference tokens, H head dim; U units, the heads of some images one after the
other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch

_CHUNK_BYTES = {"cpu": 2 * 2**20}  # of the two largest temporaries, by device: what stays in the cache
_CHUNK_BYTES_ELSEWHERE = 16 * 2**20  # fewer, larger kernels
_WHOLE = 2  # times that, a single head may take rather than be formed twice


class Work:
    """Float32 queries and keys of a few heads at a time, and buffers for their softmax that all chunks share.

    A float32 copy of all heads would not stay small, and a new block for every chunk would scatter over the heap, which then
    keeps it.
    """

    def __init__(
        self,
        q_BNGH: torch.Tensor,
        k_BNRH: torch.Tensor,
        heads: Sequence[int] | None,
        scale: float | None,
        chunk_bytes: int | None,
        together: int = 1,
    ) -> None:
        self._q, self._k, self._heads, self._together = q_BNGH, k_BNRH, heads, together
        self.B, self._all_heads, self.G, H = q_BNGH.shape
        self.N, self.R, self.device = self._all_heads if heads is None else len(heads), k_BNRH.shape[2], q_BNGH.device
        self._scale = H**-0.5 if scale is None else scale
        room = chunk_bytes or _CHUNK_BYTES.get(self.device.type, _CHUNK_BYTES_ELSEWHERE)
        one = 4 * self.G * self.R
        self._heads_at_once = min(self.N, max(1, room // one))
        self._images_at_once = max(1, min(self.B, room // (one * self.N)))
        at_once = self._heads_at_once * self._images_at_once * self.G * self.R
        least = max(self.G, self.R * together)
        fits = one <= (chunk_bytes or _WHOLE * room)
        self._logits, self._weights = (
            torch.empty(at_once if fits else max(room // 4, least), device=self.device) for _ in range(2)
        )

    def groups(self) -> Iterator[tuple[slice, slice]]:
        """Images and heads (of those looked at) that are taken at once."""
        for image in range(0, self.B, self._images_at_once):
            for head in range(0, self.N, self._heads_at_once):
                yield (
                    slice(image, min(image + self._images_at_once, self.B)),
                    slice(head, min(head + self._heads_at_once, self.N)),
                )

    def queries(self, images: slice, heads: slice, order: torch.Tensor | None = None) -> torch.Tensor:
        """(U, G, H), scaled."""
        return self._gathered(self._q, images, heads, order).mul_(self._scale)

    def keys(self, images: slice, heads: slice, order: torch.Tensor | None = None) -> torch.Tensor:
        """(U, R, H)."""
        return self._gathered(self._k, images, heads, order)

    def _gathered(self, x: torch.Tensor, images: slice, heads: slice, order: torch.Tensor | None) -> torch.Tensor:
        share = self._all_heads // x.shape[1]  # query heads that share a key head
        if self._heads is None and share == 1:
            found = x[images, heads]
        else:
            chosen = (range(self.N) if self._heads is None else self._heads)[heads]
            found = torch.stack([x[images, head // share] for head in chosen], 1)
        found = found if order is None else found.index_select(2, order)
        return torch.empty(found.shape, device=found.device).copy_(found).flatten(0, 1)

    def query_chunks(self, units: int) -> list[slice]:
        """Slices of generated tokens whose product with all reference tokens fits the buffers; whole patches each."""
        size = len(self._logits) // (units * self.R) // self._together * self._together
        return _slices(self.G, max(size, self._together))

    def key_chunks(self, units: int) -> list[slice]:
        """Slices of reference tokens whose product with all generated tokens fits the buffers."""
        return _slices(self.R, max(1, len(self._logits) // (units * self.G)))

    def softmax(
        self, q: torch.Tensor, k: torch.Tensor, dim: int = -1, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of q·k and their softmax over `dim`, each (U, queries, keys); overwritten by the next."""
        shape = (*q.shape[:2], k.shape[1])
        logits, weights = (buffer[: math.prod(shape)].view(shape) for buffer in (self._logits, self._weights))
        torch.bmm(q, k.transpose(1, 2), out=logits)
        if mask is not None:
            logits.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else logits.add_(mask)
        return logits, torch.softmax(logits, dim, out=weights)


def _slices(length: int, size: int) -> list[slice]:
    return [slice(a, min(a + size, length)) for a in range(0, length, size)]


@lru_cache(maxsize=256)
def shares(weights: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Weights that sum to 1, made once for each device."""
    return normalised(torch.tensor(weights)).to(device)


def normalised(x: torch.Tensor) -> torch.Tensor:
    """Sum 1 over the last dimension."""
    return x / x.sum(-1, keepdim=True).clamp_min(1e-30)
