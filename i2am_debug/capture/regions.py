"""A trace's masks as weights of tokens, made once for each grid: what is made inside a forward keeps a device waiting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..errors import UndefinedFigure, UnsupportedModel
from ..grids import Grid, region_weight


class Regions:
    """One mask for all images of a batch, or one for each; a mask of None is all of the picture.

    Raises:
        UnsupportedModel: they differ in size.
    """

    def __init__(self, masks: Any, name: str) -> None:
        self._masks, self._name = _stack(_as_list(masks)), name
        self._made: dict[tuple[Grid, int, torch.device], torch.Tensor] = {}

    def weight(self, grid: Grid | None, images: int, device: torch.device) -> torch.Tensor | None:
        """(images, tokens) in [0, 1], how much of each token lies inside; None without a mask or a grid.

        Raises:
            UnsupportedModel: there are neither one nor `images` masks.
            UndefinedFigure: a mask is empty.
        """
        if self._masks is None or grid is None:
            return None
        key = grid, images, device
        if key not in self._made:
            if len(self._masks) not in (1, images):
                raise UnsupportedModel(
                    f"trace has {len(self._masks)} of {self._name}, the denoiser's batch holds {images} images"
                )
            weight = region_weight(self._masks, grid).expand(images, -1)
            if not bool((weight.sum(-1) > 0).all()):
                raise UndefinedFigure(f"the trace's {self._name} is empty")
            self._made[key] = weight.to(device)
        return self._made[key]


def _as_list(mask: Any) -> list[Any] | None:
    if mask is None:
        return None
    if isinstance(mask, (list, tuple)):
        return list(mask)
    return [mask] if np.ndim(mask) == 2 else list(mask)


def _stack(masks: Sequence[Any] | None) -> torch.Tensor | None:
    """(n, side, side) float; regions may differ in size from pair to pair, so each is brought to one common raster."""
    given = [torch.as_tensor(np.asarray(m), dtype=torch.float32) for m in masks or () if m is not None]
    if masks is None or not given:
        return None
    if len({t.shape for t in given}) > 1:
        raise UnsupportedModel("the masks of one batch differ in size; use batch_size=1")
    each = iter(given)
    return torch.stack([torch.ones_like(given[0]) if m is None else next(each) for m in masks])
