"""Rows of large layers take half the memory, and what that costs them."""

from __future__ import annotations

import pickle

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


def test_rows_of_layers_are_held_as_summed_and_made_when_asked_for() -> None:
    """Of a large layer in half precision; what is added later does not change them, and processes can hand them over."""
    accumulator, heads, where = Accumulator(CapturePlan.full()), {0: 1.0}, dict(all_heads=1, device=torch.device("cpu"))
    layers = {"large": (32, 32), "small": (16, 8)}

    def add(step: int) -> None:
        for seed, (name, grid) in enumerate(layers.items()):
            random = torch.Generator().manual_seed(10 * step + seed)
            q, k = (2 * torch.randn(2, 1, n, 8, generator=random) for n in (grid[0] * grid[1], 32 * 32))
            grids = grid, (32, 32)
            rows = accumulator.rows(name, step, grids, heads, images=2, **where)
            accumulator.add(name, step, grids, heads, attribute(q, k, rows=rows))

    add(0)
    seen = accumulator.maps(1, 2).rows.by_layer
    assert seen.grids == layers and list(seen) == list(layers) and len(seen) == 2
    before = {name: rows for name, (_, rows) in seen.items()}
    held = {name: one.sums for name, one in seen.held.items()}
    assert {name: sums.dtype for name, sums in held.items()} == {"large": torch.float16, "small": torch.float32}
    assert all(sums.untyped_storage().nbytes() == sums.nbytes for sums in held.values()), "of this image alone"
    add(1)
    again = pickle.loads(pickle.dumps(seen))
    for name, (grid, rows) in again.items():
        assert grid == layers[name] and rows.dtype == np.float32
        np.testing.assert_array_equal(rows, before[name])
        np.testing.assert_allclose(rows.sum(-1), 1, atol=1e-5)
    assert not np.array_equal(accumulator.maps(1, 2).rows.by_layer["large"][1], before["large"])
