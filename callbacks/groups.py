"""The processes that train together, as Accelerate or torch.distributed knows them: who is first, what they exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import distributed, nn


class Group(Protocol):
    """What `processes.GroupProcesses` is built on."""

    @property
    def is_main(self) -> bool: ...

    @property
    def several(self) -> bool: ...

    @property
    def device(self) -> torch.device:
        """Where this process's numbers are exchanged."""
        ...

    def trained(self) -> Iterable[nn.Module]:
        """The modules that are being trained, with their wrappers."""
        ...

    def share(self, work: list[Any]) -> list[Any]:
        """This process's part of the work, which is not empty; padded with repetitions so that all parts are of one length."""
        ...

    def gather(self, told: Any) -> list[Any]:
        """What every process tells, in their order; asked where there are several."""
        ...

    def from_main(self, told: Any) -> Any:
        """What the main process tells; asked where there are several."""
        ...

    def wait(self) -> None:
        """Until all have come here."""
        ...


class AccelerateGroup:
    """The processes of an Accelerate run."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator

    @property
    def is_main(self) -> bool:
        return bool(self._accelerator.is_main_process)

    @property
    def several(self) -> bool:
        return bool(self._accelerator.num_processes > 1)

    @property
    def device(self) -> torch.device:
        return self._accelerator.device

    def trained(self) -> Iterable[nn.Module]:
        return list(self._accelerator._models)

    def share(self, work: list[Any]) -> list[Any]:
        with self._accelerator.split_between_processes(work, apply_padding=True) as mine:
            return list(mine)

    def gather(self, told: Any) -> list[Any]:
        return list(gather_object([told]))

    def from_main(self, told: Any) -> Any:
        return broadcast_object_list([told])[0]

    def wait(self) -> None:
        self._accelerator.wait_for_everyone()


class TorchGroup:
    """The processes of torch.distributed's default group, in a loop that does without Accelerate; alone where there is none.

    Args:
        trained: gives the modules that are being trained, with their wrappers.
    """

    def __init__(self, trained: Callable[[], Iterable[nn.Module]]) -> None:
        self.trained = trained

    @property
    def is_main(self) -> bool:
        return self._rank == 0

    @property
    def several(self) -> bool:
        return self._count > 1

    @property
    def device(self) -> torch.device:
        accelerator = None if "gloo" in distributed.get_backend() else torch.accelerator.current_accelerator()
        return accelerator or torch.device("cpu")

    def share(self, work: list[Any]) -> list[Any]:
        each = -(-len(work) // self._count)
        mine = work[self._rank * each :][:each]
        return mine + work[-1:] * (each - len(mine))

    def gather(self, told: Any) -> list[Any]:
        everybody: list[Any] = [None] * self._count
        distributed.all_gather_object(everybody, told)
        return everybody

    def from_main(self, told: Any) -> Any:
        box = [told]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        if self.several:
            distributed.barrier()

    @property
    def _is_alone(self) -> bool:
        return not (distributed.is_available() and distributed.is_initialized())

    @property
    def _count(self) -> int:
        return 1 if self._is_alone else distributed.get_world_size()

    @property
    def _rank(self) -> int:
        return 0 if self._is_alone else distributed.get_rank()
