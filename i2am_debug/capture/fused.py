"""Both attribution directions and rows on CUDA, by kernels that keep nothing of size G x R; gives what `attention` gives.

A handful of launches a product, instead of dozens for each chunk of it. Shapes as in `attention`.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from .product import groups
from .rows import RowSums

_log = logging.getLogger(__name__)

_DEVICES = ("cuda",)
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_WIDE_BYTES = 32 * 2**20  # of pooled rows of single heads that are held at once
_BLOCK = 64  # tokens
_MOST_CHANNELS = 256
_failed: set[tuple[torch.dtype, int]] = set()
"""Kinds of queries for which the kernels can't be made on this machine."""


def can_fuse(q_BNGH: torch.Tensor, k_BNRH: torch.Tensor, rows: RowSums | None) -> bool:
    """Whether the kernels know this product: on CUDA with Triton, and with patches of equal size in the rows."""
    return (
        q_BNGH.device.type in _DEVICES
        and _has_triton()
        and q_BNGH.dtype == k_BNRH.dtype
        and q_BNGH.dtype in _DTYPES
        and q_BNGH.shape[3] <= _MOST_CHANNELS
        and _kind(q_BNGH) not in _failed
        and (rows is None or all(_even(patches.to_wide.factor) for patches in rows.patches))
    )


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _kind(q_BNGH: torch.Tensor) -> tuple[torch.dtype, int]:
    """What kernels are made for: a dtype, and so many channels."""
    return q_BNGH.dtype, max(16, 1 << (q_BNGH.shape[3] - 1).bit_length())


def _even(factor: int | None) -> bool:
    """Whether blocks hold whole patches of so many tokens."""
    return factor is not None and _BLOCK % factor == 0


def form_fused(
    q_BNGH: torch.Tensor,
    k_BNRH: torch.Tensor,
    heads: Sequence[int],
    scale: float,
    region_BG: torch.Tensor | None,
    object_BR: torch.Tensor | None,
    rows: RowSums | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """What `_formed` gives; None where Triton can't make the kernels on this machine, which is said once: it needs a C
    compiler, among other things."""
    try:
        return _formed(q_BNGH, k_BNRH, heads, scale, region_BG, object_BR, rows)
    except _NotMade as error:  # at the first launch of a kernel, before a row is added
        _failed.add(_kind(q_BNGH))
        _log.warning("looking takes longer: its CUDA kernels for %s could not be made (%s)", _kind(q_BNGH), error)
        return None


class _NotMade(Exception):
    """Triton could not make a kernel."""


def _launch(kernel: Any, programs: tuple[int, int], *given: Any, **how: Any) -> None:
    try:
        kernel[programs](*given, **how)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of Triton's many kinds, and what its compilers raise
        words = str(error).strip().splitlines() or ["no message"]
        raise _NotMade(f"{type(error).__name__}: {words[0]}") from error


def _formed(
    q_BNGH: torch.Tensor,
    k_BNRH: torch.Tensor,
    heads: Sequence[int],
    scale: float,
    region_BG: torch.Tensor | None,
    object_BR: torch.Tensor | None,
    rows: RowSums | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """R2G, centred R2G, with an object its mass, and the logarithmic normaliser: (U, 4, G); G2R of all and of the region:
    (U, 2, R); the attention information: (U,). Tokens, `region_BG` (sum 1) and `object_BR` in the order of `rows`' patches.
    """
    from . import fused_kernels as kernels

    (B, all_heads, G, H), R, N = q_BNGH.shape, k_BNRH.shape[2], len(heads)
    U, device = B * N, q_BNGH.device
    entropy, shift = torch.empty(2, U, G, device=device)
    sums, column_lse = torch.empty(2, U, 2, R, device=device)
    spread = torch.empty(U, 4, G, device=device)  # R2G, centred R2G, the object's mass, the logarithmic normaliser
    orders = (None, None) if rows is None else tuple(patches.order for patches in rows.patches)
    given = (q_BNGH, k_BNRH, _numbers(tuple(heads), device), orders[0], orders[1])
    sizes = (N, all_heads // k_BNRH.shape[1], G, R, H, scale, *q_BNGH.stride(), *k_BNRH.stride())
    how: dict[str, Any] = dict(
        ORDERED_G=orders[0] is not None,
        ORDERED_R=orders[1] is not None,
        BG=_BLOCK,
        BR=_BLOCK,
        BH=_kind(q_BNGH)[1],
        num_stages=1 if q_BNGH.dtype == torch.float32 else 2,
    )
    blocks_g, blocks_r = -(-G // _BLOCK), -(-R // _BLOCK)
    with torch.cuda.device_of(q_BNGH):
        _launch(kernels.rows_kernel, (U, blocks_g), *given, spread, entropy, shift, *sizes, **how)
        of_columns = (*given, spread, shift, region_BG, sums, column_lse, *sizes)
        _launch(kernels.columns_kernel, (U, blocks_r), *of_columns, **how, REGION=region_BG is not None)
        factors = (1, 1) if rows is None else tuple(patches.to_wide.factor for patches in rows.patches)
        shape = G // factors[0], R // factors[1]
        for images, own in groups(B, N, 4 * shape[0] * shape[1], _WIDE_BYTES) if rows else [(slice(0, B), slice(0, N))]:
            count, first = (images.stop - images.start) * (own.stop - own.start), images.start * N + own.start
            wide = None if rows is None else torch.empty(count, *shape, device=device)
            _launch(
                kernels.spread_kernel, (count, blocks_g), *given, spread, shift, column_lse, object_BR, wide, first, *sizes,
                **how, OBJECT=object_BR is not None, WIDE=rows is not None, FG=factors[0], FR=factors[1],
            )  # fmt: skip
            if rows is not None:
                rows.add_wide(images, own, wide, 0)
    if region_BG is None:
        mean_entropy = entropy.mean(-1)
    else:
        mean_entropy = (entropy.unflatten(0, (B, N)) * region_BG[:, None]).sum(-1).flatten()
    bits = torch.special.entr(sums[:, 1]).sum(-1).sub_(mean_entropy).div_(math.log(2)).clamp_min_(0)
    return spread, sums, bits


@lru_cache(maxsize=256)
def _numbers(heads: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(heads, dtype=torch.int32).to(device)
