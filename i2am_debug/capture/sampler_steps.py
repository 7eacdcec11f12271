"""Which sampler step a denoiser's forward call belongs to, and whether the plan looks at it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..errors import NothingCaptured, UnsupportedModel
from .plan import CapturePlan

_TIME_ARGUMENTS = ("timestep", "timesteps", "t")  # the noise time, as denoisers call it
_SCHEDULERS = ("scheduler", "decoder_scheduler", "noise_scheduler")  # of the denoiser, as pipelines call it
_NEW_TRACE = "open a new `with trace(pipeline)` for each pipeline call"


def scheduler_name(pipeline: Any) -> str | None:
    """Under which name the pipeline has the scheduler of its denoiser: a usual one, or that of its only scheduler; or None."""
    usual = next((n for n in _SCHEDULERS if hasattr(getattr(pipeline, n, None), "step")), None)
    if usual is not None:
        return usual
    parts = ("step", "set_timesteps", "timesteps")
    others = [n for n, one in getattr(pipeline, "__dict__", {}).items() if all(hasattr(one, part) for part in parts)]
    return others[0] if len(others) == 1 else None


Latent = Callable[[Mapping[str, Any]], torch.Tensor | None]
"""The noisy latent among the arguments of a forward call."""


class StepCounter:
    """Which sampler step a denoiser forward belongs to, and whether the plan looks at it.

    Pipelines that run the denoiser twice a step (conditional and unconditional apart) use the same noise time for both, so
    a step is a change of noise time. Where a family knows the latent, such a second run is told from one of another latent:
    samplers of some orders look ahead to the next noise time (PLMS, Heun), and some pipelines cut a large picture into tiles.
    """

    def __init__(
        self,
        plan: CapturePlan,
        scheduler: Any,
        some: Sequence[int] | None = None,
        latent: Latent | None = None,
        *,
        alone: bool = False,
    ) -> None:
        """`alone`: the denoiser is called by hand, at any noise times."""
        self._plan, self._scheduler, self._some, self._latent, self._alone = plan, scheduler, some, latent, alone
        self._first: float | None = None
        self._last: float | None = None
        self._seen: tuple[torch.Tensor, int] | None = None  # the last forward's latent, and its version
        self._latents = 0  # different ones at this noise time
        self.repeat = 0
        """How many forwards just before were given the same latent at the same noise time."""
        self._times: tuple[torch.Tensor, list[float]] | None = None  # the scheduler's, and their numbers
        self.step, self.forward, self.forwards = -1, 0, 0
        self.total: int | None = None
        self.chosen: tuple[int, ...] | None = None if some is None else tuple(some)

    def advance(self, arguments: Mapping[str, Any]) -> bool:
        """Counts one forward call with these arguments; whether the plan looks at it."""
        timestep = next((arguments[n] for n in _TIME_ARGUMENTS if arguments.get(n) is not None), None)
        time = None if timestep is None else self._read(timestep)
        if self.forwards == 0:
            self.total = None if self._scheduler is None else _remaining_steps(self._scheduler, time)
            if self.total is not None:
                drawn = self._plan.draw_steps(self.total)
                self.chosen = drawn if self._some is None else tuple(drawn[n] for n in self._some if n < len(drawn))
            self._first = time
        begins = time is None or time != self._last
        self.forward, self.step = (0, self.step + 1) if begins else (self.forward + 1, self.step)
        self._compare_latents(arguments, begins)
        self._last = time
        self.forwards += 1
        if self.total is not None and self.step >= self.total:
            raise NothingCaptured(
                f"the denoiser ran more than the sampler's {self.total} steps inside one trace; {_NEW_TRACE}"
            )
        if self.total is None and begins:
            self._check_without_scheduler(time)
        return self.chosen is None or self.step in self.chosen

    def _check_without_scheduler(self, time: float | None) -> None:
        """What a scheduler's number of steps tells otherwise."""
        wanted = self._plan.sampler_steps
        if self.step and time is not None and time == self._first and not self._alone:
            raise NothingCaptured(
                f"the denoiser came back to its first noise time, {time:g}, inside one trace: two calls; {_NEW_TRACE}"
            )
        if self.chosen is None and wanted is not None and self.step >= wanted:
            raise UnsupportedModel(
                f"the plan looks at {wanted} of the sampler's steps, but how many there are is not known: no scheduler is "
                "found in what was given to trace. Use CapturePlan(sampler_steps=None) to look at all of them, beside "
                "trace(…, steps=(0, 10, 20)) to look at those of these numbers"
            )

    def _compare_latents(self, arguments: Mapping[str, Any], begins: bool) -> None:
        """Tells guidance, another run with the same latent, from a run with another one.

        Raises:
            UnsupportedModel: so many different latents at one noise time are parts of one picture, or several pictures.
        """
        latent = None if self._latent is None else self._latent(arguments)
        before, self._seen = self._seen, None if latent is None else (latent, _version(latent))
        if begins:
            self.repeat, self._latents = 0, 1
            return
        same = latent is None or before is None or _same(latent, *before)
        self.repeat, self._latents = (self.repeat + 1, self._latents) if same else (0, self._latents + 1)
        # A look-ahead shares its noise time with the step that it looks at, which is never the first.
        if self._latents > (2 if self.step else 1):
            raise UnsupportedModel(
                f"the denoiser was given {self._latents} different latents at one noise time: tiles of a large picture, whose "
                "maps lie on grids of their own and can't be put together, or several pictures in one trace. Look at a "
                f"picture that fits into one tile (PASD: a larger latent_tiled_size), and {_NEW_TRACE}"
            )

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


def _version(x: torch.Tensor) -> int:
    """Grows when it is changed in place."""
    return 0 if x.is_inference() else x._version


def _same(x: torch.Tensor, before: torch.Tensor, version: int) -> bool:
    if _version(before) != version:
        return False  # what it held then is gone: it was written over with the next one
    return x is before or (x.shape == before.shape and torch.equal(x, before))


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
