"""A scheduler that makes a pipeline's own call teacher-forced: it scores each prediction and hands back the noised truth.

The scheduler is the one seam that all pipelines share. The one here has the noise table of the pipeline's, but the noise times
of an evaluation; its `step` compares the model's prediction with what it should have been and returns, in place of a sample,
the truth noised for the next time. All else (text, reference, masks, packing, guidance) is the pipeline's.

Not built on the pipeline's own class: PNDM and Heun repeat noise times, and Euler, LMS and Heun scale the model's input by a
step index that only their own `step` advances.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

from ..errors import CannotForce
from .noise_times import over_times

Truth = Callable[[torch.Tensor], torch.Tensor]
"""The pipeline's first latents (B, …) → the truth in their layout; raises `CannotForce` where there is none."""

_KINDS = {"epsilon": "noise", "sample": "sample", "v_prediction": "velocity"}
"""A scheduler's `prediction_type` → what that is."""
_SPREAD = (0.8, 1.25)
"""Standard deviations that the noise of a start may have."""
_SAME = 0.1
"""By how much of its size an input may differ from what was handed back: inpainting blends the original in again."""


class Finished(BaseException):
    """Every noise time was seen; what a pipeline would do now (decode, upscale) is not needed. No error: nothing catches it
    on the way."""


class _Forced:
    """What both kinds of noise table share. The first noise time is pure noise: signal 0, noise 1."""

    timesteps: torch.Tensor
    config: Any

    def force(self, times: Sequence[float], truth: Truth, picture_from: int | None) -> None:
        """What one call is to be scored against.

        Args:
            times: noise times as shares, the noisiest first.
            picture_from: number of the time from whose prediction the pipeline makes its picture; None: it makes none, the
                call ends with `Finished`.
        """
        self.times, self._truth, self._picture_from = tuple(times), truth, picture_from
        self.losses: list[torch.Tensor] = []
        self._errors: list[torch.Tensor] = []
        self._predictions: list[torch.Tensor] = []
        self._clean = self._noise = self._expected = self._predicted = None
        self.set_timesteps()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: Any = None,
        timesteps: Any = None,
        **others: Any,
    ) -> None:
        """The evaluation's own noise times, whatever is asked for."""
        self.num_inference_steps = len(self.times)
        self.timesteps = self._timesteps().to(device)

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        return sample

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: Any) -> torch.Tensor:
        """For pipelines that begin with, or blend in, a noised picture of their own."""
        return self._mixed(original_samples, noise, self._number(timesteps))

    def scale_noise(self, sample: torch.Tensor, timestep: Any, noise: torch.Tensor) -> torch.Tensor:
        return self._mixed(sample, noise, self._number(timestep))

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        *args: Any,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Scores one prediction.

        Raises:
            Finished: after the last one.
            CannotForce: the pipeline's latents are not what they should be.
        """
        number = self._number(timestep)
        if number != len(self.losses):
            raise CannotForce(
                f"the call came to noise time {number + 1} of {len(self.times)} after {len(self.losses)}; it must pass "
                "through all of them, with strength=1 where it takes one"
            )
        self._begin(sample) if number == 0 else self._check(sample)
        assert self._clean is not None and self._noise is not None
        predicted = (
            model_output[:, : sample.shape[1]] if sample.ndim > 3 else model_output
        )  # behind it: learned variance
        if predicted.shape != sample.shape:
            raise CannotForce(f"the prediction is {tuple(predicted.shape)}, the latents are {tuple(sample.shape)}")
        error = predicted.float() - self._target(self.predicts, self._clean, self._noise, number)
        self.losses.append(error.square().flatten(1).mean(1))
        self._errors.append(_over_channels(error.square()))
        self._predictions.append(predicted.float())
        if number == self._picture_from:
            self._predicted = self._clean_of(predicted.float(), sample.float(), number).to(sample.dtype)
        if number + 1 < len(self.times):
            following = self._mixed(self._clean, self._noise, number + 1).to(sample.dtype)
        elif self._predicted is None:
            raise Finished
        else:
            following = self._predicted
        self._expected = following
        return DDIMSchedulerOutput(prev_sample=following) if return_dict else (following,)

    def loss_by_place(self, shares: Sequence[float]) -> torch.Tensor | str:
        """(B, h, w), or (B, tokens) of packed latents, on the CPU: the mean over the noise times, each counted with its share;
        or why there is none."""
        if self._errors[0].ndim == 1:
            return (
                f"latents of shape {tuple(self._clean.shape) if self._clean is not None else ()} have no known places"
            )
        together = torch.stack(self._errors)
        return over_times(torch.tensor(shares), together).cpu()

    def losses_if_it_predicts(self, kinds: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Of each of these kinds that is not the model's own: the losses (times, B) on the CPU of what it predicted in the last
        call, as a training sees them that takes its prediction for that."""
        assert self._clean is not None and self._noise is not None
        for kind in kinds:
            if kind != self.predicts:
                errors = [
                    (predicted - self._target(kind, self._clean, self._noise, number)).square().flatten(1).mean(1)
                    for number, predicted in enumerate(self._predictions)
                ]
                yield kind, torch.stack(errors).cpu()

    def _begin(self, sample: torch.Tensor) -> None:
        spread = float(sample.float().std())
        if not _SPREAD[0] < spread < _SPREAD[1]:
            raise CannotForce(
                f"the call's first latents have a standard deviation of {spread:.2f}, pure noise has 1: it begins elsewhere"
            )
        clean = self._truth(sample)
        if clean.shape != sample.shape:
            raise CannotForce(
                f"the pipeline's latents are {tuple(sample.shape)}, the truth's {tuple(clean.shape)}; encode= says how a "
                "target becomes latents of this pipeline"
            )
        self._clean, self._noise = clean.to(sample.device).float(), sample.float()

    def _check(self, sample: torch.Tensor) -> None:
        assert self._expected is not None
        change = float((sample.float() - self._expected.float()).norm() / self._expected.float().norm())
        if not change < _SAME:
            raise CannotForce(f"the pipeline changed its latents between two steps by {change:.0%} of their size")

    def _number(self, timestep: Any) -> int:
        """Which of the noise times this is, counted from the noisiest."""
        time = torch.as_tensor(timestep).flatten()[:1].to(self.timesteps)
        return int((self.timesteps - time).abs().argmin())

    def _mixed(self, clean: torch.Tensor, noise: torch.Tensor, number: int) -> torch.Tensor:
        signal, share = self._levels(number)
        return signal * clean + share * noise

    # What each kind of table answers ----------------------------------------------------------------------------------

    def _timesteps(self) -> torch.Tensor:
        """(times,) as the model is told them."""
        raise NotImplementedError

    def _levels(self, number: int) -> tuple[float, float]:
        """Of the truth and of the noise in the input at a noise time."""
        raise NotImplementedError

    @property
    def predicts(self) -> str:
        """What the model predicts: "noise", "sample" or "velocity"."""
        raise NotImplementedError

    def _target(self, kind: str, clean: torch.Tensor, noise: torch.Tensor, number: int) -> torch.Tensor:
        """What a model of this kind should predict."""
        return {"noise": noise, "sample": clean}[kind] if kind != "velocity" else self._velocity(clean, noise, number)

    def _velocity(self, clean: torch.Tensor, noise: torch.Tensor, number: int) -> torch.Tensor:
        raise NotImplementedError

    def _clean_of(self, predicted: torch.Tensor, sample: torch.Tensor, number: int) -> torch.Tensor:
        """The clean latents that a prediction means."""
        raise NotImplementedError


