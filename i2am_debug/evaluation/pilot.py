"""The pilot: before the first evaluation of a run some pairs are looked at with all heads, to choose what is looked at.

It measures what each layer and head tells and, where the plan has a budget, what they cost; and how much the figures move when
other heads are drawn. It runs the same forwards whatever it finds, so that processes which share a model keep in step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..capture.costs import EACH_TIME, Clock, Stopwatch, TimedTrace
from ..capture.plan import HeadChoice, choose_heads
from ..capture.redrawn import with_heads
from ..capture.trace import find_denoiser
from ..capture.within_budget import Chosen, Costs, choose_within, in_words
from ..figures.observation import Observation
from ..figures.pair_view import PairView
from ..figures.pilot_spread import pilot_spread
from ..figures.record import Evaluation
from ..figures.sampling_error import Spread
from ..figures.scoring import copying_layer
from ..figures.values import Undefined
from ..pairs.pair import ValidationPair

if TYPE_CHECKING:
    from .evaluator import Evaluator

BATCHES = 4
"""The first ones are looked at with all heads."""
_PAIRS = 4  # so many of theirs tell how much figures move
_TRIALS = 3  # of choices, each nearer to the budget
_SIDE = 256  # pixels
_AIM = 0.9  # of the budget: what is measured varies


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a run looks at, from its first evaluation on."""

    heads: HeadChoice | None = None
    """None: all."""
    times: tuple[int, ...] | None = None
    """Numbers of the plan's noise times, or of the sampler steps that it draws; None: all."""
    words: str = ""
    """What a budget chose and why."""
    spread: Mapping[str, Spread] = field(default_factory=dict)
    """As `Evaluation.spread`."""

    @classmethod
    def of(cls, evaluation: Evaluation) -> Choice | None:
        """That which the evaluation was made by; None where it had no pilot."""
        if evaluation.heads is None:
            return None
        return cls(heads=evaluation.heads, times=evaluation.times, words=evaluation.chosen, spread=evaluation.spread)

    @property
    def draws_heads(self) -> bool:
        return self.heads is not None and any(w != 1 for each in self.heads.values() for w in each.values())


def choose(evaluator: Evaluator, pipeline: Any, clock: Clock | None = None) -> Choice:
    """What the evaluator's plan comes to for this model and these pairs.

    Args:
        clock: measures what looking costs; by default as fits the model's device.
    """
    denoiser = find_denoiser(pipeline)
    clock = clock or Clock(next((p.device for p in denoiser.parameters()), None))
    found = _Pilot(evaluator, pipeline, clock)
    found.look()
    plan, times = evaluator.plan, len(found.observations[0].maps.steps)
    if plan.budget is None:
        heads = choose_heads(found.information, plan)
        return Choice(heads=heads, spread={} if heads is None else found.spread(heads, None))
    chosen, measured = found.within(plan.budget)
    some = None if len(chosen.times) == times else chosen.times
    return Choice(
        heads=chosen.heads,
        times=some,
        words=in_words(chosen, found.information, times=times, budget=plan.budget, measured=measured),
        spread=found.spread(chosen.heads, some),
    )


@dataclass
class _Cost:
    """Of one batch, in seconds."""

    forwards: float
    looking: dict[str, float]
    reading: float
    times: int

    @property
    def share(self) -> float:
        return (sum(self.looking.values()) + self.reading) / max(self.forwards, 1e-12)


