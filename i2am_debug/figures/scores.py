"""Figures of maps: IMACS and its chance level, energy, pointing. Pure; never sees a picture or a model.

A figure without a value raises `UndefinedFigure` with its reason; inside a run the evaluation records that reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from ..capture.maps import Direction
from ..errors import UndefinedFigure
from ..grids import Grid, region_weight, resizing
from .distances import distribution

_EPS = 1e-8
_CHANCE_SIDE = 128


@dataclass(frozen=True, kw_only=True)
class IMACSSettings:
    """How an IMACS is formed; stored with every score.

    Raises:
        ValueError: an unknown polarity, or a threshold outside [0, 1).
    """

    penalty: float = 3.0
    """Factor of the mean outside the mask."""
    threshold: float = 0.4
    """Values up to this count as 0."""
    polarity: Literal["direct", "inverted"] = "direct"
    """"inverted": a becomes 1 − a."""
    premask: bool = False
    """Multiply the map by the mask before anything else, which nearly disables the penalty."""

    def __post_init__(self) -> None:
        if self.polarity not in ("direct", "inverted"):
            raise ValueError(f'polarity={self.polarity!r}: expected "direct" or "inverted"')
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold={self.threshold!r}: expected 0 ≤ threshold < 1")
        if not self.penalty >= 0:
            raise ValueError(f"penalty={self.penalty!r}: expected a number of at least 0")

    @classmethod
    def authors(cls, direction: Direction | str) -> IMACSSettings:
        """What the authors' code does: the inverted map for R2G, the premasked one for G2R."""
        if direction not in [d.value for d in Direction]:
            raise ValueError(f'direction={direction!r}: expected "r2g" or "g2r"')
        r2g = Direction(direction) is Direction.R2G
        return cls(polarity="inverted" if r2g else "direct", premask=not r2g)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def imacs(
    map: Any,
    mask: Any,
    *,
    penalty: float = 3.0,
    threshold: float = 0.4,
    polarity: Literal["direct", "inverted"] = "direct",
    premask: bool = False,
    preset: Literal["plain", "authors"] = "plain",
    direction: Direction | str | None = None,
) -> float:
    """Inpainting Mask Attention Consistency Score (Park & Jang 2025): mean inside the mask − penalty × mean outside.

    Args:
        map: (h, w) attribution map, array or tensor, any scale.
        mask: (H, W), 1 = inside; values between 0 and 1 count in part.
        preset: "authors" reproduces the authors' code, for which `direction` ("r2g" or "g2r") must be given; the
            polarity, premask, penalty and threshold arguments are then not looked at.

    Returns:
        A value in [−penalty, 1]: 1 for a map that is at its maximum everywhere inside and below the threshold outside.

    Raises:
        UndefinedFigure: the mask is empty or full, the map is constant or not finite.
        ValueError: wrong shapes or settings.
    """
    if preset == "authors":
        if direction is None:
            raise ValueError(
                'imacs(preset="authors") needs direction="r2g" or "g2r": the authors score them differently'
            )
        settings = IMACSSettings.authors(direction)
    elif preset == "plain":
        settings = IMACSSettings(penalty=penalty, threshold=threshold, polarity=polarity, premask=premask)
    else:
        raise ValueError(f'preset={preset!r}: expected "plain" or "authors"')
    return score_imacs(map, mask, settings)


class Inside:
    """A mask that many maps are scored with: looked at once, and for scores no larger than `at_most` pixels a side.

    Raises:
        UndefinedFigure: it is empty or full.
        ValueError: it is no mask.
    """

    def __init__(self, mask: Any, at_most: int | None = None) -> None:
        self._whole = _mask(mask)
        size = tuple(self._whole.shape)
        self.values = self._whole
        """(H, W) float64 from 0 to 1."""
        if at_most is not None and max(size) > at_most:
            shrunk = tuple(max(1, round(n * at_most / max(size))) for n in size)
            self.values = region_weight(self._whole, shrunk).view(shrunk).double()
        self.area = float(self.values.sum())
        self._coverage: dict[Grid, torch.Tensor] = {}

    @classmethod
    def of(cls, mask: Any) -> Inside:
        """The mask itself, or at its own size."""
        return mask if isinstance(mask, Inside) else cls(mask)

    def coverage(self, grid: Grid) -> torch.Tensor:
        """How much of each token of a grid lies inside, (h, w) float64."""
        if grid not in self._coverage:
            self._coverage[grid] = region_weight(self._whole, grid).view(grid).double()
        return self._coverage[grid]


