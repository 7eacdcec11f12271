"""Wrappers that lead parameters a life of their own: which there are, what of them is left alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

_KEEP_THEIR_OWN_STATE = ("torch.nn.parallel.", "torch.distributed.", "torch._dynamo.", "deepspeed.", "megatron.")


def keeps_its_own_state(module: nn.Module) -> bool:
    """DDP, FSDP1, DeepSpeed's engine, what `torch.compile` returns: to put their attributes back would confuse them.

    FSDP2 makes a class of the module's own one and keeps its state elsewhere, so the attributes are the module's.
    """
    return not _is_fsdp2(module) and f"{type(module).__module__}.".startswith(_KEEP_THEIR_OWN_STATE)


def reshard(roots: Iterable[nn.Module]) -> None:
    """Gives FSDP2's modules the parameters that are trained: in and after a forward they hold gathered ones."""
    for module in dict.fromkeys(module for root in roots for module in root.modules()):
        if _is_fsdp2(module):
            _end_forward(module._get_fsdp_state())
            module.reshard()


def _end_forward(state: Any) -> None:
    """After a forward that raised, FSDP2 takes itself to be inside it still: it would neither reshard now nor gather in the
    next one (torch 2.13; there is no public way)."""
    state._training_state = type(state._training_state).IDLE
    state._state_ctx.iter_forward_root = None
    groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
    for group in filter(None, groups):
        if group._all_gather_result is not None:
            group.wait_for_unshard()
        group._training_state = type(group._training_state).IDLE


def has_reducer(root: nn.Module) -> bool:
    """Whether gradients are reduced by hooks on autograd's nodes, as DDP's are."""
    return any(isinstance(module, nn.parallel.DistributedDataParallel) for module in root.modules())


def inside_fsdp1(modules: Iterable[nn.Module]) -> set[nn.Module]:
    """Those whose parameters FSDP1 exchanges as it goes."""
    outer = [m for m in modules if type(m).__name__ == "FullyShardedDataParallel"]
    return {module for one in outer for module in one.modules()}


def named_tensors(root: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers, as "UNet2DConditionModel.conv_in.weight"; without those that FSDP1 exchanges."""
    inner, exchanged = root, inside_fsdp1(root.modules())
    while keeps_its_own_state(inner) and len(inner._modules) == 1:
        inner = next(iter(inner.children()))
    for prefix, module in inner.named_modules(prefix=type(inner).__name__):
        if module not in exchanged:
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    yield f"{prefix}.{name}", tensor


def _is_fsdp2(module: nn.Module) -> bool:
    return any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__)
