"""Which way pairs are looked at, and why: a loss function if given, else teacher forcing, else sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from ..errors import CannotForce
from ..figures.observation import Observation
from ..figures.values import Figure
from .loss_function import observe_by_loss, probe_by_loss
from .sampling import observe_by_sampling, probe_by_sampling
from .teacher_forcing import check_teacher_forcing, observe_by_teacher_forcing, probe_by_teacher_forcing

if TYPE_CHECKING:
    from .evaluator import Evaluator

WayName = Literal["loss_fn", "teacher_forcing", "sampling"]
WAYS: tuple[str, ...] = get_args(WayName)

_OBSERVE: dict[str, Callable[[Evaluator, Any, Sequence[int]], list[Observation]]] = {
    "loss_fn": observe_by_loss,
    "teacher_forcing": observe_by_teacher_forcing,
    "sampling": observe_by_sampling,
}
_PROBE: dict[str, Callable[[Evaluator, Any, Sequence[int]], list[dict[str, Figure]]]] = {
    "loss_fn": probe_by_loss,
    "teacher_forcing": probe_by_teacher_forcing,
    "sampling": probe_by_sampling,
}


@dataclass(frozen=True, kw_only=True)
class Way:
    """How the pairs of a run are looked at."""

    name: WayName
    instead: str = ""
    """Why it is this one and not teacher forcing; empty where nothing was fallen back from."""

    def observe(self, evaluator: Evaluator, pipeline: Any, batch: Sequence[int]) -> list[Observation]:
        """Runs the pairs of these numbers, capturing."""
        return _OBSERVE[self.name](evaluator, pipeline, batch)

    def probe(self, evaluator: Evaluator, pipeline: Any, batch: Sequence[int]) -> list[dict[str, Figure]]:
        """Of each of these pairs: name of the probe (`probes.PROBES`) → its loss."""
        return _PROBE[self.name](evaluator, pipeline, batch)


def choose_way(evaluator: Evaluator, pipeline: Any) -> Way:
    """The way asked for; else the loss function if there is one, else teacher forcing if the pipeline's call allows it (which
    is tried on a pair of each size), else sampling.

    Raises:
        CannotForce: teacher forcing was asked for, by name or by `encode`, and can't be.
    """
    if evaluator.way is not None:
        if evaluator.way == "teacher_forcing":
            check_teacher_forcing(evaluator, pipeline)
        return Way(name=evaluator.way)
    if evaluator.loss_fn is not None:
        return Way(name="loss_fn")
    try:
        with evaluator.in_lockstep(pipeline):
            check_teacher_forcing(evaluator, pipeline)
    except torch.OutOfMemoryError:
        raise  # sampling would need as much
    except CannotForce as error:
        if evaluator.encode is not None:
            raise  # somebody who says how targets become latents wants no sampling
        return Way(name="sampling", instead=str(error))
    except Exception as error:  # sampling may work all the same, and if it doesn't, its own error is the one to read
        return Way(name="sampling", instead=f"the teacher-forced call raised {type(error).__name__}: {error}")
    return Way(name="teacher_forcing")