def score_imacs(map: Any, mask: Any, settings: IMACSSettings) -> float:
    """`imacs` with its settings in one object; `mask` may be an `Inside`."""
    inside = Inside.of(mask)
    return _inside_against_outside(_prepared(_map(map), inside.values, settings), inside, settings.penalty)


@dataclass(frozen=True, kw_only=True)
class ChanceLevel:
    """How a map scores against masks that know nothing of it."""

    mean: float
    sd: float

    def z(self, score: float) -> float:
        """How many standard deviations `score` lies above chance.

        Raises:
            UndefinedFigure: every such mask scores the same.
        """
        if self.sd < 1e-6:
            raise UndefinedFigure("no spread at chance level")
        return (score - self.mean) / self.sd


def imacs_chance(map: Any, mask: Any, settings: IMACSSettings) -> ChanceLevel:
    """Mean and sd of the score over the mask's symmetries (8, or 4 when not square) and all their cyclic shifts.

    Formed on at most 128x128 pixels; all shifts at once as a circular correlation.
    """
    inside = Inside.of(mask).values
    prepared = _prepared(_map(map), inside, settings)
    size = tuple(min(n, _CHANCE_SIDE) for n in inside.shape)
    a, m = (F.adaptive_avg_pool2d(x[None, None].double(), size)[0, 0].numpy() for x in (prepared, inside))
    spectrum = np.fft.rfft2(a)
    scores = []
    for variant in _symmetries(m, turns=inside.shape[0] == inside.shape[1]):
        overlap = np.fft.irfft2(spectrum * np.conj(np.fft.rfft2(variant)), s=a.shape)
        area = variant.sum()
        scores.append(overlap / area - settings.penalty * (a.sum() - overlap) / (variant.size - area))
    return ChanceLevel(mean=float(np.mean(scores)), sd=float(np.std(scores)))


def reference_lines(mask: Any, grid: Grid, settings: IMACSSettings) -> dict[str, float]:
    """What maps without a model score on this mask and token grid, to read a chart by.

    Returns:
        "constant" 0; "random": mean of 16 uniform noise maps; "blob": a Gaussian in the middle, a quarter of the sides wide,
        that knows nothing; "perfect": the mask itself on the token grid.
    """
    inside = Inside.of(mask).values
    key = hashlib.sha256(inside.numpy().tobytes()).digest(), tuple(inside.shape), grid, settings
    if key not in _LINES:  # a run asks for the same lines at every evaluation
        _LINES[key] = _lines(inside, grid, settings)
    return dict(_LINES[key])


_LINES: dict[Any, dict[str, float]] = {}


def _lines(inside: torch.Tensor, grid: Grid, settings: IMACSSettings) -> dict[str, float]:
    noise = np.random.default_rng(0).random((16, *grid))
    y, x = ((np.arange(n) + 0.5) / n - 0.5 for n in grid)
    blob = np.exp(-(y[:, None] ** 2 + x[None] ** 2) / (2 * 0.25**2))
    perfect = region_weight(inside, grid).view(grid)
    of_mask = Inside(inside)

    def score(candidate: Any) -> float:
        try:
            return score_imacs(candidate, of_mask, settings)
        except UndefinedFigure:  # a one-token grid makes every map constant
            return 0.0

    return {
        "constant": 0.0,
        "random": float(np.mean([score(n) for n in noise])),
        "blob": score(blob),
        "perfect": score(perfect),
    }


