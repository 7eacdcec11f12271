"""Probes: what the loss becomes with something of a pair changed in a known way. What a model has learned from tells itself so.

A model that was trained on mirrored references, or on inverted holes, does better with such a pair than it did before. Each
probe is what a broken loader would give. They are tried at the baseline and whenever something fires, with a few pairs and the
same noise. Another pair's reference and a blank one belong to every look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps

from ..figures.values import Figure, Undefined
from ..pairs.collection import ValidationPairs
from ..pairs.pair import ValidationPair
from .references import with_reference

PAIRS = 8
"""The first ones of the run are probed."""
_BLUR = 1 / 16
"""Radius of the blur as a share of the picture's shorter side."""
_MOVED = 1 / 4
"""To the right, as a share of the width, around the edge."""
_NO_HOLE = Undefined("no hole")

What = Literal["nothing", "reference", "hole", "target", "prompt"]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One way in which a pair is changed."""

    of: What
    change: Callable[[ValidationPair, ValidationPairs], ValidationPair | Undefined]
    """A pair and all of the run's → the pair changed, or why it can't be."""


def _reference(change: Callable[[Image.Image], Image.Image]) -> Probe:
    return Probe(of="reference", change=lambda pair, pairs: with_reference(pair, change(pair.reference)))


def _target(change: Callable[[Image.Image], Image.Image]) -> Probe:
    return Probe(of="target", change=lambda pair, pairs: replace(pair, target=change(pair.target)))


def _hole(change: Callable[[np.ndarray], np.ndarray]) -> Probe:
    def changed(pair: ValidationPair, pairs: ValidationPairs) -> ValidationPair | Undefined:
        return _NO_HOLE if pair.mask is None else replace(pair, mask=change(pair.mask))

    return Probe(of="hole", change=changed)


def _scaled(picture: Image.Image, factor: float, plus: float) -> Image.Image:
    """Each value v, 0 to 255, becomes factor · v + plus."""
    return picture.point(lambda value: factor * value + plus)


def _all_but_a_corner(hole: np.ndarray) -> np.ndarray:
    """Nearly everything: a hole of all there is would leave no picture, which a pair can't have."""
    grown = np.ones_like(hole)
    grown[: max(1, hole.shape[0] // 8), : max(1, hole.shape[1] // 8)] = False
    return grown


def _with_another_prompt(pair: ValidationPair, pairs: ValidationPairs) -> ValidationPair | Undefined:
    others = (other.prompt for other in pairs)
    other = next((prompt for prompt in others if prompt and prompt != pair.prompt), None)
    if not pair.prompt:
        return Undefined("no prompt")
    return Undefined("all pairs have the same prompt") if other is None else replace(pair, prompt=other)


PROBES: dict[str, Probe] = {
    "unchanged": Probe(of="nothing", change=lambda pair, pairs: pair),
    "mirrored": _reference(ImageOps.mirror),
    "blurred": _reference(lambda picture: picture.filter(ImageFilter.GaussianBlur(_BLUR * min(picture.size)))),
    "colours": _reference(lambda picture: Image.merge("RGB", picture.split()[::-1])),
    "lighter": _reference(lambda picture: _scaled(picture, 0.5, 127.5)),
    "faded": _reference(lambda picture: _scaled(picture, 0.3, 0.7 * 127.5)),
    "contrasted": _reference(lambda picture: _scaled(picture, 3.0, -2 * 127.5)),
    "hole_inverted": _hole(np.logical_not),
    "hole_grown": _hole(_all_but_a_corner),
    "hole_moved": _hole(lambda hole: np.roll(hole, round(_MOVED * hole.shape[1]), axis=1)),
    "target_moved": _target(lambda picture: ImageChops.offset(picture, round(_MOVED * picture.width), 0)),
    "another_prompt": Probe(of="prompt", change=_with_another_prompt),
}
"""Name → how it changes a pair."""

PREDICTIONS = ("noise", "sample", "velocity")
"""What a prediction can be taken for; tried without a forward, where the loss is the pipeline's own."""


def probe(
    pairs: ValidationPairs,
    batch: Sequence[int],
    losses: Callable[[list[ValidationPair], What], Sequence[Figure]],
) -> list[dict[str, Figure]]:
    """Of each pair of the batch: name of the probe → its loss with the pair changed so.

    A probe is tried with all pairs of a batch, or, where it can change none of those that are probed, with none: processes that
    share the model must run the same number of forwards.

    Args:
        batch: numbers below `PAIRS`.
        losses: of the changed pairs, and what was changed of them.
    """
    probed = [pairs[index] for index in range(min(PAIRS, len(pairs)))]
    unchanged = [probed[index] for index in batch]
    found: list[dict[str, Figure]] = [{} for _ in batch]
    for name, one in PROBES.items():
        if all(isinstance(one.change(pair, pairs), Undefined) for pair in probed):
            continue
        changed = [one.change(pair, pairs) for pair in unchanged]
        tried = [own if isinstance(new, Undefined) else new for own, new in zip(unchanged, changed, strict=True)]
        for row, new, loss in zip(found, changed, losses(tried, one.of), strict=True):
            row[name] = new if isinstance(new, Undefined) else loss
    return found
