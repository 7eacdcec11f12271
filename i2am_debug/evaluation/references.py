"""The references that a pair is tried with beside its own: another pair's, and a blank one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from ..families.family import Family
from ..figures.values import Undefined
from ..pairs.collection import ValidationPairs
from ..pairs.pair import ValidationPair

Colour = tuple[int, int, int]

_GREY: Colour = (127, 127, 127)


def blank_colour(pipeline: Any, family: Family) -> Colour:
    """Of the picture that stands for no reference: zeros where the model takes it in.

    That is mid-grey for models that read pictures in [-1, 1]; where the family says that an image encoder reads them
    (`reads_encoder`), the mean that the pipeline's own image processor subtracts.
    """
    processors = (getattr(pipeline, name, None) for name in ("feature_extractor", "image_processor"))
    means = (getattr(processor, "image_mean", None) for processor in processors)
    mean = next((one for one in means if one is not None), None)
    if mean is None or not getattr(family, "reads_encoder", False):
        return _GREY
    red, green, blue = (round(255 * share) for share in mean)
    return red, green, blue


def wrong_references(pairs: ValidationPairs, batch: Sequence[int]) -> list[Image.Image | Undefined]:
    """For each pair number the reference of the next pair that has another one; of the same size where there is one, else
    brought to it."""
    return [_next_other(pairs, index) for index in batch]


def with_reference(pair: ValidationPair, reference: Image.Image) -> ValidationPair:
    """The pair with another reference; what is known of its own is left out."""
    return replace(pair, reference=reference, reference_mask=None)


def blank_reference(pair: ValidationPair, colour: Colour) -> Image.Image:
    """A picture of one colour and of the reference's size."""
    return Image.new("RGB", pair.reference.size, colour)


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
