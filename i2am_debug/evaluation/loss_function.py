"""The way of a loss function: pairs are seen in a few forwards on their noised truth. Gives the losses and the gap too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..capture.trace import find_denoiser
from ..errors import NothingCaptured, UnsupportedModel
from ..figures.observation import Observation, maps_of
from ..figures.values import Figure, Undefined, as_figure
from ..pairs.pair import ValidationPair
from .noise_times import over_times, times_of_a_gap, weights
from .probes import What, probe
from .references import blank_colour, blank_reference

if TYPE_CHECKING:
    from .evaluator import Evaluator

LossFunction = Callable[..., torch.Tensor]
"""`loss_fn(pairs, timesteps, generator, reference=None)` → loss of each pair, shape (B,), or of each place, (B, h, w).

`pairs` is a list of B `ValidationPair`; `timesteps` (B,) int64 on the CPU; `generator` a CPU generator for the noise;
`reference`, when given, a list of B pictures to use in place of each pair's own. It must run the pipeline's own denoiser."""

_NOISE_TIMES = 10  # where the plan does not say how many
_NO_MAP = "loss_fn gives one number a pair; one a place, (B, h, w), would tell"


def observe_by_loss(evaluator: Evaluator, pipeline: Any, batch: Sequence[int]) -> list[Observation]:
    """Runs the pairs of one batch through the loss function, capturing those forwards that have the right reference.

    Raises:
        NothingCaptured, UnsupportedModel: the loss function does something else than `LossFunction` says.
    """
    forwards = _Forwards(evaluator, pipeline, batch)
    pairs, times = forwards.pairs, forwards.times
    others = [evaluator.pairs[(i + 1) % len(evaluator.pairs)].reference for i in batch]
    every = range(len(times))
    # The denoiser alone is traced: the pipeline's scheduler has no part in these forwards.
    with evaluator.trace(find_denoiser(pipeline), pairs, family=evaluator.family_of(pipeline)) as t:
        own_by_place = forwards.run(None, every)
    own = _by_pair(own_by_place)
    other = _by_pair(forwards.run(others, every)) if len(evaluator.pairs) > 1 else None
    colour = blank_colour(pipeline, evaluator.family_of(pipeline))
    blank = _by_pair(forwards.run([blank_reference(pair, colour) for pair in pairs], forwards.few))
    without = own.mean(0) + over_times(forwards.share, blank - own[forwards.few])
    try:
        maps = [maps_of(t, row) for row in range(len(batch))]
    except NothingCaptured as error:
        raise NothingCaptured(f"{error}. The loss_fn must run the pipeline's own denoiser, not a copy of it") from None
    except IndexError:
        raise UnsupportedModel(
            f"loss_fn got {len(batch)} pairs, but the denoiser's batch held {t.images} images; run all pairs in one "
            "forward, without classifier-free guidance. A family that takes two pairs of the same noise for guidance is told "
            "that there is none: family=…(guidance=False)"
        ) from None
    return [
        Observation(
            index=index,
            maps=own_maps,
            further=further,
            generated=None,
            loss=_mean(own[:, row]),
            wrong_reference_loss=Undefined("one pair") if other is None else _mean(other[:, row]),
            no_reference_loss=_mean(without[row]),
            loss_map=own_by_place[:, row].mean(0).numpy() if own_by_place.ndim == 4 else None,
            no_loss_map=_NO_MAP,
        )
        for row, (index, (own_maps, further)) in enumerate(zip(batch, maps, strict=True))
    ]


def probe_by_loss(evaluator: Evaluator, pipeline: Any, batch: Sequence[int]) -> list[dict[str, Figure]]:
    """The losses of the pairs of one batch, changed, at the two noise times of the blank reference."""
    forwards = _Forwards(evaluator, pipeline, batch)

    def losses(changed: list[ValidationPair], what: What) -> list[Figure]:
        forwards.pairs = changed
        found = over_times(forwards.share, _by_pair(forwards.run([pair.reference for pair in changed], forwards.few)))
        return [_mean(loss) for loss in found]

    return probe(evaluator.pairs, batch, losses)


class _Forwards:
    """One batch of pairs, and how the loss function is called with it."""

    def __init__(self, evaluator: Evaluator, pipeline: Any, batch: Sequence[int]) -> None:
        self.pairs = [evaluator.pairs[i] for i in batch]
        self.times = _noise_times(evaluator.plan.sampler_steps or _NOISE_TIMES, pipeline)
        self.few = times_of_a_gap([time / self.times[0] for time in self.times])
        self.share = torch.tensor(weights([self.times[n] / self.times[0] for n in self.few]))
        self._evaluator, self._first = evaluator, batch[0]

    def run(self, references: Any, numbers: Sequence[int]) -> torch.Tensor:
        """(numbers, B) or (numbers, B, h, w); the same noise for the same pairs and noise time whatever the reference."""
        loss_fn, found = self._evaluator.loss_fn, []
        assert loss_fn is not None
        for number in numbers:
            generator = torch.Generator().manual_seed(self._evaluator.seed + 7919 * number + 104729 * self._first)
            timesteps = torch.full((len(self.pairs),), self.times[number], dtype=torch.int64)
            found.append(_checked(loss_fn(self.pairs, timesteps, generator, reference=references), len(self.pairs)))
        return torch.stack(found)


def _by_pair(losses: torch.Tensor) -> torch.Tensor:
    """(times, B) of losses that may be by place."""
    return losses.flatten(2).mean(2) if losses.ndim > 2 else losses


def _checked(loss: Any, pairs: int) -> torch.Tensor:
    if not (isinstance(loss, torch.Tensor) and loss.ndim in (1, 3) and loss.shape[0] == pairs):
        got = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise UnsupportedModel(
            f"loss_fn must return one loss a pair, a tensor of shape ({pairs},), or one a place, ({pairs}, h, w); got {got}. "
            "Average over channels and pixels only, loss.mean((1, 2, 3)), or over channels, loss.mean(1)"
        )
    return loss.detach().float().cpu()


def _mean(losses: torch.Tensor) -> Figure:
    return as_figure(float(losses.mean()), "the loss is not finite")


def _noise_times(count: int, pipeline: Any) -> list[int]:
    """Evenly spread noise times, the noisiest first."""
    config = getattr(getattr(pipeline, "scheduler", None), "config", {})
    total = int(config.get("num_train_timesteps", 1000))
    return [int((count - i - 0.5) / count * total) for i in range(count)]
