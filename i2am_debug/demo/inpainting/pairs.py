"""Procedural reference-guided inpainting pairs whose correspondence is known exactly.

One object (4 shapes x 5 patterns x up to 4 colours) is painted into a reference and, at another place and size, into a
target. The hole is the object's box in the target plus one pixel. A target pixel `p` on the object shows the same point of
the object as the reference pixel `r + s_r (p - t) / s_t`. This module knows nothing of models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ...pairs.collection import ValidationPairs
from ...pairs.pair import ValidationPair

SIZE = 32
"""Side of every picture in pixels."""

_SHAPES, _PATTERNS = 4, 5
_CLUTTER = 2  # small plain distractors in each background


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """A batch of B pairs as tensors; pictures in [-1, 1], masks and coverages in [0, 1].

    `geometry_B6` holds, per pair, the object's centre x, y and half-size in the reference, then in the target (pixels).
    """

    target_B3SS: torch.Tensor
    reference_B3SS: torch.Tensor
    hole_B1SS: torch.Tensor
    reference_object_B1SS: torch.Tensor
    target_object_B1SS: torch.Tensor
    geometry_B6: torch.Tensor

    def __len__(self) -> int:
        return len(self.target_B3SS)


def make_batch(count: int, generator: torch.Generator) -> PairBatch:
    """Draws `count` pairs from `generator` (CPU)."""

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    quarter = torch.tensor([0, 0.25, 0.5, 0.75])[torch.argsort(uniform(count, 4), 1)]
    hue = (uniform(count, 1) + quarter + 0.12 * (uniform(count, 4) - 0.5)) % 1
    value = torch.where(uniform(count, 4) < 0.2, 0.15, 0.7 + 0.3 * uniform(count, 4))
    shape = torch.randint(0, _SHAPES, (count,), generator=generator)
    pattern = torch.randint(0, _PATTERNS, (count,), generator=generator)
    colours = _hsv_to_rgb(hue, 0.85 + 0.15 * uniform(count, 4), value)

    reference_half, target_half = 6.5 + 3 * uniform(count), 5 + 3.5 * uniform(count)

    def place(half: torch.Tensor) -> torch.Tensor:
        return half + 1 + (SIZE - 2 * half - 2) * uniform(count)

    rx, ry = place(reference_half), place(reference_half)
    tx, ty = place(target_half), place(target_half)
    painted = dict(shape=shape, pattern=pattern, colours=colours)
    reference, reference_object = _paint(_background(count, generator), rx, ry, reference_half, **painted)
    target, target_object = _paint(_background(count, generator), tx, ty, target_half, **painted)
    x, y = _pixel_centres(count)
    box = torch.maximum((x - _column(tx)).abs(), (y - _column(ty)).abs()) <= _column(target_half + 1)
    return PairBatch(
        target_B3SS=target * 2 - 1,
        reference_B3SS=reference * 2 - 1,
        hole_B1SS=box.float()[:, None],
        reference_object_B1SS=reference_object[:, None],
        target_object_B1SS=target_object[:, None],
        geometry_B6=torch.stack([rx, ry, reference_half, tx, ty, target_half], 1),
    )


def validation_pairs(count: int, *, seed: int) -> ValidationPairs:
    """`count` pairs as the package's own `ValidationPairs`, 8-bit, with both masks; the same ones for the same seed."""
    batch = make_batch(count, torch.Generator().manual_seed(seed))
    return ValidationPairs(
        [
            ValidationPair(
                name=f"demo_{i:02d}",
                target=_picture(batch.target_B3SS[i]),
                reference=_picture(batch.reference_B3SS[i]),
                mask=_mask(batch.hole_B1SS[i]),
                reference_mask=_mask(batch.reference_object_B1SS[i]),
            )
            for i in range(count)
        ]
    )


