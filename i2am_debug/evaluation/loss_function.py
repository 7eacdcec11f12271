"""The way of a loss function: pairs are seen in a few forwards on their noised truth. Gives the losses and the gap too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..capture.trace import find_denoiser
from ..errors import NothingCaptured, UnsupportedModel
from ..figures.observation import Observation, maps_of
from ..figures.values import Figure, Undefined, as_figure
from .noise_times import times_of_a_gap, weights
from .references import blank_colour, blank_reference

if TYPE_CHECKING:
    from .evaluator import Evaluator

LossFunction = Callable[..., torch.Tensor]
"""`loss_fn(pairs, timesteps, generator, reference=None)` → loss of each pair, shape (B,).

`pairs` is a list of B `ValidationPair`; `timesteps` (B,) int64 on the CPU; `generator` a CPU generator for the noise;
`reference`, when given, a list of B pictures to use in place of each pair's own. It must run the pipeline's own denoiser."""

_NOISE_TIMES = 10  # where the plan does not say how many


def observe_by_loss(evaluator: Evaluator, pipeline: Any, batch: Sequence[int]) -> list[Observation]:
    """Runs the pairs of one batch through the loss function, capturing those forwards that have the right reference.

    Raises:
        NothingCaptured, UnsupportedModel: the loss function does something else than `LossFunction` says.
    """
    assert evaluator.loss_fn is not None
    loss_fn, pairs = evaluator.loss_fn, [evaluator.pairs[i] for i in batch]
    others = [evaluator.pairs[(i + 1) % len(evaluator.pairs)].reference for i in batch]
    times = _noise_times(evaluator.plan.sampler_steps or _NOISE_TIMES, pipeline)

    def losses(references: Any, numbers: Sequence[int]) -> torch.Tensor:
        """(numbers, B); the same noise for the same pairs and noise time whatever the reference."""
        found = []
        for number in numbers:
            generator = torch.Generator().manual_seed(evaluator.seed + 7919 * number + 104729 * batch[0])
            timesteps = torch.full((len(pairs),), times[number], dtype=torch.int64)
            found.append(_checked(loss_fn(pairs, timesteps, generator, reference=references), len(pairs)))
        return torch.stack(found)

    every = range(len(times))
    # The denoiser alone is traced: the pipeline's scheduler has no part in these forwards.
    with evaluator.trace(find_denoiser(pipeline), pairs, family=evaluator.family_of(pipeline)) as t:
        own = losses(None, every)
    other = losses(others, every) if len(evaluator.pairs) > 1 else None
    colour = blank_colour(pipeline, evaluator.family_of(pipeline))
    few = times_of_a_gap([time / times[0] for time in times])
    share = torch.tensor(weights([times[n] / times[0] for n in few]))
    blank = own.mean(0) + share @ (losses([blank_reference(pair, colour) for pair in pairs], few) - own[few])
    try:
        maps = [maps_of(t, row) for row in range(len(batch))]
    except NothingCaptured as error:
        raise NothingCaptured(f"{error}. The loss_fn must run the pipeline's own denoiser, not a copy of it") from None
    except IndexError:
        raise UnsupportedModel(
            f"loss_fn got {len(batch)} pairs, but the denoiser's batch held {t.images} images; run all pairs in one "
            "forward, without classifier-free guidance"
        ) from None
    return [
        Observation(
            index=index,
            maps=own_maps,
            further=further,
            generated=None,
            loss=_mean(own[:, row]),
            wrong_reference_loss=Undefined("one pair") if other is None else _mean(other[:, row]),
            no_reference_loss=_mean(blank[row]),
        )
        for row, (index, (own_maps, further)) in enumerate(zip(batch, maps, strict=True))
    ]


def _checked(loss: Any, pairs: int) -> torch.Tensor:
    if not isinstance(loss, torch.Tensor) or tuple(loss.shape) != (pairs,):
        got = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise UnsupportedModel(
            f"loss_fn must return one loss a pair, a tensor of shape ({pairs},); got {got}. "
            "Average over channels and pixels only: loss.mean((1, 2, 3))"
        )
    return loss.detach().float().cpu()


def _mean(losses: torch.Tensor) -> Figure:
    return as_figure(float(losses.mean()), "the loss is not finite")


def _noise_times(count: int, pipeline: Any) -> list[int]:
    """Evenly spread noise times, the noisiest first."""
    config = getattr(getattr(pipeline, "scheduler", None), "config", {})
    total = int(config.get("num_train_timesteps", 1000))
    return [int((count - i - 0.5) / count * total) for i in range(count)]
