"""Accumulates attributions over sampler steps, layers and heads while a model runs, and averages them into `AttributionMaps`.

Only sums are kept. Knows no model and no picture.

Shapes: B batch, S looked-at sampler steps, T time groups, N heads, h w tokens of a map, g r tokens of pooled rows.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..grids import Grid, pooled_grid
from .attention import Attribution
from .layer_sums import LayerSums
from .maps import NO_GRID, ONE_TOKEN, AttributionMaps, DirectionMaps, SpecificRows
from .plan import CapturePlan
from .product import shares
from .rows import HEAD_SIDE, SIDE, RowSums, in_order, row_pooling

_FEW = 8  # steps of which a layer's maps are kept one by one
_LARGE = (
    2**20
)  # numbers in a layer's rows from which on they are summed in half precision: large models have 60 such layers


class Accumulator:
    """Running sums of what was captured; `maps(image, total)` reads them out."""

    def __init__(self, plan: CapturePlan) -> None:
        self._plan = plan
        self._layers: dict[str, LayerSums] = {}
        self._layer_rows: dict[str, torch.Tensor] = {}  # layer → sum over steps, as `RowSums.mean_Bgr`
        # Rows of heads and steps are summed over layers of equal grids at once: keeping layer x head would not scale.
        self._head_rows: dict[tuple[Grid, Grid], torch.Tensor] = {}
        self._heads_seen: dict[tuple[Grid, Grid], set[int]] = defaultdict(set)
        self._step_rows: dict[tuple[Grid, Grid], dict[int, torch.Tensor]] = defaultdict(dict)
        self._product_rows: dict[torch.Size, torch.Tensor] = {}
        self.images = 0

    @property
    def _resizes_heads(self) -> bool:
        """The authors bring each head's map, a group of steps together, to the common grid, and clamp it there."""
        return self._plan.layer_weighting == "paper"

    @property
    def empty(self) -> bool:
        return not self._layers

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
        of_heads = self._head_rows.get(small_grids)
        if of_heads is None or of_heads.shape[1] < all_heads:
            self._head_rows[small_grids] = torch.zeros(images, all_heads, *small, device=device)
            if of_heads is not None:
                self._head_rows[small_grids][:, : of_heads.shape[1]] = of_heads
        self._heads_seen[small_grids].update(heads)
        of_steps = self._step_rows[small_grids]
        if step not in of_steps:
            of_steps[step] = torch.zeros(images, *small, device=device)
        if layer not in self._layer_rows:
            dtype = torch.float16 if math.prod(wide) >= _LARGE else torch.float32
            self._layer_rows[layer] = torch.zeros(images, *wide, device=device, dtype=dtype)
        mean = self._layer_rows[layer]
        if mean.shape not in self._product_rows:
            self._product_rows[mean.shape] = torch.zeros_like(mean, dtype=torch.float32)
        return RowSums(
            patches=patches,
            heads=heads,
            mean_Bgr=mean,
            heads_BNgr=self._head_rows[small_grids],
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
        self.images, weights = len(found.r2g_BNG), tuple(heads.values())
        sums = self._layers.setdefault(
            layer,
            LayerSums(generated_grid=grids[0], reference_grid=grids[1], heads=list(heads), weights=weights),
        )
        values = {
            "r2g": found.r2g_BNG,
            "r2g_centred": found.r2g_centred_BNG,
            "g2r": found.g2r_BNR,
            "g2r_region": found.g2r_region_BNR,
            "information": found.information_BN[..., None],
        }
        if found.r2g_object_mass_BNG is not None:
            values["r2g_object_mass"] = found.r2g_object_mass_BNG
        all_maps = torch.cat(list(values.values()), -1)
        in_step = all_maps.clone() if self._resizes_heads else shares(weights, all_maps.device) @ all_maps
        if sums.per_head is None:
            ends = list(itertools.accumulate(value.shape[-1] for value in values.values()))
            sums.places = {name: slice(a, b) for name, a, b in zip(values, [0, *ends], ends, strict=False)}
            sums.per_head = all_maps
        else:
            sums.per_head += all_maps
        sums.per_step[step] = sums.per_step[step] + in_step if step in sums.per_step else in_step
        sums.forwards[step] += 1
        sums.count += 1
        sums.read = None

    def add_share(self, layer: str, name: str, value_B: torch.Tensor) -> None:
        """Adds one product's share of the reference, (B,) in [0, 1]: "reference_mass", "branch_share", …; NaN: has none."""
        sums = self._layers[layer]
        total, count = sums.shares.get(name, (torch.zeros_like(value_B), 0))
        sums.shares[name] = (total + value_B, count + 1)

    def maps(self, image: int, total_steps: int | None, every_head: bool = False) -> AttributionMaps:
        """The maps of one image; `total_steps` is the sampler's, by default as many as were seen."""
        if not 0 <= image < self.images:
            raise IndexError(f"image {image} of a batch of {self.images}")
        first = next(iter(self._layers.values()))
        steps = tuple(sorted(first.per_step))
        total = total_steps or steps[-1] + 1
        count = min(self._plan.time_groups, total)
        groups_TS = np.arange(count)[:, None] == np.array([s * count // total for s in steps])
        undefined = ONE_TOKEN if first.reference_tokens == 1 else None
        no_place = undefined or (NO_GRID if first.reference_grid is None else None)

        def direction(name: str) -> DirectionMaps | None:
            why_not = {"g2r": undefined, "g2r_region": undefined, "r2g_object_mass": no_place}.get(name)
            if name not in first.places or why_not is not None:
                return None
            return self._direction(name, image, steps, groups_TS)

        r2g, centred = direction("r2g"), direction("r2g_centred")
        assert r2g is not None and centred is not None
        return AttributionMaps(
            r2g=r2g,
            r2g_centred=centred,
            rows=self._rows(image, steps, groups_TS),
            information={
                name: self._spread(s, s.of_heads("information", image)[:, 0]) for name, s in self._layers.items()
            },
            information_by_step={
                name: s.of_steps("information", image, steps)[:, 0].double().numpy() for name, s in self._layers.items()
            },
            heads={name: tuple(s.heads) for name, s in self._layers.items()},
            steps=steps,
            total_steps=total,
            reference_mass=self._shares("reference_mass", image),
            reference_mass_inside=self._shares("reference_mass_inside", image),
            reference_mass_outside=self._shares("reference_mass_outside", image),
            branch_share=self._shares("branch_share", image),
            _g2r=direction("g2r"),
            _g2r_region=direction("g2r_region"),
            _r2g_object_mass=direction("r2g_object_mass"),
            every_head=self._apart(image) if every_head else None,
            undefined_g2r=undefined,
            undefined_place=no_place,
        )

    def _shares(self, name: str, image: int) -> dict[str, float]:
        found = {layer: s.shares[name] for layer, s in self._layers.items() if name in s.shares}
        means = {layer: float(total[image]) / count for layer, (total, count) in found.items()}
        return {layer: mean for layer, mean in means.items() if not math.isnan(mean)}

    def _apart(self, image: int) -> dict[str, dict[str, np.ndarray]]:
        """`AttributionMaps.every_head`; in half precision, since a large model has thousands of heads."""
        return {
            name: {
                la: s.of_heads(name, image).view(-1, *self._grid(s, name)).half().numpy()
                for la, s in self._layers.items()
            }
            for name in next(iter(self._layers.values())).places
            if name != "information"
        }

    @property
    def _all_heads(self) -> int:
        return 1 + max(max(s.heads) for s in self._layers.values())

    def _spread(self, sums: LayerSums, values_N: torch.Tensor) -> np.ndarray:
        """Values of the looked-at heads at their own index, NaN elsewhere."""
        out = np.full(1 + max(sums.heads), np.nan, dtype=np.float32)
        out[sums.heads] = values_N.numpy()
        return out

    def _grid(self, sums: LayerSums, name: str) -> Grid:
        return sums.row_grids[0 if name.startswith("r2g") else 1]

    def _direction(self, name: str, image: int, steps: tuple[int, ...], groups_TS: np.ndarray) -> DirectionMaps:
        layers = self._layers
        common = max((self._grid(s, name) for s in layers.values()), key=lambda g: g[0] * g[1])
        by_layer, by_layer_head, by_layer_step, layer_weight, step_maps, head_maps = {}, {}, {}, {}, [], []
        group_maps: list[torch.Tensor] = []
        head_weight = torch.zeros(len(layers), self._all_heads)
        for row, (layer, sums) in enumerate(layers.items()):
            grid = self._grid(sums, name)
            per_head = sums.of_heads(name, image)
            share = shares(sums.weights, torch.device("cpu"))
            by_layer[layer] = _sum_1((share @ per_head).view(grid)).numpy()
            if name in ("r2g", "g2r"):
                by_layer_head[layer] = _sum_1(_pooled(per_head.view(-1, *grid))).numpy()
            layer_weight[layer] = sum(sums.weights)
            of_steps = sums.of_steps(name, image, steps)
            step_maps.append(self._on(common, of_steps, grid))
            if name == "g2r_region" and len(steps) <= _FEW:
                by_layer_step[layer] = _sum_1(of_steps.view(-1, *grid)).numpy()
            spread = torch.zeros(self._all_heads, *common)
            spread[sums.heads] = self._on(common, per_head, grid)
            head_maps.append(spread)
            head_weight[row, sums.heads] = torch.tensor(sums.weights)
            if self._resizes_heads:
                of_groups = [sums.of_groups(name, image, steps, of_group) for of_group in groups_TS]
                group_maps.append(torch.stack([(share @ self._on(common, g, grid).flatten(1)) for g in of_groups]))
        weights = torch.tensor(list(layer_weight.values()))
        by_step = torch.einsum("lshw,l->shw", torch.stack(step_maps), weights / weights.sum())
        by_head = torch.einsum("lnhw,ln->nhw", torch.stack(head_maps), head_weight)
        by_head[head_weight.sum(0) == 0] = torch.nan
        if self._resizes_heads:
            by_time = torch.einsum("ltx,l->tx", torch.stack(group_maps), weights / weights.sum()).view(-1, *common)
            unified = torch.einsum("lnhw,ln->hw", torch.stack(head_maps), head_weight)
        else:
            unified = by_step.mean(0)
            by_time = torch.stack(
                [
                    by_step[torch.from_numpy(of_group)].mean(0) if of_group.any() else torch.full(common, torch.nan)
                    for of_group in groups_TS
                ]
            )
        return DirectionMaps(
            unified=_sum_1(unified).numpy(),
            by_time=_sum_1(by_time).numpy(),
            by_head=_sum_1(by_head).numpy(),
            by_layer=by_layer,
            by_layer_head=by_layer_head,
            by_step=_sum_1(by_step).numpy(),
            by_layer_step=by_layer_step,
        )

    def _on(self, common: Grid, maps: torch.Tensor, grid: Grid) -> torch.Tensor:
        """(n, tokens) maps of one layer on the common grid (n, h, w), weighted as the plan says."""
        if self._plan.layer_weighting == "equal":
            maps = maps / maps.mean(-1, keepdim=True).clamp_min(1e-30)
        return resize(maps.view(-1, *grid), common)

    def _rows(self, image: int, steps: tuple[int, ...], groups_TS: np.ndarray) -> SpecificRows:
        layers = self._layers
        grids = {
            name: (pooled_grid(s.row_grids[0], SIDE), pooled_grid(s.row_grids[1], SIDE)) for name, s in layers.items()
        }
        fine, small = _finest(list(grids.values())), _finest(list(self._step_rows))
        by_layer, unified, weight = {}, 0, 0.0
        for name, sums in layers.items():
            sum_over_steps = self._layer_rows[name][image : image + 1]
            patches = row_pooling(*sums.row_grids, sum_over_steps.device)
            rows = in_order(sum_over_steps, patches)[0].cpu().float() / sums.count
            on_reference = _resize_rows(rows, grids[name], (grids[name][0], fine[1]))
            by_layer[name] = (grids[name][0], _sum_1(on_reference, dim=-1).numpy())
            layer_weight = sum(sums.weights)
            unified = unified + layer_weight * _resize_rows(rows, grids[name], fine)
            weight += layer_weight
        time_rows: list[Any] = [0] * len(groups_TS)
        head_rows: list[Any] = [0] * self._all_heads
        for own, by_step in self._step_rows.items():
            for step, group in zip(steps, groups_TS.argmax(0), strict=True):
                time_rows[group] = time_rows[group] + _resize_rows(by_step[step][image].cpu(), own, small)
        for own, of_heads in ((own, rows[image].cpu()) for own, rows in self._head_rows.items()):
            for head in self._heads_seen[own]:
                head_rows[head] = head_rows[head] + _resize_rows(of_heads[head], own, small)
        return SpecificRows(
            generated_grid=fine[0],
            reference_grid=fine[1],
            unified=_sum_1(unified / weight, dim=-1).numpy(),
            by_layer=by_layer,
            small_grids=small,
            by_time=_stack_rows(time_rows, small),
            by_head=_stack_rows(head_rows, small),
        )


def _finest(pairs: list[tuple[Grid, Grid]]) -> tuple[Grid, Grid]:
    """The finest generated and the finest reference grid."""
    return max((p[0] for p in pairs), key=math.prod), max((p[1] for p in pairs), key=math.prod)


def resize(maps: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(n, h, w) maps on another grid: bicubic, `align_corners=False`, clamped at 0 (as the authors do)."""
    h, w = maps.shape[-2:]
    if (h, w) == tuple(grid):
        return maps
    return (_resizing(h, grid[0], "bicubic") @ maps.float() @ _resizing(w, grid[1], "bicubic").T).clamp_min(0)


def _resize_rows(rows: torch.Tensor, own: tuple[Grid, Grid], wanted: tuple[Grid, Grid]) -> torch.Tensor:
    """(g, r) rows between grids; bilinear, so that a row stays a distribution without ringing."""
    if own == wanted:
        return rows
    ((gh, gw), (rh, rw)), (to_generated, to_reference) = own, wanted
    x = rows
    if own[1] != to_reference:
        x = x.view(-1, rh, rw)
        x = _resizing(rh, to_reference[0], "bilinear") @ x @ _resizing(rw, to_reference[1], "bilinear").T
    if own[0] != to_generated:
        x = _resizing(gh, to_generated[0], "bilinear") @ x.reshape(gh, -1)
        x = _resizing(gw, to_generated[1], "bilinear") @ x.view(to_generated[0], gw, -1)
    return _sum_1(x.reshape(math.prod(to_generated), -1), dim=-1) * rows.sum(-1).mean()


@lru_cache(maxsize=256)
def _resizing(length: int, wanted: int, mode: str) -> torch.Tensor:
    """What torch's interpolation (`align_corners=False`) does to one side, as a matrix (wanted, length)."""
    one_side = torch.eye(length).view(1, length, length, 1)
    return F.interpolate(one_side, size=(wanted, 1), mode=mode, align_corners=False)[0, :, :, 0].T.contiguous()


def _pooled(maps: torch.Tensor) -> torch.Tensor:
    """(n, h, w) maps as means over patches, at most 16 a side."""
    return F.adaptive_avg_pool2d(maps.float(), pooled_grid(tuple(maps.shape[-2:]), HEAD_SIDE))


def _stack_rows(rows: list[Any], grids: Any) -> np.ndarray:
    (gh, gw), (rh, rw) = grids
    missing = torch.full((gh * gw, rh * rw), torch.nan)
    return torch.stack([missing if isinstance(r, int) else _sum_1(r, dim=-1) for r in rows]).numpy()


def _sum_1(maps: torch.Tensor, dim: Any = (-2, -1)) -> torch.Tensor:
    return maps / maps.sum(dim, keepdim=True).clamp_min(1e-30)