def true_reference_point(batch: PairBatch, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where in the reference, in pixels, the target points (x, y), each (B, ...) in pixels, are copied from."""
    rx, ry, reference_half, tx, ty, target_half = (
        column.view(-1, *([1] * (x.ndim - 1))) for column in batch.geometry_B6.T
    )
    scale = reference_half / target_half
    return rx + scale * (x - tx), ry + scale * (y - ty)


def _picture(image_3SS: torch.Tensor) -> Image.Image:
    return Image.fromarray(((image_3SS + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def _mask(coverage_1SS: torch.Tensor) -> np.ndarray:
    return (coverage_1SS[0] > 0.5).numpy()


def _column(values_B: torch.Tensor) -> torch.Tensor:
    return values_B[:, None, None]


def _pixel_centres(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    centres = torch.arange(SIZE) + 0.5
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return x.expand(count, SIZE, SIZE), y.expand(count, SIZE, SIZE)


def _hsv_to_rgb(hue: torch.Tensor, saturation: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    def channel(n: int) -> torch.Tensor:
        k = (n + hue * 6) % 6
        return value - value * saturation * torch.clamp(torch.minimum(k, 4 - k), 0, 1)

    return torch.stack([channel(5), channel(3), channel(1)], -1)


def _background(count: int, generator: torch.Generator) -> torch.Tensor:
    """A soft gradient with a few plain distractors: (B, 3, S, S) in [0, 1]."""

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    x, y = _pixel_centres(count)
    first = _hsv_to_rgb(uniform(count), 0.25 * uniform(count), 0.35 + 0.6 * uniform(count))
    second = (first + 0.25 * (uniform(count, 3) - 0.5)).clamp(0, 1)
    angle = 2 * math.pi * uniform(count, 1, 1)
    middle = SIZE / 2
    blend = ((torch.cos(angle) * (x - middle) + torch.sin(angle) * (y - middle)) / 44 + 0.5)[:, None]
    image = first[..., None, None] * (1 - blend) + second[..., None, None] * blend
    for _ in range(_CLUTTER):
        cx, cy = SIZE * torch.rand(2, count, 1, 1, generator=generator)
        radius = 1.5 + 2 * uniform(count, 1, 1)
        disc = ((x - cx) ** 2 + (y - cy) ** 2).sqrt()
        square = torch.maximum((x - cx).abs(), (y - cy).abs())
        distance = torch.where(uniform(count, 1, 1) < 0.5, disc, square)
        cover = (radius - distance + 0.5).clamp(0, 1)[:, None]
        colour = _hsv_to_rgb(uniform(count), torch.full((count,), 0.8), 0.5 + 0.5 * uniform(count))
        image = image * (1 - cover) + colour[..., None, None] * cover
    return image


def _paint(
    image: torch.Tensor,
    cx: torch.Tensor,
    cy: torch.Tensor,
    half: torch.Tensor,
    *,
    shape: torch.Tensor,
    pattern: torch.Tensor,
    colours: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Paints one object a picture; returns the pictures and the object's coverage (B, S, S)."""
    count = len(image)
    x, y = _pixel_centres(count)
    u, v = (x - _column(cx)) / _column(half), (y - _column(cy)) / _column(half)
    au, av = u.abs(), v.abs()
    widest, narrowest = torch.maximum(au, av), torch.minimum(au, av)
    outlines = torch.stack([(u * u + v * v).sqrt(), widest, (au + av) / 1.25, torch.maximum(widest, 2.2 * narrowest)])
    outline = outlines.gather(0, shape.view(1, -1, 1, 1).expand(1, count, SIZE, SIZE))[0]
    cover = ((1 - outline) * _column(half) + 0.5).clamp(0, 1)

    def thirds(z: torch.Tensor) -> torch.Tensor:
        return ((z + 1) * 1.5).floor().clamp(0, 2)

    quadrants, rings, halves = (u > 0) + 2.0 * (v > 0), (widest * 2).floor().clamp(0, 1), (u > 0).float()
    patterns = torch.stack([quadrants, thirds(u), thirds(v), rings, halves])
    index = patterns.gather(0, pattern.view(1, -1, 1, 1).expand(1, count, SIZE, SIZE))[0].long()
    colour = colours.gather(1, index.view(count, -1, 1).expand(-1, -1, 3)).view(count, SIZE, SIZE, 3)
    cover_B1SS = cover[:, None]
    return image * (1 - cover_B1SS) + colour.permute(0, 3, 1, 2) * cover_B1SS, cover