class _Pilot:
    """What it has seen so far."""

    def __init__(self, evaluator: Evaluator, pipeline: Any, clock: Clock) -> None:
        self._evaluator, self._pipeline, self._clock = evaluator, pipeline, clock
        self.observations: list[Observation] = []
        self._costs: list[_Cost] = []
        self.information: dict[str, list[float]] = {}

    def look(self) -> None:
        """With all heads."""
        for batch in self._evaluator.batches[:BATCHES]:
            apart = len(self.observations) < _PAIRS
            seen, cost = self._timed(batch, None, every_head=apart)
            self.observations += seen
            self._costs.append(cost)
        found: dict[str, list[Any]] = {}  # a layer may read a further reference only
        for one in self.observations:
            for maps in (one.maps, *one.further.values()):
                for layer, bits in maps.information.items():
                    found.setdefault(layer, []).append(bits)
        self.information = {la: np.mean(bits, axis=0).tolist() for la, bits in found.items()}

    def within(self, budget: float) -> tuple[Chosen, float]:
        """What tells most within the budget, tried before it is taken, and its cost as a share of the forwards."""
        costs, aim = self._fitted(), _AIM * budget
        kept: tuple[Chosen, float] | None = None
        for _ in range(_TRIALS):
            chosen = self._choose(aim, costs)
            measured = self._share(chosen)
            if measured <= budget and (kept is None or _value(chosen) > _value(kept[0])):
                kept = chosen, measured
            aim *= _AIM * budget / max(measured, 1e-12)
        last = self._choose(0.0, costs) if kept is None else kept[0]
        measured = self._share(last)
        return last, measured if kept is None else min(measured, kept[1])

    def spread(self, heads: HeadChoice, times: tuple[int, ...] | None) -> dict[str, Spread]:
        """How much the figures move when others are drawn."""
        own = {la: each for la, each in heads.items() if la in self.views[0].maps.information}
        # What an evaluation of these heads will call its copying layer.
        plan = self._evaluator.plan
        copying = copying_layer([with_heads(view.maps, own, plan) for view in self.views])
        views = [replace(view, copying_layer=copying) for view in self.views]
        steps = self._evaluator.steps_stood_for(views[0].observation)
        return pilot_spread(views, own, None if times is None else len(times), plan=plan, steps=steps)

    @property
    def views(self) -> list[PairView]:
        """The pairs whose maps are of every head by itself."""
        evaluator = self._evaluator
        some = [one for one in self.observations if one.maps.every_head is not None][:_PAIRS]
        copying = copying_layer([one.maps for one in some])
        return [
            PairView(
                observation=one,
                pair=_smaller(evaluator.pairs[one.index]),
                reference=0,
                copying_layer=copying,
                settings=evaluator.imacs,
                baseline={},
            )
            for one in some
        ]

    def _choose(self, budget: float, costs: Costs) -> Chosen:
        own = {la: bits for la, bits in self.information.items() if la in costs.layer}
        copying = copying_layer([one.maps for one in self.observations])
        if isinstance(copying, Undefined):
            copying = max(own, key=lambda la: float(np.nansum(own[la])))
        times, seed = len(self.observations[0].maps.steps), self._evaluator.plan.seed
        return choose_within(budget, own, costs, copying=copying, times=times, seed=seed)

    def _fitted(self) -> Costs:
        """What each layer and each head costs, from looks at all heads and at one of each layer."""
        first = {la: {0: 1.0} for la in self.information}
        few = self._timed(self._evaluator.batches[0], Choice(heads=first))[1]
        layers = [la for la in self.information if any(la in cost.looking for cost in self._costs)]
        head, layer = {}, {}
        for la in layers:
            one, more = _each_time([few], la), len(self.information[la]) - 1
            head[la] = max(0.0, (_each_time(self._costs, la) - one) / more) if more else 0.0
            layer[la] = max(0.0, one - head[la])
        reading = few.reading / len(layers)
        return Costs(
            forwards=max(float(np.median([cost.forwards for cost in self._costs])), 1e-12),
            layer=layer,
            head=head,
            reading=dict.fromkeys(layers, reading),
            each_time=_each_time([few], EACH_TIME),
        )

    def _share(self, chosen: Chosen) -> float:
        choice = Choice(heads=chosen.heads, times=chosen.times)
        return self._timed(self._evaluator.batches[0], choice)[1].share

    def _timed(
        self, batch: Sequence[int], choice: Choice | None, *, every_head: bool = False
    ) -> tuple[list[Observation], _Cost]:
        watch = Stopwatch(self._clock)
        make = partial(TimedTrace, watch=watch, every_head=every_head)
        with _looking(self._evaluator, choice, make), watch.forwards_of(find_denoiser(self._pipeline)):
            seen = self._evaluator.observe(self._pipeline, batch)
        forwards, looking = watch.seconds()
        return seen, _Cost(forwards, looking, watch.reading, len(seen[0].maps.steps))


@contextmanager
def _looking(evaluator: Evaluator, choice: Choice | None, make: Callable[..., TimedTrace]) -> Iterator[None]:
    """The evaluator looks at these heads and noise times, by such traces."""
    before, evaluator.choice, evaluator.make_trace = evaluator.choice, choice, make
    try:
        yield
    finally:
        evaluator.choice, evaluator.make_trace = before, None


def _smaller(pair: ValidationPair) -> ValidationPair:
    """The pair in pictures of at most some 256 pixels a side: how much figures move is told fast, and as well."""
    target, reference = (max(1, -(-max(picture.size) // _SIDE)) for picture in (pair.target, pair.reference))

    def some(mask: np.ndarray | None, factor: int) -> np.ndarray | None:
        return None if mask is None else mask[::factor, ::factor]

    return replace(
        pair,
        target=pair.target.reduce(target),
        reference=pair.reference.reduce(reference),
        mask=some(pair.mask, target),
        kept=some(pair.kept, target),
        reference_mask=some(pair.reference_mask, reference),
    )


def _value(chosen: Chosen) -> float:
    return chosen.bits * len(chosen.times)


def _each_time(costs: Sequence[_Cost], layer: str) -> float:
    return float(np.median([cost.looking.get(layer, 0.0) / cost.times for cost in costs]))
