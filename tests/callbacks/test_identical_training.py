"""Training with the callback equals training without it, bit for bit, in every set-up: one way of looking each, in turn."""

from __future__ import annotations

import pytest
import torch
from training import few_probes

from benchmarks.unharmed import identity
from benchmarks.unharmed.identity import measure
from benchmarks.unharmed.training_setups import SET_UPS
from i2am_debug.guard import state_guard


def test_training_is_identical_in_every_set_up():
    with few_probes():
        found = measure(long=False)
    assert not found.harm, "\n".join(found.harm)
    assert found.counted["of"] + found.counted["not run"] == sum(one.in_short_form for one in SET_UPS)
    assert {row["way"] for row in found.rows} == set(identity.WAYS)
    assert found.counted["of"] >= 18, found.table()


@pytest.mark.parametrize("part", ["random states", "everything"])
def test_a_guard_that_does_nothing_would_be_seen(monkeypatch, tmp_path, part):
    set_up = next(one for one in SET_UPS if one.name == "plain")
    alone = identity._trained(set_up, tmp_path, None, None)
    if part == "everything":
        monkeypatch.setattr(state_guard.StateGuard, "_put_back", lambda self: ("", None))
    monkeypatch.setattr(state_guard.RandomStates, "put_back", lambda self: torch.rand(1))
    assert any("not the same" in one for one in identity._compared(alone, set_up, tmp_path, "sampling", "succeeds"))
