"""The benchmarks of looking compare what they say: neighbours in time, in turn, and a model that is really looked at."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import capture, joint_model
from benchmarks.measuring import paired_ratios


def test_ways_run_in_turn_and_a_ratio_is_of_one_round() -> None:
    ran: list[str] = []
    now = 0.0

    def way(name: str, seconds: float) -> None:
        nonlocal now
        ran.append(name)
        now += seconds * (1 + len(ran) // 4)  # the machine slows down: ratios of one round stay

    found = paired_ratios(lambda: way("plain", 2.0), lambda: way("other", 3.0), 2, lambda: now)
    assert ran == ["plain", "other", "plain", "other", "other", "plain"]
    assert found["ratios"][1] == pytest.approx(1.5)
    assert found["looking_s"][0] / found["plain_s"][0] == found["ratios"][0]


def test_the_benchmark_looks_at_all_layers_heads_and_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(capture.SIZES, "small", replace(capture.SIZES["small"], side=8))
    sampling = capture.Sampling(2)
    assert sum(p.numel() for p in sampling.pipeline.unet.parameters()) == pytest.approx(37.5e6, rel=0.01)
    maps = capture.looking(sampling, "full", None)()
    assert len(maps.layers) == 16 and maps.steps == (0, 1)
    assert all(heads == tuple(range(8)) for heads in maps.heads.values())
    assert maps.r2g.unified.shape == (8, 8) and maps.g2r.unified.shape == (16, 16)
    assert np.isfinite(maps.r2g_object_mass.unified).all()


def test_the_joint_benchmark_looks_at_all_blocks_in_some_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(joint_model.SIZES["small"], side=4, text=3, heads=1, blocks=(1, 1))
    monkeypatch.setitem(joint_model.SIZES, "small", small)
    monkeypatch.setattr(joint_model, "STEPS", 8)
    _, look = joint_model.ways()
    maps = look()
    assert len(maps.layers) == 2 and len(maps.steps) < 8 == maps.total_steps
    assert maps.r2g.unified.shape == maps.g2r.unified.shape == (4, 4)
    assert all(0 < share < 1 for share in maps.reference_mass.values())
