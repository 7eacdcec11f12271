"""A look at every head and noise time kept product by product, of which any smaller look's maps can be made with no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from i2am_debug.capture.accumulate import Accumulator
from i2am_debug.capture.attention import Attribution
from i2am_debug.capture.maps import AttributionMaps
from i2am_debug.capture.plan import CapturePlan, HeadChoice
from i2am_debug.capture.readout import Readout
from i2am_debug.capture.trace import Trace
from i2am_debug.evaluation.evaluator import Evaluator
from i2am_debug.figures.observation import Observation
from i2am_debug.figures.pair_view import PairView
from i2am_debug.figures.scoring import copying_layer
from i2am_debug.pairs.collection import ValidationPairs

from .looked_at import look


@dataclass(frozen=True)
class Look:
    """Some pairs, as all of it was seen."""

    evaluator: Evaluator
    observations: list[Observation]
    products: list[tuple[_Products, int]]
    """Of each pair: the products of its batch, and its row."""

    @property
    def heads(self) -> dict[str, int]:
        """Layer → how many it has."""
        return {la: len(bits) for la, bits in self.observations[0].maps.information.items()}

    @property
    def steps(self) -> tuple[int, ...]:
        return self.observations[0].maps.steps

    def of(self, pairs: slice) -> Look:
        return replace(self, observations=self.observations[pairs], products=self.products[pairs])

    def anew(self, steps: Sequence[int], heads: HeadChoice, plan: CapturePlan, *, every_head: bool = False) -> Look:
        """As a look at these steps and heads alone would have seen the pairs, but for the rows of maps.

        Args:
            every_head: as `Trace`'s, of which a pilot is made.
        """
        seen: dict[int, Accumulator] = {}
        for products, _ in self.products:
            if id(products) not in seen:
                seen[id(products)] = products.accumulated(set(steps), heads, plan)
        observations = []
        for one, (products, row) in zip(self.observations, self.products, strict=True):
            maps = seen[id(products)].maps(row, one.maps.total_steps, every_head)
            observations.append(replace(one, maps=maps))
        return replace(self, observations=observations)

    def views(self, copying: Any = None) -> list[PairView]:
        """What figures are computed of; `copying`: the layer that is taken for the copying one, by default their own."""
        copying = copying or copying_layer([one.maps for one in self.observations])
        return [
            PairView(
                observation=one,
                pair=self.evaluator.pairs[one.index],
                reference=0,
                copying_layer=copying,
                settings=self.evaluator.imacs,
                baseline={},
            )
            for one in self.observations
        ]


def kept_look(model: str, pairs: ValidationPairs, pipeline: Any = None, **settings: Any) -> Look:
    """Looks at every layer, head and noise time, as `look`."""
    traces: list[_KeptTrace] = []

    def make(*given: Any, **named: Any) -> _KeptTrace:
        traces.append(_KeptTrace(*given, **named))
        return traces[-1]

    evaluator, observations = look(model, pairs, pipeline, make_trace=make, **settings)
    rows = [(trace.products, row) for trace in traces for row in range(trace.images)]
    return Look(evaluator, observations, rows)


class _Products(Accumulator):
    """Keeps what it adds."""

    def __init__(self, plan: CapturePlan) -> None:
        super().__init__(plan)
        self.kept: list[tuple[str, int, Any, Attribution]] = []

    def add(self, layer: str, step: int, grids: Any, heads: Mapping[int, float], found: Attribution) -> None:
        self.kept.append((layer, step, grids, _each(found, torch.clone)))
        super().add(layer, step, grids, heads, found)

    def accumulated(self, steps: set[int], heads: HeadChoice, plan: CapturePlan) -> Accumulator:
        some = _WithoutRows(plan)
        for layer, step, grids, found in self.kept:
            if step in steps and layer in heads:
                chosen = list(heads[layer])
                some.add(layer, step, grids, heads[layer], _each(found, lambda x, chosen=chosen: x[:, chosen]))
        return some


class _WithoutRows(Accumulator):
    def _make_readout(self) -> Readout:
        return _ReadoutWithoutRows(self._plan, self._layers, self._rows)


class _ReadoutWithoutRows(Readout):
    def _rows(self, *_: Any) -> Any:
        return None  # no figure that has a standard error is read off them


class _KeptTrace(Trace):
    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.products = _Products(self.plan)
        self._accumulators = {0: self.products}


def _each(found: Attribution, change: Any) -> Attribution:
    return replace(found, **{name: change(getattr(found, name)) for name in ("maps_BNX", "log_normaliser_BNG")})


def whole(maps: AttributionMaps) -> dict[str, dict[int, float]]:
    """Every head of what was seen."""
    return {la: dict.fromkeys(range(len(bits)), 1.0) for la, bits in maps.information.items()}
