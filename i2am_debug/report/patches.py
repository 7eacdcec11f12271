"""Which patches of a picture are shown one by one."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .render import Mask, Size


def choose_patches(hole: Mask, grid: Size, count: int = 6) -> list[tuple[int, int]]:
    """Up to `count` patches (row, column), evenly spread over the hole, in reading order; the same for the same input.

    hole: bool (H, W), any size; None means the whole grid. A patch is in the hole if more than half of it is; if no
    patch is, those that the hole covers most. grid: (h, w). Raises ValueError if the hole is empty or `count` < 1.
    """
    if count < 1 or (hole is not None and not np.any(hole)):
        raise ValueError(f"choose_patches needs a hole that is not empty and count >= 1, got count={count}")
    mask = Image.fromarray(np.ones(grid, dtype=np.float32) if hole is None else np.asarray(hole, dtype=np.float32))
    covered = np.asarray(mask.resize((grid[1], grid[0]), Image.Resampling.BOX))
    inside = np.argwhere(covered > 0.5 if (covered > 0.5).any() else covered == covered.max())
    cells = inside[:, 0] + 1j * inside[:, 1]
    centres = cells[[abs(cells - cells.mean()).argmin()]]
    while len(centres) < min(count, len(cells)):
        centres = np.append(centres, cells[abs(cells[:, None] - centres).min(1).argmax()])
    # The farthest cells lie on the hole's rim; a few rounds of k-medoids move them inwards. No cell is in two clusters.
    for _ in range(8):
        nearest = abs(cells[:, None] - centres).argmin(1)
        clusters = [cells[nearest == index] for index in range(len(centres))]
        centres = np.array([own[abs(own - own.mean()).argmin()] for own in clusters])
    return sorted((int(centre.real), int(centre.imag)) for centre in centres)
