"""Which sampler step a denoiser's forward call belongs to, and whether the plan looks at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import NothingCaptured
from .plan import CapturePlan

_TIME_ARGUMENTS = ("timestep", "timesteps", "t")  # the noise time, as denoisers call it


class StepCounter:
    """Which sampler step a denoiser forward belongs to, and whether the plan looks at it.

    Pipelines that run the denoiser twice a step (conditional and unconditional apart) use the same noise time for both, so
    a step is a change of noise time.
    """

    def __init__(self, plan: CapturePlan, scheduler: Any, some: Sequence[int] | None = None) -> None:
        self._plan, self._scheduler, self._some = plan, scheduler, some
        self._last: float | None = None
        self._times: tuple[torch.Tensor, list[float]] | None = None  # the scheduler's, and their numbers
        self.step, self.forward, self.forwards = -1, 0, 0
        self.total: int | None = None
        self.chosen: tuple[int, ...] | None = None if some is None else tuple(some)

    def advance(self, arguments: Mapping[str, Any]) -> bool:
        """Counts one forward call with these arguments; whether the plan looks at it."""
        timestep = next((arguments[n] for n in _TIME_ARGUMENTS if arguments.get(n) is not None), None)
        time = None if timestep is None else self._read(timestep)
        if self.forwards == 0 and self._scheduler is not None:
            self.total = _remaining_steps(self._scheduler, time)
            if self.total is not None:
                drawn = self._plan.draw_steps(self.total)
                self.chosen = drawn if self._some is None else tuple(drawn[n] for n in self._some if n < len(drawn))
        self.forward += 1
        if time is None or time != self._last:
            self.step, self.forward = self.step + 1, 0
        self._last = time
        self.forwards += 1
        if self.total is not None and self.step >= self.total:
            raise NothingCaptured(
                f"the denoiser ran more than the sampler's {self.total} steps inside one trace; "
                "open a new `with trace(pipeline)` for each pipeline call"
            )
        return self.chosen is None or self.step in self.chosen

    def _read(self, timestep: Any) -> float:
        """The noise time; without a look at the tensor where it is a view of the scheduler's own, which are read once."""
        times = getattr(self._scheduler, "timesteps", None)
        if not isinstance(timestep, torch.Tensor) or not isinstance(times, torch.Tensor):
            return float(torch.as_tensor(timestep).flatten()[0])
        same = (
            timestep.dtype == times.dtype
            and timestep.untyped_storage().data_ptr() == times.untyped_storage().data_ptr()
        )
        if not same:
            return float(timestep.flatten()[0])
        if self._times is None or self._times[0] is not times:
            self._times = times, times.flatten().tolist()
        return float(self._times[1][(timestep.storage_offset() - times.storage_offset()) // (times.stride(-1) or 1)])


def _remaining_steps(scheduler: Any, time: float | None) -> int | None:
    """Steps from the one at noise time `time` on; image-to-image calls with a strength skip the first ones."""
    times = getattr(scheduler, "timesteps", None)
    if times is None or getattr(scheduler, "num_inference_steps", None) is None:
        return None
    times = torch.as_tensor(times).flatten().tolist()
    begin = getattr(scheduler, "begin_index", None)  # several pipelines hand the denoiser a time that is scaled
    if begin is None:
        begin = times.index(time) if time in times else 0
    return len(times) - begin
