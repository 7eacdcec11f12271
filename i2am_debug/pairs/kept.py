"""The region of an edit that is kept: where the target is what the reference is. Knows two pictures, nothing of models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

_BINS = 256
_LOWEST, _HIGHEST = 1 / 32, 0.1
"""Otsu's threshold is held between these. Below the first lie rounding, JPEG and resizing; two pixels that are further apart
than the second don't look the same, whatever the rest of the picture does: a changed region that agrees with the old one
here and there would otherwise lend its pixels to the kept one (measured on a photograph with another one pasted in: 40 %
of what was changed counted as kept without the upper bound, 17 % with it)."""
_NOISE = 1 / 32
"""Most that a kept region differs on average. Where a picture has nothing in common with another, the pixels below a
threshold are spread evenly below it."""
_CHANGE = 1 / 16
"""Least that a changed region differs on average; the edges of a JPEG picture reach 0.25, but not on average."""
_SHARE = 0.05
"""Least share of the picture that is kept: burnt-out white stays white when all else is lit anew."""


class NoKeptRegion(ValueError):
    """Why two pictures have no kept region, in words."""


@dataclass(frozen=True)
class KeptRegion:
    """Where two pictures agree, and by which threshold."""

    inside: np.ndarray
    """(H, W) bool of the target, neither empty nor full."""
    threshold: float
    """In (0, 1): pixels that differ less are kept."""
    rule: str
    """ "Otsu" or "fixed"."""

    def __str__(self) -> str:
        return f"{self.rule}, |target − reference| < {self.threshold:.3f}"


def kept_region(reference: Image.Image, target: Image.Image, threshold: float | None = None) -> KeptRegion:
    """Where |target − reference| lies below a threshold: in [0, 1], mean over channels, at the target's size.

    Specks are dissolved by a majority over small squares (a fortieth of the shorter side, 3 to 9 pixels).

    Args:
        threshold: in (0, 1); by default Otsu's, held between 1/32 and 0.1.

    Raises:
        NoKeptRegion: nothing is kept, or nothing is changed.
        ValueError: a threshold that can't be one.
    """
    if threshold is not None and not 0 < threshold < 1:
        raise ValueError(f"threshold={threshold!r}: expected a number between 0 and 1, or None for Otsu's")
    apart = difference(reference, target)
    rule = "Otsu" if threshold is None else "fixed"
    if threshold is None:
        threshold = float(np.clip(otsu_threshold(apart), _LOWEST, _HIGHEST))
    inside = _majority(apart < threshold)
    if rule == "fixed" and (inside.all() or not inside.any()):
        where = "nowhere" if inside.all() else "everywhere"
        raise NoKeptRegion(f"the target differs from the reference {where} by {threshold:.3f} or more")
    if rule == "Otsu":
        _refuse_what_has_no_two_sides(apart, inside)
    return KeptRegion(inside, threshold, rule)


def _refuse_what_has_no_two_sides(apart: np.ndarray, inside: np.ndarray) -> None:
    """Otsu's method divides anything in two; both sides must be what they are taken for."""
    if inside.all() or (inside.any() and apart[~inside].mean() < _CHANGE):
        raise NoKeptRegion("the target is the reference, but for noise")
    if inside.mean() < _SHARE or apart[inside].mean() > _NOISE:
        raise NoKeptRegion("the target differs from the reference everywhere")


def difference(reference: Image.Image, target: Image.Image) -> np.ndarray:
    """|target − reference| in [0, 1], mean over channels: (H, W) float32, of the target's size."""
    brought = reference if reference.size == target.size else reference.resize(target.size, Image.Resampling.LANCZOS)
    a, b = (np.asarray(picture.convert("RGB"), dtype=np.float32) for picture in (target, brought))
    return np.abs(a - b).mean(2) / np.float32(255)


def otsu_threshold(values: np.ndarray) -> float:
    """Otsu (1979), equation 12: the threshold with the most variance between the values below it and the others.

    Args:
        values: any number of them, in [0, 1].

    Returns:
        The lowest such threshold among the edges of 256 equal bins; the upper edge of their bin for values of one bin.
    """
    counts, edges = np.histogram(values, _BINS, (0, 1))
    middles = (edges[1:] + edges[:-1]) / 2
    below, moment = counts.cumsum()[:-1].astype(float), (counts * middles).cumsum()
    above = counts.sum() - below
    two = (below > 0) & (above > 0)
    if not two.any():
        return float(edges[1:][counts.argmax()])
    between = np.zeros(_BINS - 1)
    apart = moment[:-1][two] / below[two] - (moment[-1] - moment[:-1][two]) / above[two]
    between[two] = below[two] * above[two] * apart**2
    return float(edges[1:-1][between.argmax()])


def brought_to(inside: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A region on a picture of another (width, height): nearest neighbour."""
    region = Image.fromarray(inside.astype(np.uint8) * 255)
    return np.asarray(region.resize(size, Image.Resampling.NEAREST)) > 0


def _majority(inside: np.ndarray) -> np.ndarray:
    side = min(max(3, min(inside.shape) // 40 | 1), 9)  # blocks of JPEG stay 8 pixels wide
    if min(inside.shape) <= side:
        return inside
    return np.asarray(Image.fromarray(inside.astype(np.uint8) * 255).filter(ImageFilter.MedianFilter(side))) > 127
