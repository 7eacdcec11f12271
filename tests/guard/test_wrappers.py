"""Wrappers that lead parameters a life of their own, in one process: their training goes on as if nothing was."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from described import described, differences
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from i2am_debug.errors import TrainingChanged
from i2am_debug.guard import state_guard
from i2am_debug.guard.state_guard import StateGuard


@pytest.fixture(autouse=True, scope="module")
def _group_of_one():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))


def train(model: nn.Module, steps: int = 3, between=lambda: None) -> list[torch.Tensor]:
    """Weights after some steps, whole; `between` is called after each."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    numbers = torch.Generator().manual_seed(1)
    for _ in range(steps):
        model(torch.randn(2, 4, generator=numbers)).pow(2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        between()
    return [getattr(p, "full_tensor", lambda p=p: p)().detach().clone() for p in model.parameters()]


def look(model: nn.Module) -> None:
    with StateGuard([model]) as guard, torch.no_grad():
        guard.watch([model])
        model(torch.ones(2, 4))


def assert_the_same(ours, theirs):
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_ddp_trains_as_before_and_still_reduces():
    expected = train(layers())
    reduced = []
    model = DistributedDataParallel(layers())

    def hook(state, bucket):
        reduced.append(True)
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    model.register_comm_hook(None, hook)
    assert_the_same(train(model, between=lambda: look(model)), expected)
    assert len(reduced) == 3


@pytest.mark.parametrize("move", ["half", "double"])
def test_ddp_does_not_survive_another_dtype_and_this_is_an_error(move):
    model = DistributedDataParallel(layers())
    reduced = []
    model.register_comm_hook(None, lambda state, bucket: reduced.append(True))
    wanted = "hooks by which DistributedDataParallel exchanges gradients are gone"
    with pytest.raises(TrainingChanged, match=wanted), StateGuard([model]):
        getattr(model.module, move)()
    model(torch.ones(2, 4)).sum().backward()
    assert reduced == [], "if torch now keeps these hooks the error can go"


def sharded() -> nn.Module:
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("FSDP2 is in torch from 2.6 on")
    model = layers()
    for layer in (model[0], model[2]):
        fsdp.fully_shard(layer)
    return fsdp.fully_shard(model)


def test_fsdp2_trains_as_before():
    expected = train(layers())
    model = sharded()
    look(model)
    assert_the_same(train(model, between=lambda: look(model)), expected)


def test_fsdp2_is_compared_sharded(monkeypatch):
    model = sharded()
    before = [id(parameter) for parameter in model.parameters()]
    look(model)
    assert [id(parameter) for parameter in model.parameters()] == before
    monkeypatch.setattr(state_guard, "reshard", lambda roots: None)
    with torch.no_grad():
        model.eval()(torch.ones(2, 4))
    assert [id(parameter) for parameter in model.parameters()] != before, "or there would be nothing to reshard"


def test_fsdp2_another_dtype_is_undone():
    model = sharded()
    before = described(*(parameter._local_tensor for parameter in model.parameters()))
    with StateGuard([model]):
        model.to(torch.bfloat16)
    after = described(*(parameter._local_tensor for parameter in model.parameters()))
    lasting = [path for path in differences(before, after) if "bytes" in path]
    assert lasting == []
    assert_the_same(train(model), train(layers()))


def test_fsdp2_a_write_is_an_error():
    model = sharded()
    with pytest.raises(TrainingChanged, match=r"'FSDPSequential\.0\.weight'"), StateGuard([model]), torch.no_grad():
        model[0].weight._local_tensor.add_(1.0)


def test_fsdp2_a_forward_that_raises_half_way_leaves_it_trainable():
    model = sharded()

    def stop(*_):
        raise ZeroDivisionError("planted")

    def look_and_fail():
        handle = model[2].register_forward_hook(stop)
        with pytest.raises(ZeroDivisionError):
            look(model)
        handle.remove()

    assert_the_same(train(model, between=look_and_fail), train(layers()))


@pytest.mark.parametrize("how", ["torch.compile", "module.compile"])
def test_compiled_modules_train_as_before(how):
    expected = train(layers())
    model = layers()
    if how == "torch.compile":
        model = torch.compile(model, backend="eager")
    else:
        model.compile(backend="eager")
    look(model)
    assert_the_same(train(model, between=lambda: look(model)), expected)


def test_zero3_parameters_are_left_alone():
    model = layers()
    model[0].weight.ds_id = 0
    with StateGuard([model]):
        model[0].weight.data = torch.zeros(0)  # what partitioning does
    assert model[0].weight.numel() == 0
