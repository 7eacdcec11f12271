"""Procedural instruction edits whose truth is known exactly: recolour, move, replace or remove one object, keep all else.

A reference is a plain gradient with small blobs and one object (4 shapes, 8 colours) that no blob touches. The target is the
reference after one edit. What is uncovered is gradient, so that nothing has to be guessed. Outlines are hard: outside the
object's old and new place the target equals the reference in every bit. This module knows nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from ...pairs.collection import ValidationPairs
from ...pairs.pair import ValidationPair

SIZE = 32
"""Side of every picture in pixels."""

MOVE = 8
"""How far an object is moved, in pixels."""

COLOURS = {
    "red": (1, -1, -1),
    "green": (-1, 1, -1),
    "blue": (-1, -1, 1),
    "yellow": (1, 1, -1),
    "magenta": (1, -1, 1),
    "cyan": (-1, 1, 1),
    "white": (1, 1, 1),
    "black": (-1, -1, -1),
}
DIRECTIONS = {"left": (-MOVE, 0), "right": (MOVE, 0), "up": (0, -MOVE), "down": (0, MOVE)}
SHAPES = ("disc", "square", "diamond", "cross")

INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "recolour": tuple(COLOURS),
    "move": tuple(DIRECTIONS),
    "replace": SHAPES,
    "remove": (),
}
"""Verb → the words that may follow it; where there are none, it stands alone."""

PROMPTS = tuple(f"{verb} {word}".strip() for verb, words in INSTRUCTIONS.items() for word in words or ("",))
"""Every instruction there is."""

_SHARES = {"recolour": 0.3, "move": 0.35, "replace": 0.2, "remove": 0.15}  # more of what is harder to learn
_BLOBS = 6  # drawn; those that would touch the object are left out


@dataclass(frozen=True, kw_only=True)
class EditBatch:
    """B edits; pictures (B, 3, 32, 32) in [-1, 1], masks (B, 1, 32, 32) bool."""

    prompts: list[str]
    reference_B3SS: torch.Tensor
    target_B3SS: torch.Tensor
    reference_object_B1SS: torch.Tensor
    target_object_B1SS: torch.Tensor
    """Nowhere true where the object was removed."""
    shift_B2: torch.Tensor
    """By how many pixels, x and y, the object moved: its pixel p of the target shows the point p - shift of the reference."""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def kept_B1SS(self) -> torch.Tensor:
        """Where the target equals the reference because nothing was to be done there."""
        return ~(self.reference_object_B1SS | self.target_object_B1SS)


def make_batch(count: int, generator: torch.Generator) -> EditBatch:
    """Draws `count` edits from `generator` (CPU)."""

    def one_of(number: int) -> torch.Tensor:
        return torch.randint(number, (count,), generator=generator)

    half = 4 + one_of(3)
    cx, cy = (half + 1 + (torch.rand(count, generator=generator) * (SIZE - 2 * half - 1)).long() for _ in range(2))
    shape, colour = one_of(len(SHAPES)), one_of(len(COLOURS))
    verb = torch.multinomial(torch.tensor(list(_SHARES.values())), count, replacement=True, generator=generator)
    new_shape = (shape + 1 + one_of(len(SHAPES) - 1)) % len(SHAPES)
    new_colour = (colour + 1 + one_of(len(COLOURS) - 1)) % len(COLOURS)
    direction = _direction_that_fits(cx, cy, half, generator)
    words = {"recolour": new_colour, "move": direction, "replace": new_shape}
    prompts = []
    for i, name in enumerate(list(_SHARES)[v] for v in verb.tolist()):
        allowed = INSTRUCTIONS[name]
        prompts.append(f"{name} {allowed[int(words[name][i])]}" if allowed else name)

    is_verb = {name: verb == number for number, name in enumerate(_SHARES)}
    shift = torch.tensor(list(DIRECTIONS.values()))[direction] * is_verb["move"][:, None]
    old = _outline(cx, cy, half, shape)
    new = _outline(cx + shift[:, 0], cy + shift[:, 1], half, torch.where(is_verb["replace"], new_shape, shape))
    new &= ~is_verb["remove"][:, None, None, None]
    background = _background(count, cx, cy, half, generator)
    paints = torch.tensor(list(COLOURS.values()), dtype=torch.float32)[:, :, None, None]
    target_colour = torch.where(is_verb["recolour"], new_colour, colour)
    return EditBatch(
        prompts=prompts,
        reference_B3SS=torch.where(old, paints[colour], background),
        target_B3SS=torch.where(new, paints[target_colour], background),
        reference_object_B1SS=old,
        target_object_B1SS=new,
        shift_B2=shift,
    )


def validation_pairs(count: int, *, seed: int) -> ValidationPairs:
    """`count` pairs as the package's own `ValidationPairs`, 8-bit, without masks; the same ones for the same seed."""
    batch = make_batch(count, torch.Generator().manual_seed(seed))
    return ValidationPairs(
        [
            ValidationPair(name=f"edit_{i:02d}", prompt=prompt, reference=reference, target=target)
            for i, (prompt, reference, target) in enumerate(
                zip(batch.prompts, _pictures(batch.reference_B3SS), _pictures(batch.target_B3SS), strict=True)
            )
        ]
    )


