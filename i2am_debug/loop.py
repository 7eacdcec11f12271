"""What a training loop hands to the monitor: the processes that train together, and where a run is written."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from PIL import Image

from .alerts.alert import Alert
from .figures.record import Evaluation
from .figures.values import Undefined

T = TypeVar("T")


class Processes(Protocol):
    """The processes that train together; all of them call the same methods in the same order.

    One that is called on some processes only raises `ProcessMissing` there, rather than waiting for ever.
    """

    @property
    def is_main(self) -> bool: ...

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        ...

    def share(self, work: list[Any]) -> list[Any]:
        """This process's part of the work; all parts are of one length, padded with repetitions."""
        ...

    def in_lockstep(self, pipeline: Any) -> AbstractContextManager[None]:
        """A block whose forwards of a sharded pipeline are equal on all processes: an error in it on one is one on all.

        It needs none of the other methods around it, and costs nothing where no forward waits for another process.
        """
        ...

    def agree(self, work: Callable[[], T]) -> T:
        """What `work` returns on this process; an error on one is an error on all."""
        ...

    def gather(self, work: Callable[[], T]) -> list[T]:
        """What `work` returns on each process, on every process; an error on one is an error on all."""
        ...

    def from_main(self, work: Callable[[], T]) -> T:
        """What `work` returns on the main process, on every process; its error too."""
        ...

    def wait(self) -> None:
        """Until all have come here."""
        ...


class Trackers(Protocol):
    """Where a run's figures and pictures are written, on its main process."""

    @property
    def folder(self) -> Path:
        """The run's folder, in which its evaluations are stored."""
        ...

    @property
    def figures_in_order(self) -> bool:
        """Whether figures and words have to be handed over by the training's own thread, before the run's steps go on."""
        ...

    @property
    def pictures_in_order(self) -> bool:
        """Whether a picture has to be handed over before the run's steps go on."""
        ...

    def scalars(self, evaluation: Evaluation, copying_layer: str | Undefined) -> None:
        """Writes the figures; called from a thread of its own, unless `figures_in_order`, as is `alert`."""
        ...

    def alert(self, alert: Alert | None, global_step: int) -> None: ...
    def picture(self, tag: str, picture: Image.Image, global_step: int) -> None:
        """Writes one picture; called from a thread of its own, unless `pictures_in_order`."""
        ...

    def flush(self) -> None:
        """Makes the pictures visible."""
        ...

    def close(self) -> None: ...
