"""Rows of large layers take half the memory, and what that costs them."""

from __future__ import annotations

import numpy as np
import torch

from i2am_debug.capture.accumulate import Accumulator
from i2am_debug.capture.attention import attribute
from i2am_debug.capture.plan import CapturePlan


def test_large_rows_are_summed_in_half_the_memory_and_differ_by_its_rounding(monkeypatch) -> None:
    q_BNGH, k_BNRH = (3 * torch.randn(1, 2, 32 * 32, 8, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    found = {}
    for kind, large in (("half", 2**20), ("float32", 2**21)):
        monkeypatch.setattr("i2am_debug.capture.accumulate._LARGE", large)
        accumulator, heads = Accumulator(CapturePlan.full()), {0: 1.0, 1: 1.0}
        grids = (32, 32), (32, 32)
        for step in range(20):
            where = dict(images=1, all_heads=2, device=torch.device("cpu"))
            rows = accumulator.rows("layer", step, grids, heads, **where)
            assert rows.mean_Bgr.dtype == (torch.float16 if kind == "half" else torch.float32)
            shifted = q_BNGH * (1 + step / 20)
            accumulator.add("layer", step, grids, heads, attribute(shifted, k_BNRH, rows=rows))
        found[kind] = accumulator.maps(0, 20).rows.by_layer["layer"][1]
    # relative to each row's largest entry, after twenty roundings to 11 bits
    error = np.abs(found["half"] - found["float32"]) / found["float32"].max(-1, keepdims=True)
    assert 0 < error.max() < 20 * 2**-12
    np.testing.assert_allclose(found["half"].sum(-1), 1, atol=1e-5)
