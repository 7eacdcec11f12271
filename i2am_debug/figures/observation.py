"""What was seen of a pair in one evaluation, and how the observations of several processes come together. Scores nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from ..capture.maps import AttributionMaps
from ..capture.trace import Trace
from ..errors import I2AMError, NothingCaptured
from .values import Figure, Undefined


@dataclass(kw_only=True)
class Observation:
    """What was seen of one pair."""

    index: int
    maps: AttributionMaps
    """Of the pair's own reference, number 0."""
    further: Mapping[int, AttributionMaps] = field(default_factory=dict)
    """Of references 1, 2, … by their number, where the model was given several."""
    generated: Image.Image | None
    """None where looking made none, until `Evaluator.sample` has."""
    painted: str = ""
    """How `generated` was made, where it was not sampled."""
    loss: Figure
    wrong_reference_loss: Figure
    no_reference_loss: Figure = field(default_factory=lambda: Undefined("not measured"))
    """With a blank reference."""
    loss_map: np.ndarray | None = None
    """(h, w) float, the loss with the pair's own reference by place; None where only its mean is known."""
    no_loss_map: str = "the loss is known as one number a pair"
    """Why there is no `loss_map`."""


def maps_of(trace: Trace, image: int) -> tuple[AttributionMaps, dict[int, AttributionMaps]]:
    """The maps of an image of the batch: of its own reference, and of the further ones.

    Raises:
        NothingCaptured: nothing, or further references only.
        IndexError: the batch held fewer images.
    """
    if trace.references and 0 not in trace.references:
        raise NothingCaptured(
            f"the model was given references {list(trace.references)}, but not reference 0, which is the pair's own; is the "
            "scale of its adapter 0?"
        )
    further = [number for number in trace.references if number > 0]
    return trace.maps(image), {number: trace.maps(image, number) for number in further}


def merge_observations(
    observations: Sequence[Observation], pictures: Mapping[int, Image.Image], count: int
) -> list[Observation]:
    """Looks of all processes in the order of the pairs, without the ones that only padded a process's share.

    `pictures` are those sampled apart, by pair number.
    """
    by_index: dict[int, Observation] = {}
    for observation in observations:
        by_index.setdefault(
            observation.index, replace(observation, generated=pictures.get(observation.index, observation.generated))
        )
    missing = [i for i in range(count) if i not in by_index]
    if missing:
        raise I2AMError(f"the looks at pairs {missing} are missing")
    return [by_index[i] for i in range(count)]
