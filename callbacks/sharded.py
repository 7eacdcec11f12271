"""Models whose forward is a matter of all processes: where they wait, and their state after a forward left half-way.

FSDP2 gathers the weights of a module when its forward begins. Its state is private to torch; all that touches it is in this
file. Moves no weights but by `unshard` and `reshard`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Gate:
    """A module that no process may begin to run unless all do: its forward waits for the others."""

    name: str
    module: nn.Module
    can_be_left: bool
    """Whether an exception inside, on whichever processes, leaves no collective behind that the others wait in."""


def gates(roots: Iterable[Any]) -> list[Gate]:
    """Of all these modules, in an order that is the same on every process; none where no forward talks to another process.

    Every module of FSDP2; of FSDP1 and of ZeRO-3, which gather inside of their forwards, only the outermost; of DDP those
    that hand their buffers round.
    """
    found: dict[nn.Module, Gate] = {}
    for root in roots:
        if not isinstance(root, nn.Module):
            continue
        inside_fsdp1: set[nn.Module] = set()
        for name, module in root.named_modules():
            called = f"{type(root).__name__}.{name}".rstrip(".")
            if isinstance(module, FSDPModule) or _hands_buffers_round(module):
                found.setdefault(module, Gate(called, module, can_be_left=True))
            elif isinstance(module, FullyShardedDataParallel) and module not in inside_fsdp1:
                inside_fsdp1.update(module.modules())
                found.setdefault(module, Gate(called, module, can_be_left=False))
        if any(hasattr(parameter, "ds_id") for parameter in root.parameters()):
            found.setdefault(root, Gate(type(root).__name__, root, can_be_left=False))
    return list(found.values())


def finish_entry(module: Any) -> None:
    """Gathers what an FSDP2 module's own beginning of a forward did not come to, since the others wait for it there."""
    if isinstance(module, FSDPModule):
        state: Any = module._get_fsdp_state()
        for group in [g for s in (state, *state._states_to_forward_prefetch) for g in _groups(s)]:
            group.unshard()


class ShardedModules:
    """The FSDP2 states of modules, to be put back as they were.

    Looking leaves traces in them even when all goes well: the outermost module keeps its gathered weights, which the optimizer
    does not change; and the order of forwards, by which FSDP2 prefetches in the next backward, is one of looking.
    """

    def __init__(self, all_gates: Iterable[Gate]) -> None:
        self._states = list({id(s): s for s in _states(gate.module for gate in all_gates)}.values())
        self._states_were = [(s, s._training_state, s._state_ctx.iter_forward_root) for s in self._states]
        self._groups_were = [
            (g, g._training_state, g.is_sharded, list(g._post_forward_indices))
            for s in self._states
            for g in _groups(s)
        ]
        self._order = {id(s._comm_ctx): len(s._comm_ctx.post_forward_order) for s in self._states if _has_run(s)}

    def put_back(self, *, left_half_way: bool) -> None:
        """`left_half_way`: the processes may have come to different modules, so all weights are sharded, on all of them."""
        for state, training, root in self._states_were:
            state._training_state, state._state_ctx.iter_forward_root = training, root
            if left_half_way:
                getattr(state, "_modules_to_run_forward", set()).clear()
            if not _has_run(state):
                continue
            _drop_gathered(state._comm_ctx)
            del state._comm_ctx.post_forward_order[self._order.get(id(state._comm_ctx), 0) :]
        for group, training, was_sharded, indices in self._groups_were:
            if left_half_way:
                _drop_pending(group)
            group._training_state, group._post_forward_indices = training, indices
            if left_half_way or was_sharded:
                group._to_sharded()


def _hands_buffers_round(module: nn.Module) -> bool:
    return isinstance(module, DistributedDataParallel) and module.will_sync_module_buffers()


def _states(modules: Iterable[nn.Module]) -> Iterator[Any]:
    return (module._get_fsdp_state() for module in modules if isinstance(module, FSDPModule))


def _has_run(state: Any) -> bool:
    return hasattr(state._comm_ctx, "post_forward_order")


def _groups(state: Any) -> list[Any]:
    """Of a module's weights those that are gathered together; an older torch knows one a module."""
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    return [] if state._fsdp_param_group is None else [state._fsdp_param_group]


def _drop_gathered(comm: Any) -> None:
    """What is kept of the last gathering until the next one, or the end of the forward, which did not come."""
    if comm.all_gather_state is not None:
        event = comm.all_gather_state.event
        if event is not None:
            comm.device_handle.current_stream().wait_event(event)
        comm.all_gather_state = None


def _drop_pending(group: Any) -> None:
    """A gathering that was begun ahead, for a module that did not come to run."""
    pending = group._all_gather_result
    if pending is None:
        return
    if pending.all_gather_event is not None:
        group.device_handle.current_stream().wait_event(pending.all_gather_event)
    if hasattr(pending.all_gather_work, "wait"):
        pending.all_gather_work.wait()
    group._all_gather_result = None
