"""Sums of one layer's maps over sampler steps, and their means on the CPU. Knows no model and no picture.

Shapes: B batch, N heads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..grids import Grid
from .product import shares


@dataclass(kw_only=True)
class LayerSums:
    """Sums of one layer over sampler steps, for a batch of B images; `per_head` ones as (B, N, tokens)."""

    generated_grid: Grid
    reference_grid: Grid | None
    heads: list[int]
    weights: tuple[float, ...]
    places: dict[str, slice] = field(default_factory=dict)
    """Where each kind of map lies in the last dimension of the sums below."""
    per_head: torch.Tensor | None = None
    per_step: dict[int, torch.Tensor] = field(default_factory=dict)
    """Step → (B, tokens), mean over heads; (B, N, tokens) where the heads of a step are resized one by one."""
    forwards: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    shares: dict[str, tuple[torch.Tensor, int]] = field(default_factory=dict)
    count: int = 0

    read: tuple[int, torch.Tensor, torch.Tensor] | None = None
    """The image that was read last and its means, brought to the CPU once, since each transfer waits for a device."""

    def of_heads(self, name: str, image: int) -> torch.Tensor:
        """(N, tokens), mean over steps, on the CPU."""
        return self._on_cpu(image)[0][:, self.places[name]]

    def of_steps(self, name: str, image: int, steps: Sequence[int]) -> torch.Tensor:
        """(steps, tokens), mean over heads, on the CPU; a step may look at a layer twice (two forwards), their mean counts."""
        each = self._each_step(name, image, steps)
        return each if each.ndim == 2 else shares(self.weights, each.device) @ each

    def of_groups(self, name: str, image: int, steps: Sequence[int], of_group: np.ndarray) -> torch.Tensor:
        """(N, tokens), mean over the steps of a group, on the CPU; only where a step's heads are kept apart."""
        return self._each_step(name, image, steps)[torch.from_numpy(of_group)].mean(0)

    def _each_step(self, name: str, image: int, steps: Sequence[int]) -> torch.Tensor:
        seen = list(self.per_step)
        return self._on_cpu(image)[1][[seen.index(s) for s in steps]][..., self.places[name]]

    def _on_cpu(self, image: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, all maps' tokens), mean over steps; and (steps seen, tokens), or (steps seen, N, tokens)."""
        if self.read is None or self.read[0] != image:
            assert self.per_head is not None
            of_steps = torch.stack([maps[image] / self.forwards[s] for s, maps in self.per_step.items()])
            self.read = image, (self.per_head[image] / self.count).cpu(), of_steps.cpu()
        return self.read[1:]

    @property
    def reference_tokens(self) -> int:
        place = self.places["g2r"]
        return place.stop - place.start

    @property
    def row_grids(self) -> tuple[Grid, Grid]:
        return self.generated_grid, self.reference_grid or (1, self.reference_tokens)
