"""Procedural pictures and what is left of them at half the resolution: the reference that they are restored from.

A picture is a plain gradient with flat blobs and a few textured patches (stripes and checks); the reference is the mean of
every 2x2 of its pixels. A patch of the picture is shown by the patch of the reference at its own place and by no other. This
module knows nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image

from ...pairs.collection import ValidationPairs
from ...pairs.pair import ValidationPair

SIZE = 32
"""Side of every picture in pixels."""

LOW_SIZE = 16
"""Side of every reference in pixels."""

_BLOBS, _TEXTURES = 3, 3  # of each picture; they may cover each other
_PERIOD = (5.0, 9.0)  # of a texture, in pixels: what half the resolution can still show
_AROUND = 8  # pixels: about a period, so that the inside of a stripe is texture too


@dataclass(frozen=True, kw_only=True)
class LowAndHigh:
    """B pictures (B, 3, 32, 32) and their references (B, 3, 16, 16), in [-1, 1]."""

    target_B3SS: torch.Tensor
    reference_B3LL: torch.Tensor

    def __len__(self) -> int:
        return len(self.target_B3SS)

    def detail_BGG(self, grid: int) -> torch.Tensor:
        """How much there is to see around each place of a `grid` x `grid`, (B, grid, grid): the standard deviation of the
        picture in the `_AROUND`² pixels around its middle, mean over the channels; mirrored at the edge."""
        side = SIZE // grid
        beyond = (_AROUND - side) // 2
        padded = F.pad(self.target_B3SS, (beyond,) * 4, mode="reflect")
        windows = padded.unfold(2, _AROUND, side).unfold(3, _AROUND, side)
        return windows.std((4, 5), correction=0).mean(1)


def make_batch(count: int, generator: torch.Generator) -> LowAndHigh:
    """Draws `count` pairs from `generator` (CPU)."""
    picture = _gradient(count, generator)
    for number in range(_BLOBS + _TEXTURES):
        picture = _covered(picture, textured=number >= _BLOBS, generator=generator)
    return LowAndHigh(target_B3SS=picture, reference_B3LL=F.avg_pool2d(picture, SIZE // LOW_SIZE))


def validation_pairs(count: int, *, seed: int) -> ValidationPairs:
    """`count` pairs as the package's own `ValidationPairs`, 8-bit, without masks; the same ones for the same seed."""
    batch = make_batch(count, torch.Generator().manual_seed(seed))
    pictures = zip(_pictures(batch.reference_B3LL), _pictures(batch.target_B3SS), strict=True)
    return ValidationPairs(
        [
            ValidationPair(name=f"restore_{i:02d}", reference=reference, target=target)
            for i, (reference, target) in enumerate(pictures)
        ]
    )


def _pictures(images_B3SS: torch.Tensor) -> Sequence[Image.Image]:
    bytes_BSS3 = ((images_B3SS + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(one) for one in bytes_BSS3]


def _offsets(cx: torch.Tensor, cy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each pixel's centre, x and y, (B, 1, S, S) as seen from a point of each picture."""
    centres = torch.arange(SIZE) + 0.5
    x, y = centres.view(1, 1, 1, -1) - cx.view(-1, 1, 1, 1), centres.view(1, 1, -1, 1) - cy.view(-1, 1, 1, 1)
    return torch.broadcast_tensors(x, y)


def _gradient(count: int, generator: torch.Generator) -> torch.Tensor:
    angle = 2 * math.pi * torch.rand(count, 1, 1, 1, generator=generator)
    middle = torch.full((count,), SIZE / 2)
    x, y = _offsets(middle, middle)
    blend = (torch.cos(angle) * x + torch.sin(angle) * y) / SIZE + 0.5
    first, second = 1.6 * torch.rand(2, count, 3, 1, 1, generator=generator) - 0.8
    return (first * (1 - blend) + second * blend).clamp(-1, 1)


def _covered(picture: torch.Tensor, *, textured: bool, generator: torch.Generator) -> torch.Tensor:
    """The pictures with a disc or square more each, of one colour or of two that alternate."""
    count = len(picture)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)

    half = uniform(4, 8) if textured else uniform(2.5, 5)
    x, y = _offsets(uniform(3, SIZE - 3), uniform(3, SIZE - 3))
    disc, square = (x**2 + y**2).sqrt(), torch.maximum(x.abs(), y.abs())
    cover = (half - torch.where(uniform(0, 1) < 0.5, disc, square) + 0.5).clamp(0, 1)
    first, second = 2 * torch.rand(2, count, 3, 1, 1, generator=generator) - 1
    if not textured:
        return picture * (1 - cover) + first * cover
    period, phase = uniform(*_PERIOD), uniform(0, 1)
    across, down = (_square_wave(offset / period + phase, period) for offset in (x, y))
    kind = uniform(0, 3)
    wave = torch.where(kind < 1, across, torch.where(kind < 2, down, across * down))
    return picture * (1 - cover) + (first * (1 + wave) + second * (1 - wave)) / 2 * cover


def _square_wave(turns: torch.Tensor, period: torch.Tensor) -> torch.Tensor:
    """±1, half a turn each, with edges one pixel wide."""
    triangle = 1 - 4 * (turns % 1 - 0.5).abs()  # 1 in the middle of a turn, -1 at its ends
    return (triangle * period / 2).clamp(-1, 1)
