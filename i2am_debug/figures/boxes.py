"""Where a map says that something is: boxes around its strongest parts. Pure; knows no picture and no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UndefinedFigure


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle in shares of a picture's height and width, each in [0, 1], so that it fits any size of that picture."""

    top: float
    left: float
    bottom: float
    right: float
    mass: float = 0.0
    """Share of the map's mass in the part that the box is around; 0 for a box that is not of a map."""

    def __post_init__(self) -> None:
        if not (0 <= self.top < self.bottom <= 1 and 0 <= self.left < self.right <= 1):
            raise ValueError(f"{self}: expected 0 ≤ top < bottom ≤ 1 and 0 ≤ left < right ≤ 1")

    @classmethod
    def around(cls, mask: Any) -> Box:
        """The smallest box that holds every pixel of a mask, (H, W), of more than half.

        Raises:
            UndefinedFigure: the mask is empty.
            ValueError: it is not two-dimensional.
        """
        return _around(_plane(mask, "a mask") > 0.5)

    @property
    def area(self) -> float:
        """Share of the picture, in (0, 1]."""
        return (self.bottom - self.top) * (self.right - self.left)

    def iou(self, other: Box) -> float:
        """Intersection over union with another box of the same picture, in [0, 1] (Park & Jang 2025, object detection)."""
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        width = min(self.right, other.right) - max(self.left, other.left)
        shared = max(0.0, height) * max(0.0, width)
        return shared / (self.area + other.area - shared)


def boxes(map: Any, *, percentile: float = 65.0) -> list[Box]:
    """Boxes around the connected parts of a map above a percentile of its values, the part with most mass first.

    The first is what Park & Jang (2025) compare with an annotated box, there at the 65th percentile. Edges lie between tokens:
    a map of h x w tokens can't tell more.

    Args:
        map: (h, w) attribution map, array or tensor, of any scale, not negative.
        percentile: of the map's values, at least 0 and below 100; a token belongs to a part when it lies above.

    Raises:
        UndefinedFigure: the map is constant or not finite: no token lies above.
        ValueError: wrong shape, negative values, or a percentile out of range.
    """
    from scipy.ndimage import label  # here: it takes a tenth of a second that most commands have no use for

    values = _plane(map, "a map").astype(float)
    if not 0 <= percentile < 100:
        raise ValueError(f"percentile={percentile!r}: expected 0 ≤ percentile < 100")
    if not np.isfinite(values).all():
        raise UndefinedFigure("the map is not finite")
    if (values < 0).any():
        raise ValueError("a map must not be negative")
    above = values > np.percentile(values, percentile)
    if values.max() - values.min() <= 1e-6 * values.max() or not above.any():
        raise UndefinedFigure("the map is constant")
    parts, count = label(above)  # tokens that share an edge
    mass = [values[parts == number].sum() / values.sum() for number in range(1, count + 1)]
    by_mass = np.argsort(mass, kind="stable")[::-1]
    return [_around(parts == i + 1, mass=float(mass[i])) for i in by_mass]


def _around(inside: np.ndarray, mass: float = 0.0) -> Box:
    rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
    if not len(rows):
        raise UndefinedFigure("the mask is empty")
    height, width = inside.shape
    return Box(
        top=float(rows[0] / height),
        left=float(columns[0] / width),
        bottom=float((rows[-1] + 1) / height),
        right=float((columns[-1] + 1) / width),
        mass=mass,
    )


def _plane(values: Any, what: str) -> np.ndarray:
    array = np.asarray(values.detach().cpu().float() if hasattr(values, "detach") else values)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{what} must have shape (h, w), got {array.shape}")
    return array
