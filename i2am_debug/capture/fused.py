"""Both attribution directions and rows on CUDA, by kernels that keep nothing of size G x R; gives what `attention` gives.

A handful of launches a product, instead of dozens for each chunk of it. Shapes as in `attention`.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from functools import lru_cache
from typing import Any

import torch

from .product import slices
from .rows import RowsTogether

_log = logging.getLogger(__name__)

_DEVICES = ("cuda",)
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_WIDE_BYTES = 32 * 2**20  # of pooled rows of single heads that are held at once
_BLOCK = 64  # tokens
_MOST_CHANNELS = 256
_failed: set[tuple[torch.dtype, int]] = set()
"""Kinds of queries for which the kernels can't be made on this machine."""


def can_fuse(q_UGH: torch.Tensor, k_URH: torch.Tensor, rows: RowsTogether | None) -> bool:
    """Whether the kernels know this product: on CUDA with Triton, and with patches of equal size in the rows."""
    return (
        q_UGH.device.type in _DEVICES
        and _has_triton()
        and q_UGH.dtype == k_URH.dtype
        and q_UGH.dtype in _DTYPES
        and q_UGH.shape[2] <= _MOST_CHANNELS
        and _kind(q_UGH) not in _failed
        and (rows is None or all(_even(patches.to_wide.factor) for patches in rows.patches))
    )


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _kind(q_UGH: torch.Tensor) -> tuple[torch.dtype, int]:
    """What kernels are made for: a dtype, and so many channels."""
    return q_UGH.dtype, max(16, 1 << (q_UGH.shape[2] - 1).bit_length())


def _even(factor: int | None) -> bool:
    """Whether blocks hold whole patches of so many tokens."""
    return factor is not None and _BLOCK % factor == 0


def form_fused(
    q_UGH: torch.Tensor,
    k_URH: torch.Tensor,
    scale: float,
    region_UG: torch.Tensor | None,
    object_UR: torch.Tensor | None,
    rows: RowsTogether | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """What `_formed` gives; None where Triton can't make the kernels on this machine, which is said once: it needs a C
    compiler, among other things."""
    try:
        return _formed(q_UGH, k_URH, scale, region_UG, object_UR, rows)
    except _NotMade as error:  # at the first launch of a kernel, before a row is added
        _failed.add(_kind(q_UGH))
        _log.warning("looking takes longer: its CUDA kernels for %s could not be made (%s)", _kind(q_UGH), error)
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
    q_UGH: torch.Tensor,
    k_URH: torch.Tensor,
    scale: float,
    region_UG: torch.Tensor | None,
    object_UR: torch.Tensor | None,
    rows: RowsTogether | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """R2G, centred R2G, with an object its mass, and the logarithmic normaliser: (U, 4, G); G2R of all and of the region:
    (U, 2, R); the attention information: (U,). Tokens, `region_UG` (sum 1) and `object_UR` in the order of `rows`' patches.
    """
    from . import fused_kernels as kernels

    (U, G, H), R, device = q_UGH.shape, k_URH.shape[1], q_UGH.device
    region_UG, object_UR = (
        x if x is None else x.contiguous() for x in (region_UG, object_UR)
    )  # one image's, for each head
    entropy, shift = torch.empty(2, U, G, device=device)
    sums, column_lse = torch.empty(2, U, 2, R, device=device)
    spread = torch.empty(U, 4, G, device=device)  # R2G, centred R2G, the object's mass, the logarithmic normaliser
    orders = (None, None) if rows is None else tuple(patches.order for patches in rows.patches)
    given = (q_UGH, k_URH, orders[0], orders[1])
    sizes = (G, R, H, scale, *q_UGH.stride(), *k_URH.stride())
    how: dict[str, Any] = dict(
        ORDERED_G=orders[0] is not None,
        ORDERED_R=orders[1] is not None,
        BG=_BLOCK,
        BR=_BLOCK,
        BH=_kind(q_UGH)[1],
        num_stages=1 if q_UGH.dtype == torch.float32 else 2,
    )
    blocks_g, blocks_r = -(-G // _BLOCK), -(-R // _BLOCK)
    with torch.cuda.device_of(q_UGH):
        _launch(kernels.rows_kernel, (U, blocks_g), *given, spread, entropy, shift, *sizes, **how)
        of_columns = (*given, spread, shift, region_UG, sums, column_lse, *sizes)
        _launch(kernels.columns_kernel, (U, blocks_r), *of_columns, **how, REGION=region_UG is not None)
        factors = (1, 1) if rows is None else tuple(patches.to_wide.factor for patches in rows.patches)
        shape = G // factors[0], R // factors[1]
        for u in [slice(0, U)] if rows is None else slices(U, _WIDE_BYTES // (4 * shape[0] * shape[1])):
            count = u.stop - u.start
            wide = None if rows is None else torch.empty(count, *shape, device=device)
            _launch(
                kernels.spread_kernel, (count, blocks_g), *given, spread, shift, column_lse, object_UR, wide, u.start,
                *sizes, **how, OBJECT=object_UR is not None, WIDE=rows is not None, FG=factors[0], FR=factors[1],
            )  # fmt: skip
            if rows is not None:
                rows.add_wide(u, wide, 0)
    mean_entropy = entropy.mean(-1) if region_UG is None else (entropy * region_UG).sum(-1)
    bits = torch.special.entr(sums[:, 1]).sum(-1).sub_(mean_entropy).div_(math.log(2)).clamp_min_(0)
    return spread, sums, bits
