"""The references that a pair is tried with beside its own: another pair's, and a blank one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from ..figures.values import Undefined
from ..pairs.collection import ValidationPairs
from ..pairs.pair import ValidationPair

BLANK = "grey picture"
"""What "no reference" is: zeros, as models see a picture in [-1, 1]."""

_GREY = (127, 127, 127)


def wrong_references(pairs: ValidationPairs, batch: Sequence[int]) -> list[Image.Image | Undefined]:
    """For each pair number the reference of the next pair that has another one; of the same size where there is one, else
    brought to it."""
    return [_next_other(pairs, index) for index in batch]


def with_reference(pair: ValidationPair, reference: Image.Image | None) -> ValidationPair:
    """The pair with another reference, or with a blank one; what is known of its own is left out."""
    return replace(pair, reference=reference or blank_reference(pair), reference_mask=None)


def blank_reference(pair: ValidationPair) -> Image.Image:
    """A grey picture of the reference's size."""
    return Image.new("RGB", pair.reference.size, _GREY)


def _next_other(pairs: ValidationPairs, index: int) -> Image.Image | Undefined:
    own = pairs[index].reference
    scaled = None
    for step in range(1, len(pairs)):
        other = pairs[(index + step) % len(pairs)].reference
        if other.size == own.size and other.tobytes() != own.tobytes():
            return other
        if other.size != own.size and scaled is None:
            scaled = other.resize(own.size, Image.Resampling.LANCZOS)
    return scaled or Undefined("one pair" if len(pairs) == 1 else "all pairs have the same reference")