def energy(map: Any, mask: Any) -> float:
    """Share of the map's mass that lies inside the mask, 0..1. Chance: the mask's share of the picture."""
    m = _distribution(map)
    return float((m * Inside.of(mask).coverage(tuple(m.shape))).sum())


def pointing(map: Any, mask: Any) -> bool:
    """Whether the map's maximum lies inside the mask (on a token that is at least half inside)."""
    m = _distribution(map)
    return bool(Inside.of(mask).coverage(tuple(m.shape)).flatten()[m.argmax()] >= 0.5)


def left_out(score: Callable[[Any], float], samples: Sequence[Any]) -> np.ndarray:
    """(n,) `score(mean of samples)` with each of the n samples, maps or values, left out in turn.

    Raises:
        UndefinedFigure: the score is undefined without one of them.
    """
    n = len(samples)
    if n < 2:
        return np.full(n, np.nan)
    whole = np.sum(samples, axis=0)
    return np.array([score((whole - s) / (n - 1)) for s in samples])


def _prepared(map: torch.Tensor, inside: torch.Tensor, settings: IMACSSettings) -> torch.Tensor:
    """Steps 1 to 3 of the definition: (H, W) values in [0, 1]."""
    if settings.premask:
        map = map * _bicubic(inside, tuple(map.shape))
    if not torch.isfinite(map).all():
        raise UndefinedFigure("the map is not finite")
    # Attribution maps sum to 1, so "constant" is judged against their own size, not against 0.
    if float(map.max() - map.min()) <= 1e-6 * max(float(map.abs().max()), 1e-30):
        raise UndefinedFigure("the map is constant")
    a = _min_max(_bicubic(_min_max(map), tuple(inside.shape)))
    if settings.polarity == "inverted":
        a = 1 - a
    return F.threshold_(a, settings.threshold, 0.0)


def _inside_against_outside(a: torch.Tensor, inside: Inside, penalty: float) -> float:
    total, within = float(a.sum()), float(torch.dot(a.flatten(), inside.values.flatten()))
    return float(within / inside.area - penalty * (total - within) / (a.numel() - inside.area))


def _min_max(x: torch.Tensor) -> torch.Tensor:
    low, high = torch.aminmax(x)
    return (x - low).div_(high - low + _EPS)


def _bicubic(x: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    (h, w), (height, width) = x.shape, size
    return resizing(h, height, "bicubic", double=True) @ x @ resizing(w, width, "bicubic", double=True).T


def _map(map: Any) -> torch.Tensor:
    map = np.ascontiguousarray(map) if isinstance(map, np.ndarray) else map  # torch takes no negative strides
    tensor = torch.as_tensor(map).detach().cpu().double()
    if tensor.ndim != 2 or tensor.numel() == 0:
        raise ValueError(f"a map must have shape (h, w), got {tuple(tensor.shape)}")
    return tensor


def _distribution(map: Any) -> torch.Tensor:
    return torch.from_numpy(distribution(map.float() if isinstance(map, torch.Tensor) else map))


def _mask(mask: Any) -> torch.Tensor:
    tensor = torch.as_tensor(np.ascontiguousarray(mask.detach().cpu() if hasattr(mask, "cpu") else mask)).double()
    if tensor.ndim != 2:
        raise ValueError(f"a mask must have shape (H, W), got {tuple(tensor.shape)}")
    if not bool(((tensor >= 0) & (tensor <= 1)).all()):
        raise ValueError("a mask must hold values from 0 (outside) to 1 (inside); divide an 8-bit mask by 255")
    if tensor.sum() == 0:
        raise UndefinedFigure("the mask is empty")
    if tensor.sum() == tensor.numel():
        raise UndefinedFigure("the mask is full")
    return tensor


def _symmetries(mask: np.ndarray, turns: bool) -> list[np.ndarray]:
    half = [mask, mask[::-1], mask[:, ::-1], mask[::-1, ::-1]]
    return half + [m.T for m in half] if turns else half
