"""Pooled G2R rows of one product, as an accumulator adds them up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from i2am_debug.capture import rows as pooled
from i2am_debug.capture.accumulate import Accumulator
from i2am_debug.capture.attention import attribute
from i2am_debug.capture.plan import CapturePlan
from i2am_debug.capture.rows import RowSums, in_order


@dataclass
class Rows:
    mean_Bgr: torch.Tensor
    heads_BNgr: torch.Tensor


def row_sums(
    generated: tuple[int, int],
    reference: tuple[int, int],
    heads: dict[int, float],
    *,
    images: int,
    all_heads: int,
    sides: tuple[int, int] = (32, 16),
    device: torch.device | str = "cpu",
) -> RowSums:
    grids = generated, reference
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pooled, "SIDE", sides[0])
        patched.setattr(pooled, "HEAD_SIDE", sides[1])
        accumulator = Accumulator(CapturePlan.full())
        return accumulator.rows(
            "layer", 0, grids, heads, images=images, all_heads=all_heads, device=torch.device(device)
        )


def pooled_rows(
    q: torch.Tensor,
    k: torch.Tensor,
    generated: tuple[int, int],
    reference: tuple[int, int],
    *,
    side: int = 32,
    head_side: int = 16,
    head_weights: tuple[float, ...] | None = None,
    chunk_bytes: int | None = None,
    scale: float | None = None,
) -> Rows:
    B, N = q.shape[:2]
    heads = dict(enumerate(head_weights or (1.0,) * N))
    rows = row_sums(generated, reference, heads, images=B, all_heads=N, sides=(side, min(side, head_side)))
    attribute(q, k, rows=rows, chunk_bytes=chunk_bytes, scale=scale)
    weights = torch.tensor(list(heads.values()))
    np.testing.assert_allclose(rows.step_Bgr, rows.heads_BNgr.sum(1), rtol=1e-5, atol=1e-9)
    return Rows(in_order(rows.mean_Bgr, rows.patches), rows.heads_BNgr / weights[:, None, None])
