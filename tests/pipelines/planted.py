"""A denoiser that knows the truth: what it must predict, and what it must have been given, at every noise time.

Shares nothing with what it checks: the truth comes from the pipeline's own methods, the noise is that of the first input, and
the noise levels are those of the pipeline's own scheduler.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from i2am_debug.capture.trace import find_denoiser


@dataclass(frozen=True, kw_only=True)
class NoiseTable:
    """What a pipeline's own scheduler says of a noise time."""

    scheduler: Any

    @property
    def flows(self) -> bool:
        config = self.scheduler.config
        return "FlowMatch" in type(self.scheduler).__name__ or bool(config.get("use_flow_sigmas"))

    @property
    def from_noise(self) -> bool:
        """OmniGen's time is 0 at pure noise, and it predicts the way from there."""
        return bool(self.scheduler.config.get("invert_sigmas"))

    def levels(self, time: float) -> tuple[float, float]:
        """Of truth and noise in the input; the first noise time is pure noise, also where the table keeps a trace of signal."""
        if self.flows:
            share = time / 1000 if time > 1 else time  # some models are told thousandths, some shares
            share = 1 - share if self.from_noise else share
            return 1 - share, share
        if int(time) == len(self.scheduler.alphas_cumprod) - 1:
            return 0.0, 1.0
        kept = self.scheduler.alphas_cumprod[int(time)]
        return float(kept.sqrt()), float((1 - kept).sqrt())

    def target(self, clean: torch.Tensor, noise: torch.Tensor, time: float) -> torch.Tensor:
        if self.flows:
            return clean - noise if self.from_noise else noise - clean
        kind = self.scheduler.config.prediction_type
        signal, share = self.levels(time)
        return {"epsilon": noise, "sample": clean, "v_prediction": signal * noise - share * clean}[kind]


@dataclass
class Seen:
    """What the denoiser was given in one forward."""

    time: float
    error: float
    """Largest difference between the input and the noised truth."""
    spread: float
    """Standard deviation of what is left of the input without the truth's part, over that of the noise."""


@dataclass
class Record:
    forwards: list[Seen] = field(default_factory=list)
    noise: torch.Tensor | None = None
    """Of the first input."""


def place_of(arguments: dict[str, Any], clean: torch.Tensor) -> tuple[slice, ...]:
    """Where the generated picture lies in the denoiser's input, behind the batch."""
    place = [slice(0, side) for side in clean.shape[1:]]
    if arguments.get("kv_cache_mode") == "extract":  # Klein with a cache puts the references before it
        place[0] = slice(-clean.shape[1], None)
    return tuple(place)


@contextmanager
def planted(pipeline: Any, table: NoiseTable, clean: torch.Tensor) -> Iterator[Record]:
    """Replaces the denoiser's prediction by what `clean`, (1, …), and the noise of the first input make right.

    Everything else of its output stays: reference tokens, the other half of a wide picture, a learned variance.
    """
    denoiser, record = find_denoiser(pipeline), Record()
    real, signature = denoiser.forward, inspect.signature(denoiser.forward)

    def forward(*args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind(*args, **kwargs).arguments
        arguments = {**arguments.pop("kwargs", {}), **arguments}
        sample = arguments["sample"] if "sample" in arguments else arguments["hidden_states"]
        given = sample[(slice(None), *place_of(arguments, clean))]
        time = float(torch.as_tensor(arguments["timestep"]).flatten()[0])
        if record.noise is None:
            assert table.levels(time) == (0, 1), f"the first noise time, {time}, is not pure noise"
            record.noise = given[:1].clone()
        signal, share = table.levels(time)
        expected, left = signal * clean + share * record.noise, (given - signal * clean) / share
        record.forwards.append(
            Seen(time, float((given - expected).abs().max()), float(left.std() / record.noise.std()))
        )
        output = real(*args, **kwargs)
        prediction = output[0]
        prediction[(slice(None), *(slice(0, side) for side in clean.shape[1:]))] = table.target(
            clean, record.noise, time
        )
        return output

    denoiser.forward = forward
    try:
        yield record
    finally:
        del denoiser.forward