def _pictures(images_B3SS: torch.Tensor) -> Sequence[Image.Image]:
    bytes_BSS3 = ((images_B3SS + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(one) for one in bytes_BSS3]


def _direction_that_fits(
    cx: torch.Tensor, cy: torch.Tensor, half: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """For each object one of the directions that leave it inside the picture; there always is one."""
    moved = torch.stack([cx, cy], 1)[:, None] + torch.tensor(list(DIRECTIONS.values()))
    fits = ((moved - half[:, None, None] >= 0) & (moved + half[:, None, None] <= SIZE)).all(-1)
    return torch.where(fits, torch.rand(fits.shape, generator=generator), -1.0).argmax(1)


def _offsets(cx: torch.Tensor, cy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each pixel's centre, x and y, (B, 1, S, S) as seen from a point of each picture."""
    centres = torch.arange(SIZE) + 0.5
    return centres.view(1, 1, 1, -1) - cx.view(-1, 1, 1, 1), centres.view(1, 1, -1, 1) - cy.view(-1, 1, 1, 1)


def _outline(cx: torch.Tensor, cy: torch.Tensor, half: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """Where an object lies, (B, 1, S, S) bool."""
    x, y = (offset.abs() for offset in _offsets(cx, cy))
    x, y = torch.broadcast_tensors(x, y)
    size = half.view(-1, 1, 1, 1)
    widest, narrowest = torch.maximum(x, y), torch.minimum(x, y)
    shapes = (x**2 + y**2 <= size**2, widest <= size, x + y <= size, (widest <= size) & (narrowest <= size / 2.5))
    return torch.stack(shapes, 1)[torch.arange(len(shape)), shape]


def _background(
    count: int, cx: torch.Tensor, cy: torch.Tensor, half: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Gradients with blobs that keep away from the object: (B, 3, S, S) in [-1, 1]."""

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    angle = 2 * math.pi * uniform(count, 1, 1, 1)
    middle = torch.full((count,), SIZE / 2)
    x, y = _offsets(middle, middle)
    blend = (torch.cos(angle) * x + torch.sin(angle) * y) / SIZE + 0.5
    first, second = 1.6 * uniform(2, count, 3, 1, 1) - 0.8
    picture = (first * (1 - blend) + second * blend).clamp(-1, 1)
    for _ in range(_BLOBS):
        bx, by = 2 + (SIZE - 4) * uniform(2, count)
        radius = 1.5 + 1.5 * uniform(count)
        x, y = _offsets(bx, by)
        apart = torch.maximum((bx - cx).abs(), (by - cy).abs()) > half + radius + 1
        blob = (x.abs() <= radius.view(-1, 1, 1, 1)) & (y.abs() <= radius.view(-1, 1, 1, 1)) & apart.view(-1, 1, 1, 1)
        picture = torch.where(blob, 2 * uniform(count, 3, 1, 1) - 1, picture)
    return picture
