"""Sums over the bytes of tensors, for telling whether any was written to; one read-back a device however many there are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

_BLOCKS = 64  # sums a tensor, so that what is merely moved about inside it shows
_INTEGERS = ((8, torch.int64), (4, torch.int32), (2, torch.int16), (1, torch.uint8))


class Checksums:
    """The bytes of these tensors as they are now. Exact integers: NaN, -0.0 and every bit count.

    A tensor's bytes are read as the widest integers that fit and summed in up to 64 blocks, modulo 2**64. Nothing is copied
    but a tensor with gaps between its numbers. A change goes unseen only if it leaves the sum of every block as it was.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = list(tensors)
        self._sums = _sums(self._tensors)

    def changed(self) -> set[int]:
        """The numbers of the tensors whose bytes are not what they were."""
        found: set[int] = set()
        for device, (owners, now) in _sums(self._tensors).items():
            _, before = self._sums[device]
            differing = (now != before).nonzero().flatten().tolist()
            found.update(owners[place] for place in differing)
        return found


def _sums(tensors: Sequence[torch.Tensor]) -> dict[torch.device, tuple[list[int], torch.Tensor]]:
    """Device → for each sum the number of its tensor; the sums (n,) int64, on that device."""
    owners: dict[torch.device, list[int]] = defaultdict(list)
    sums: dict[torch.device, list[torch.Tensor]] = defaultdict(list)
    for number, tensor in enumerate(tensors):
        if tensor.numel():
            blocks = _block_sums(tensor)
            owners[tensor.device] += [number] * len(blocks)
            sums[tensor.device].append(blocks)
    return {device: (owners[device], torch.cat(some)) for device, some in sums.items()}


def _block_sums(tensor: torch.Tensor) -> torch.Tensor:
    flat = _flat(tensor.detach())
    start, size = flat.storage_offset() * flat.element_size(), flat.numel() * flat.element_size()
    dtype = next(d for width, d in _INTEGERS if start % width == 0 and size % width == 0 and _can_be_seen(flat, width))
    numbers = flat.view(dtype)
    blocks = next(b for b in (_BLOCKS, 16, 4, 1) if numbers.numel() % b == 0)
    return numbers.view(blocks, -1).sum(1, dtype=torch.int64)


def _can_be_seen(flat: torch.Tensor, width: int) -> bool:
    return width >= flat.element_size() or flat.element_size() % width == 0


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """In the order of memory, so that channels-last weights are not copied."""
    by_stride = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    flat = tensor.permute(by_stride).reshape(-1)
    return torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat
