"""Accumulates attributions over sampler steps, layers and heads while a model runs.

Only sums are kept. Knows no model and no picture.

Shapes: B batch, N heads, g r tokens of pooled rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from ..grids import Grid, pooled_grid
from .attention import Attribution
from .layer_sums import LayerSums, RowsOfLayers
from .maps import AttributionMaps
from .plan import CapturePlan
from .product import shares
from .readout import Readout
from .rows import HEAD_SIDE, RowSums, row_pooling

_LARGE = (
    2**20
)  # numbers in a layer's rows from which on they are summed in half precision: large models have 60 such layers


class Accumulator:
    """Running sums of what was captured; `maps(image, total)` reads them out."""

    def __init__(self, plan: CapturePlan) -> None:
        self._plan = plan
        self._layers: dict[str, LayerSums] = {}
        self._rows = RowsOfLayers()
        self._product_rows: dict[torch.Size, torch.Tensor] = {}
        self._readout: Readout | None = None  # of what was added until now
        self.images = 0

    def expect(self, layer: str, grids: tuple[Grid, Grid | None], heads: Mapping[int, float], *, images: int) -> None:
        """Says that a product of this layer was seen, which is added later: layers stand in the order in which they are seen.

        Args:
            heads: head looked at → how many of the model's heads it stands for.
        """
        self.images = images
        if layer not in self._layers:
            self._layers[layer] = LayerSums(
                generated_grid=grids[0], reference_grid=grids[1], heads=list(heads), weights=tuple(heads.values())
            )

    def rows(
        self,
        layer: str,
        step: int,
        grids: tuple[Grid, Grid],
        heads: Mapping[int, float],
        *,
        images: int,
        all_heads: int,
        device: torch.device,
    ) -> RowSums:
        """Where the rows of the product that is added next are to be added.

        Args:
            heads: head looked at → how many of the model's heads it stands for.
            all_heads: how many the layer has.
        """
        patches = row_pooling(*grids, device)
        wide, small = ([getattr(p, size).count for p in patches] for size in ("to_wide", "to_small"))
        small_grids = pooled_grid(grids[0], HEAD_SIDE), pooled_grid(grids[1], HEAD_SIDE)
        of_heads = self._rows.of_heads.get(small_grids)
        if of_heads is None or of_heads.shape[1] < all_heads:
            self._rows.of_heads[small_grids] = torch.zeros(images, all_heads, *small, device=device)
            if of_heads is not None:
                self._rows.of_heads[small_grids][:, : of_heads.shape[1]] = of_heads
        of_steps = self._rows.of_steps[small_grids]
        if step not in of_steps:
            of_steps[step] = torch.zeros(images, *small, device=device)
        if layer not in self._rows.of_layers:
            dtype = torch.float16 if math.prod(wide) >= _LARGE else torch.float32
            self._rows.of_layers[layer] = torch.zeros(images, *wide, device=device, dtype=dtype)
        mean = self._rows.of_layers[layer]
        if mean.shape not in self._product_rows:
            self._product_rows[mean.shape] = torch.zeros_like(mean, dtype=torch.float32)
        return RowSums(
            patches=patches,
            heads=heads,
            mean_Bgr=mean,
            heads_BNgr=self._rows.of_heads[small_grids],
            step_Bgr=of_steps[step],
            product_Bgr=self._product_rows[mean.shape],
        )

    def add(
        self,
        layer: str,
        step: int,
        grids: tuple[Grid, Grid | None],
        heads: Mapping[int, float],
        found: Attribution,
    ) -> None:
        """Adds one product's attribution; `heads`: head looked at → how many of the model's heads it stands for."""
        self.expect(layer, grids, heads, images=len(found.maps_BNX))
        sums, maps_BNX = self._layers[layer], found.maps_BNX
        in_step = maps_BNX if self._plan.resizes_heads else shares(sums.weights, maps_BNX.device) @ maps_BNX
        if sums.per_head is None:
            sums.places, sums.per_head = found.places, torch.zeros_like(maps_BNX)
        sums.per_head += maps_BNX
        sums.per_step[step] = sums.per_step[step] + in_step if step in sums.per_step else in_step
        sums.forwards[step] += 1
        sums.count += 1
        self._readout = None

    def add_share(self, layer: str, name: str, value_B: torch.Tensor) -> None:
        """Adds one product's share of the reference, (B,) in [0, 1]: "reference_mass", "branch_share", …; NaN: has none."""
        sums = self._layers[layer]
        total, count = sums.shares.get(name, (torch.zeros_like(value_B), 0))
        sums.shares[name] = (total + value_B, count + 1)
        self._readout = None

    def maps(self, image: int, total_steps: int | None, every_head: bool = False) -> AttributionMaps:
        """The maps of one image; `total_steps` is the sampler's, by default as many as were seen."""
        if not 0 <= image < self.images:
            raise IndexError(f"image {image} of a batch of {self.images}")
        if self._readout is None:
            self._readout = self._make_readout()
        return self._readout.maps(image, total_steps, every_head)

    def _make_readout(self) -> Readout:
        return Readout(self._plan, self._layers, self._rows)
