"""Forwards that the processes must make together: before each they tell each other whether all go on.

A sharded model's forward waits for the other processes. If one of them has failed meanwhile it never comes, and they wait for
ever, or meet it in another collective and die. So while looking, the processes exchange a few numbers before every module that
gathers weights, and at the end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import distributed

from i2am_debug.errors import ProcessFailed

from .sharded import Gate, ShardedModules, finish_entry, gates

logger = logging.getLogger("i2am_debug")

_END = 0  # the place of a process that has done its share; gates are counted from 1


class Lockstep:
    """Keeps the forwards of several processes in step.

    Args:
        exchange: numbers → the greatest of each over all processes.
        gather: a text → those of all processes, in their order.
    """

    def __init__(self, exchange: Callable[[Sequence[int]], list[int]], gather: Callable[[str], list[str]]) -> None:
        self._exchange, self._gather = exchange, gather
        self._gates: list[Gate] = []
        self._depth = 0
        self._failed_at: int | None = None  # how deep the outermost block is that a failure ends
        self._why = ""
        self._begun: Gate | None = None  # its weights may be half gathered
        self._inside: Gate | None = None  # of those that can't be left

    @contextmanager
    def over(self, roots: Iterable[Any]) -> Iterator[None]:
        """While inside, a process that fails ends the block on all of them, whether their forwards gather weights or not yet.

        Blocks may lie inside each other; a failure ends the block it comes out of.

        Raises:
            ProcessFailed: another process failed, or the forwards are not equal.
        """
        outermost = self._depth == 0
        if outermost:
            self._gates = gates(roots)
        if not self._gates:
            yield
            return
        sharded, ended_well = ShardedModules(self._gates), False
        handles = self._hooked() if outermost else []
        eager = torch.compiler.set_stance("force_eager")  # compiled modules skip hooks added after compilation
        self._depth += 1
        try:
            yield
            self._meet(_END)
            ended_well = True
        except Exception as error:
            self._tell(error)
            raise
        finally:
            eager.__exit__(None, None, None)
            for handle in handles:
                handle.remove()
            sharded.put_back(left_half_way=not ended_well)
            if self._failed_at == self._depth:
                self._failed_at = None
            self._depth -= 1

    def _hooked(self) -> list[Any]:
        handles = []
        for place, gate in enumerate(self._gates, 1):
            before, behind = partial(self._before, place, gate), partial(self._entered, gate)
            handles += [
                gate.module.register_forward_pre_hook(before, prepend=True),  # before FSDP2's own, which gathers
                gate.module.register_forward_pre_hook(behind),
                gate.module.register_forward_hook(partial(self._left, gate)),
            ]
        return handles

    def _before(self, place: int, gate: Gate, *_: Any) -> None:
        self._meet(place)
        self._begun = gate

    def _entered(self, gate: Gate, *_: Any) -> None:
        self._begun = None
        if not gate.can_be_left:
            self._inside = gate

    def _left(self, gate: Gate, *_: Any) -> None:
        if self._inside is gate:
            self._inside = None

    def _tell(self, error: Exception) -> None:
        """The others of a failure here, unless all know of one that ends this block."""
        if self._failed_at is not None:
            return
        if self._inside is not None:
            _say_that_the_others_wait(self._inside, error)
            self._inside = None
        self._meet(_END, f"{type(error).__name__}: {error}")

    def _finish_what_was_begun(self) -> None:
        """An exception came out of a collective itself; the others are in it."""
        begun, self._begun = self._begun, None
        if begun is not None:
            try:
                finish_entry(begun.module)
            except Exception as error:
                _say_that_the_others_wait(begun, error)

    def _meet(self, place: int, failure: str = "") -> None:
        if self._failed_at is not None:
            raise ProcessFailed(self._why)
        self._finish_what_was_begun()
        depth, failed = self._depth, bool(failure)
        any_failed, high, low, deepest, shallowest = self._exchange([failed, place, -place, depth, -depth])
        if not any_failed and (high, deepest) == (-low, -shallowest):
            return
        self._failed_at = -shallowest
        told = self._gather(failure)
        self._why = f"another process failed: {next((text for text in told if text), '')}"
        if not any_failed:
            where = self._gather("has ended" if place == _END else f"begins {self._gates[place - 1].name}")
            places = "; ".join(f"process {number} {text}" for number, text in enumerate(where))
            self._why = (
                f"the processes do not run the same forwards ({places}), which a sharded model needs; what is called, such as "
                "loss_fn= or call=, must run as many on every process, whatever the pair"
            )
        if not failed:
            raise ProcessFailed(self._why)


def _say_that_the_others_wait(gate: Gate, error: Exception) -> None:
    logger.critical(
        "i2am: looking failed inside a forward of %s, whose collectives can't be finished: %s: %s. If the other processes wait "
        "in one, the process group will end the training at its timeout; batch_size=1 takes less memory, and "
        "docs/training-loops.md says what is covered of sharded models",
        gate.name,
        type(error).__name__,
        error,
    )


def greatest(device: torch.device, numbers: Sequence[int]) -> list[int]:
    """The greatest of each number over all processes.

    On a stream of its own, so that it waits for the other processes, not for what the accelerator has still to compute.
    """
    module = torch.get_device_module(device)
    with nullcontext() if device.type == "cpu" else module.stream(module.Stream(device)):
        told = torch.tensor([int(number) for number in numbers], device=device)
        distributed.all_reduce(told, distributed.ReduceOp.MAX)
        greatest_of_all: list[int] = told.tolist()
        return greatest_of_all