def _over_channels(squares: torch.Tensor) -> torch.Tensor:
    """Mean over what is no place: (B, C, h, w), (B, C, frames, h, w) → (B, h, w); (B, tokens, C) → (B, tokens); else (B,)."""
    if squares.ndim == 3:
        return squares.mean(2)
    return squares.flatten(1, -3).mean(1) if squares.ndim in (4, 5) else squares.flatten(1).mean(1)


class ForcedDiffusion(_Forced, DDIMScheduler):
    """Variance-preserving noise tables: `alphas_cumprod`, and a model that predicts noise, sample or velocity."""

    def _timesteps(self) -> torch.Tensor:
        total = len(self.alphas_cumprod)
        return torch.tensor([min(total - 1, int(share * total)) for share in self.times])

    def _levels(self, number: int) -> tuple[float, float]:
        if number == 0:
            return 0.0, 1.0
        kept = float(self.alphas_cumprod[int(self.timesteps[number])])
        return kept**0.5, (1 - kept) ** 0.5

    @property
    def predicts(self) -> str:
        return _KINDS[self.config.prediction_type]

    def _velocity(self, clean: torch.Tensor, noise: torch.Tensor, number: int) -> torch.Tensor:
        signal, share = self._levels(number)
        return signal * noise - share * clean

    def _clean_of(self, predicted: torch.Tensor, sample: torch.Tensor, number: int) -> torch.Tensor:
        signal, share = self._levels(number)
        if self.predicts == "noise":
            return (sample - share * predicted) / max(signal, 1e-3)
        return predicted if self.predicts == "sample" else signal * sample - share * predicted


class ForcedFlow(_Forced, FlowMatchEulerDiscreteScheduler):
    """Flow matching: straight lines from noise to truth, a model that predicts their direction."""

    @property
    def _from_noise(self) -> bool:
        """OmniGen counts time from the noise on, and its direction is that towards the truth."""
        return bool(self.config.invert_sigmas)

    def _timesteps(self) -> torch.Tensor:
        shares = torch.tensor(self.times, dtype=torch.float32)
        shares = 1 - shares if self._from_noise else shares
        self.sigmas = torch.cat([shares, torch.full((1,), float(self._from_noise))])
        return shares * self.config.num_train_timesteps

    def _levels(self, number: int) -> tuple[float, float]:
        return 1 - self.times[number], self.times[number]

    @property
    def predicts(self) -> str:
        return "velocity"

    def _velocity(self, clean: torch.Tensor, noise: torch.Tensor, number: int) -> torch.Tensor:
        return clean - noise if self._from_noise else noise - clean

    def _clean_of(self, predicted: torch.Tensor, sample: torch.Tensor, number: int) -> torch.Tensor:
        return sample + (predicted if self._from_noise else -predicted) * self.times[number]


def forced_scheduler(scheduler: Any) -> ForcedDiffusion | ForcedFlow:
    """The forced scheduler with the noise table of a pipeline's own.

    Raises:
        CannotForce: its noise table is of neither kind.
    """
    config, name = scheduler.config, type(scheduler).__name__
    kind = getattr(config, "prediction_type", "epsilon")
    if "FlowMatch" in name or kind == "flow_prediction" or getattr(config, "use_flow_sigmas", False):
        return ForcedFlow.from_config(config)
    if not hasattr(scheduler, "alphas_cumprod") or getattr(config, "timestep_type", "discrete") != "discrete":
        raise CannotForce(f"its scheduler is a {name}, whose noise table is neither of diffusion nor of flow matching")
    if kind not in _KINDS:
        raise CannotForce(f"its scheduler says that the model predicts {kind!r}; known: {', '.join(_KINDS)}")
    forced = ForcedDiffusion.from_config(config, prediction_type=kind)
    forced.alphas_cumprod = scheduler.alphas_cumprod  # the same table, however its class makes it
    return forced
