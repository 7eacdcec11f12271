"""A looked-at forward never asks a device for a number: that would keep the processor waiting until all is computed.

On the CPU nothing waits, but the operations that would are the same; those of the model itself are not counted.
"""

from __future__ import annotations

import warnings
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from builders.flux_kontext import TEXT, inputs, tiny_transformer
from diffusers import DDIMScheduler
from test_capture import small_unet
from torch.utils._python_dispatch import TorchDispatchMode

from i2am_debug import trace
from i2am_debug.capture import attention
from i2am_debug.capture.trace import Trace
from i2am_debug.families.flux_kontext import FluxKontext
from i2am_debug.families.unet_cross_attention import UNetCrossAttention

# Numbers that Python asks for, shapes that depend on numbers, and tensors made of Python's numbers (copied to the device).
WAITING = ("_local_scalar_dense", "nonzero", "equal", "lift_fresh", "unique_consecutive", "_unique2", "is_nonzero")


class Waiting(TorchDispatchMode):
    """Counts the operations that would keep a device waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.overloadpacket.__name__
        moved = name == "_to_copy" and (kwargs or {}).get("device") is not None
        if name in WAITING or moved:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


class UNet:
    family = UNetCrossAttention()

    def __init__(self) -> None:
        self.pipeline = SimpleNamespace(unet=small_unet(), scheduler=DDIMScheduler())
        self.pipeline.scheduler.set_timesteps(3)
        self.sample = torch.randn(1, 4, 8, 8).repeat(2, 1, 1, 1)
        self.states = torch.cat([torch.zeros(1, 10, 12), torch.randn(1, 10, 12)])

    def to_cuda(self) -> None:
        self.pipeline.unet.cuda()
        self.pipeline.scheduler.set_timesteps(3, device="cuda")
        self.sample, self.states = self.sample.cuda(), self.states.cuda()

    def run(self, step: int) -> None:
        self.pipeline.unet(self.sample, self.pipeline.scheduler.timesteps[step].expand(2), self.states)


class Kontext:
    family = FluxKontext()

    def __init__(self) -> None:
        self.pipeline = tiny_transformer()
        prompt = dict(encoder_hidden_states=torch.randn(1, TEXT, 12), pooled_projections=torch.randn(1, 8))
        self.given = inputs(1) | prompt
        self.times = torch.tensor([1, 0.75])

    def to_cuda(self) -> None:
        self.pipeline.cuda()
        self.times = self.times.cuda()
        self.given = _on_cuda(self.given)

    def run(self, step: int) -> None:
        self.pipeline(**self.given, timestep=self.times[step : step + 1])


def _on_cuda(x: Any) -> Any:
    if isinstance(x, dict):
        return {name: _on_cuda(value) for name, value in x.items()}
    return x.cuda() if isinstance(x, torch.Tensor) else x


def run(case: Any, step: int, t: Trace | None) -> None:
    with torch.no_grad():
        case.run(step)
        if t is not None:
            t._pending.settle()  # what would wait for others of its kind


def counted(case: Any, step: int, t: Trace | None = None) -> Counter[str]:
    with Waiting() as waiting:
        run(case, step, t)
    return waiting.seen


@pytest.mark.parametrize("case", [UNet, Kontext], ids=["cross-attention", "joint attention"])
def test_a_looked_at_forward_asks_for_no_number_after_the_first(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_READABLE", ())  # as on a device
    case = case()
    mask = torch.zeros(16, 16)
    mask[4:12, 4:12] = 1
    plain = counted(case, 1)
    with trace(case.pipeline, family=case.family, mask=mask.numpy(), reference_mask=mask.numpy()) as t:
        run(case, 0, t)  # reads what holds for the whole call
        looked_at = counted(case, 1, t)
    if isinstance(case, Kontext):  # its noise time is no view of a scheduler's, and is read before the model begins
        plain["_local_scalar_dense"] += 1
    assert looked_at == plain
    assert len(t.maps().steps) == 2


def test_waiting_would_be_seen() -> None:
    x = torch.arange(4.0)
    for wait in (lambda: x[0].item(), lambda: bool(x.any()), lambda: x.nonzero(), lambda: torch.tensor([1.0])):
        with Waiting() as waiting:
            wait()
        assert sum(waiting.seen.values()) == 1


def waits(case: Any, step: int, t: Trace | None = None) -> int:
    """How often CUDA itself says that a forward waits."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run(case, step, t)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(one.message) for one in seen)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("case", [UNet, Kontext], ids=["cross-attention", "joint attention"])
def test_cuda_itself_sees_no_waiting(case: Any) -> None:
    case = case()
    case.to_cuda()
    plain = [waits(case, 1) for _ in range(3)][-1]  # the first ones prepare libraries
    mask = torch.zeros(16, 16)
    mask[4:12, 4:12] = 1
    with trace(case.pipeline, family=case.family, mask=mask.numpy(), reference_mask=mask.numpy()) as t:
        run(case, 0, t)
        assert waits(case, 1, t) == plain + isinstance(case, Kontext)  # its noise time, before the model begins


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_says_when_something_waits() -> None:
    assert waits(SimpleNamespace(run=lambda step: torch.ones(1, device="cuda").item()), 0) == 1
