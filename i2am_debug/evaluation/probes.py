"""Probes: what the loss becomes with a reference that is changed in a known way. What a model has learned from tells itself so.

A model that was trained on mirrored references does better with a mirrored one than it did before. They are tried at the
baseline and whenever something fires, with a few pairs and the same noise. Another pair's reference and a blank one belong to
every look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image, ImageFilter, ImageOps

from ..figures.values import Figure
from ..pairs.pair import ValidationPair
from .references import with_reference

PAIRS = 4
"""The first ones of the run are probed."""
_BLUR = 1 / 16
"""Radius of the blur as a share of the picture's shorter side."""

PROBES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "mirrored": ImageOps.mirror,
    "blurred": lambda picture: picture.filter(ImageFilter.GaussianBlur(_BLUR * min(picture.size))),
    "colours": lambda picture: Image.merge("RGB", picture.split()[::-1]),
    "lighter": lambda picture: _scaled(picture, 0.5, 127.5),
    "faded": lambda picture: _scaled(picture, 0.3, 0.7 * 127.5),
    "contrasted": lambda picture: _scaled(picture, 3.0, -2 * 127.5),
}
"""Name → how it changes a reference."""


def _scaled(picture: Image.Image, factor: float, plus: float) -> Image.Image:
    """Each value v, 0 to 255, becomes factor · v + plus."""
    return picture.point(lambda value: factor * value + plus)


def probe(
    pairs: Sequence[ValidationPair], losses: Callable[[list[ValidationPair]], Sequence[Figure]]
) -> list[dict[str, Figure]]:
    """Of each pair: name of the probe → its loss with the reference changed so, by what `losses` says of the changed pairs."""
    found: list[dict[str, Figure]] = [{} for _ in pairs]
    for name, change in PROBES.items():
        changed = [with_reference(pair, change(pair.reference)) for pair in pairs]
        for own, loss in zip(found, losses(changed), strict=True):
            own[name] = loss
    return found
