"""Averages sums over sampler steps, layers and heads into `AttributionMaps`. Knows no model and no picture.

Shapes: B some images of a batch, S looked-at sampler steps, T time groups, L layers of equal grids, U their heads one layer's
after the other, N heads, h w tokens of a map, g r tokens of pooled rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..grids import Grid, pooled_grid, resizing
from .layer_rows import HeldRows, LayerRows, finest, resize_rows, sum_1
from .layer_sums import LayerSums, RowsOfLayers
from .maps import NO_GRID, ONE_TOKEN, AttributionMaps, DirectionMaps, SpecificRows
from .plan import CapturePlan
from .product import shares
from .rows import HEAD_SIDE

_FEW = 8  # steps of which a layer's maps are kept one by one
_TOGETHER = 8  # images whose maps are made at once: those of small models take longer to hand over than to compute
_CPU = torch.device("cpu")


class Readout:
    """Reads out sums to which nothing is added any more."""

    def __init__(self, plan: CapturePlan, layers: Mapping[str, LayerSums], rows: RowsOfLayers) -> None:
        self._plan, self._layers, self._sums = plan, layers, rows
        self._first = next(iter(layers.values()))
        self._all_heads = 1 + max(max(s.heads) for s in layers.values())
        alike: dict[Any, dict[str, LayerSums]] = {}
        for name, sums in layers.items():
            alike.setdefault((sums.row_grids, tuple(sums.places)), {})[name] = sums
        self._stacks = [_Stack(own, self._all_heads) for own in alike.values()]
        self._made: dict[Any, list[AttributionMaps]] = {}

    def maps(self, image: int, total_steps: int | None, every_head: bool) -> AttributionMaps:
        """As `Accumulator.maps`."""
        block = image // _TOGETHER
        key = block, total_steps, every_head
        if key not in self._made:
            images = slice(block * _TOGETHER, (block + 1) * _TOGETHER)
            self._made = {key: self._of_images(images, total_steps, every_head)}  # each is read once, in order
        return self._made[key][image % _TOGETHER]

    def _of_images(self, images: slice, total_steps: int | None, every_head: bool) -> list[AttributionMaps]:
        first = self._first
        steps = tuple(sorted(first.per_step))
        total = total_steps or steps[-1] + 1
        count = min(self._plan.time_groups, total)
        groups_TS = np.arange(count)[:, None] == np.array([s * count // total for s in steps])
        undefined = ONE_TOKEN if first.reference_tokens == 1 else None
        no_place = undefined or (NO_GRID if first.reference_grid is None else None)
        stacks = [_Read(stack, images, steps) for stack in self._stacks]
        why_not = {"g2r": undefined, "g2r_region": undefined, "r2g_object_mass": no_place}
        directions = {
            name: self._direction(name, stacks, groups_TS)
            for name in first.places
            if name != "information" and why_not.get(name) is None
        }
        information = [self._information(stacks, row) for row in range(stacks[0].images)]
        apart = [self._apart(stacks, row) if every_head else None for row in range(stacks[0].images)]
        found = []
        for row, (by_head, by_step) in enumerate(information):
            of_image = {name: each[row] for name, each in directions.items()}
            image = images.start + row
            maps = AttributionMaps(
                r2g=of_image["r2g"],
                r2g_centred=of_image["r2g_centred"],
                rows=self._rows(image, steps, groups_TS),
                information=by_head,
                information_by_step=by_step,
                heads={name: tuple(s.heads) for name, s in self._layers.items()},
                steps=steps,
                total_steps=total,
                reference_mass=self._shares("reference_mass", image),
                reference_mass_inside=self._shares("reference_mass_inside", image),
                reference_mass_outside=self._shares("reference_mass_outside", image),
                branch_share=self._shares("branch_share", image),
                _g2r=of_image.get("g2r"),
                _g2r_region=of_image.get("g2r_region"),
                _r2g_object_mass=of_image.get("r2g_object_mass"),
                every_head=apart[row],
                undefined_g2r=undefined,
                undefined_place=no_place,
            )
            found.append(maps)
        return found

    def _information(self, stacks: Sequence[_Read], row: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """`AttributionMaps.information` and `.information_by_step`."""
        by_head, by_step = {}, {}
        for read in stacks:
            bits_U = read.heads("information")[row, :, 0].numpy()
            bits_LS = read.layer_steps("information")[row, ..., 0].double().numpy()
            for of_layer, (name, sums, own) in zip(bits_LS, read.stack.each, strict=True):
                by_head[name], by_step[name] = _spread(sums, bits_U[own]), of_layer
        return self._in_order(by_head), self._in_order(by_step)

    def _in_order(self, by_layer: dict[str, Any]) -> dict[str, Any]:
        """As layers stand in the model."""
        return {name: by_layer[name] for name in self._layers if name in by_layer}

    def _shares(self, name: str, image: int) -> dict[str, float]:
        found = {layer: s.shares[name] for layer, s in self._layers.items() if name in s.shares}
        means = {layer: float(total[image]) / count for layer, (total, count) in found.items()}
        return {layer: mean for layer, mean in means.items() if not math.isnan(mean)}

    def _apart(self, stacks: Sequence[_Read], row: int) -> dict[str, dict[str, np.ndarray]]:
        """`AttributionMaps.every_head`; in half precision, since a large model has thousands of heads."""
        return {
            name: self._in_order(
                {
                    layer: read.heads(name)[row, own].view(-1, *read.stack.grid(name)).half().numpy()
                    for read in stacks
                    for layer, _, own in read.stack.each
                }
            )
            for name in self._first.places
            if name != "information"
        }

    def _direction(self, name: str, stacks: Sequence[_Read], groups_TS: np.ndarray) -> list[DirectionMaps]:
        """Of each image."""
        common = max((read.stack.grid(name) for read in stacks), key=lambda g: g[0] * g[1])
        whole = sum(sum(s.weights) for s in self._layers.values())  # of the model's heads
        (T, S), B, tokens = groups_TS.shape, stacks[0].images, math.prod(common)
        of_heads, of_steps, of_groups = (torch.zeros(B, n, tokens) for n in (self._all_heads, S, T))
        by_layer, by_layer_head, by_layer_step = {}, {}, {}
        for read in stacks:
            stack, grid, share = read.stack, read.stack.grid(name), read.stack.layer_weights / whole
            heads_BU, steps_BLS = read.heads(name), read.layer_steps(name)
            layer_maps = sum_1((stack.to_layers @ heads_BU).unflatten(-1, grid)).numpy()
            of_steps += torch.einsum("blsx,l->bsx", self._on(common, steps_BLS, grid), share)
            of_heads += stack.to_heads @ self._on(common, heads_BU, grid)
            if self._plan.resizes_heads:
                for row, of_group in enumerate(groups_TS):
                    group_BU = self._on(common, read.of_group(name, of_group), grid)
                    of_groups[:, row] += share @ stack.to_layers @ group_BU
            pooled = sum_1(_pooled(heads_BU.unflatten(-1, grid))).numpy() if name in ("r2g", "g2r") else None
            few = name == "g2r_region" and S <= _FEW
            each_step = sum_1(steps_BLS.unflatten(-1, grid)).numpy() if few else None
            for row, (layer, _, own) in enumerate(stack.each):
                by_layer[layer] = layer_maps[:, row]
                if pooled is not None:
                    by_layer_head[layer] = pooled[:, own]
                if each_step is not None:
                    by_layer_step[layer] = each_step[:, row]
        if self._plan.resizes_heads:
            by_time, unified = of_groups, of_heads.sum(1)
        else:
            unified = of_steps.mean(1)
            by_time = torch.full_like(of_groups, torch.nan)
            for row, of_group in enumerate(groups_TS):
                if of_group.any():
                    by_time[:, row] = of_steps[:, torch.from_numpy(of_group)].mean(1)
        of_heads[:, ~self._heads_seen] = torch.nan
        levels = (sum_1(x.unflatten(-1, common)).numpy() for x in (unified, by_time, of_heads, of_steps))
        return [
            DirectionMaps(
                unified=of_all,
                by_time=of_times,
                by_head=of_each_head,
                by_layer={layer: by_layer[layer][row] for layer in self._layers},
                by_layer_head={layer: by_layer_head[layer][row] for layer in self._layers if by_layer_head},
                by_step=of_each_step,
                by_layer_step={layer: by_layer_step[layer][row] for layer in self._layers if by_layer_step},
            )
            for row, (of_all, of_times, of_each_head, of_each_step) in enumerate(zip(*levels, strict=True))
        ]

    @cached_property
    def _heads_seen(self) -> torch.Tensor:
        seen = torch.zeros(self._all_heads, dtype=torch.bool)
        for sums in self._layers.values():
            seen[sums.heads] = True
        return seen

    def _on(self, common: Grid, maps: torch.Tensor, grid: Grid) -> torch.Tensor:
        """(…, tokens) maps of layers on the common grid, its tokens too in one dimension, weighted as the plan says."""
        if self._plan.layer_weighting == "equal":
            maps = maps / maps.mean(-1, keepdim=True).clamp_min(1e-30)
        return resize(maps.unflatten(-1, grid), common).flatten(-2)

    def _rows(self, image: int, steps: tuple[int, ...], groups_TS: np.ndarray) -> SpecificRows:
        by_layer = LayerRows(
            {
                name: HeldRows(self._sums.of_layers[name][image].to(_CPU, copy=True), sums.row_grids)
                for name, sums in self._layers.items()
            }
        )
        fine, small = by_layer.finest, finest(list(self._sums.of_steps))
        alike: dict[tuple[Grid, Grid], torch.Tensor] = {}  # of layers of equal grids, which are enlarged together
        for name, sums in self._layers.items():
            held = by_layer.held[name].sums
            if sums.row_grids not in alike:
                alike[sums.row_grids] = torch.zeros_like(held, dtype=torch.float32)
            alike[sums.row_grids].add_(held, alpha=sum(sums.weights) / sums.count)
        unified = sum(
            resize_rows(together.in_order[None], together.grids, fine)[0]
            for together in (HeldRows(rows, own) for own, rows in alike.items())
        )
        of_steps: Any = 0
        for own, by_step in self._sums.of_steps.items():
            of_steps = resize_rows(torch.stack([by_step[step][image] for step in steps]).cpu(), own, small) + of_steps
        by_time = torch.full((len(groups_TS), *of_steps.shape[1:]), torch.nan)
        for row, of_group in enumerate(groups_TS):
            if of_group.any():
                torch.sum(of_steps[torch.from_numpy(of_group)], 0, out=by_time[row])
        by_head = torch.zeros(self._all_heads, *of_steps.shape[1:])
        for own, rows in self._sums.of_heads.items():
            heads = rows[image, : self._all_heads].cpu()  # of those beyond, none was looked at
            by_head[: len(heads)] += resize_rows(heads, own, small)
        by_head[~self._heads_seen] = torch.nan
        return SpecificRows(
            generated_grid=fine[0],
            reference_grid=fine[1],
            unified=sum_1(unified, dim=-1).numpy(),
            by_layer=by_layer,
            small_grids=small,
            by_time=sum_1(by_time, dim=-1).numpy(),
            by_head=sum_1(by_head, dim=-1).numpy(),
        )


class _Stack:
    """Layers whose maps have equal grids and places."""

    def __init__(self, layers: Mapping[str, LayerSums], all_heads: int) -> None:
        first = next(iter(layers.values()))
        self.places, self._grids = first.places, first.row_grids
        U = sum(len(s.heads) for s in layers.values())
        self.to_layers, self.to_heads = torch.zeros(len(layers), U), torch.zeros(all_heads, U)
        """(L, U) shares of a layer's heads, and (N, U) how many of the model's heads one stands for."""
        self.layer_weights = torch.tensor([sum(s.weights) for s in layers.values()])
        self.each: list[tuple[str, LayerSums, slice]] = []
        """Each layer's name, sums, and where its heads are."""
        start = 0
        for row, (name, sums) in enumerate(layers.items()):
            own = slice(start, start + len(sums.heads))
            self.to_layers[row, own] = shares(sums.weights, _CPU)
            self.to_heads[sums.heads, torch.arange(own.start, own.stop)] = torch.tensor(sums.weights)
            self.each.append((name, sums, own))
            start = own.stop

    def grid(self, name: str) -> Grid:
        return self._grids[0 if name.startswith("r2g") else 1]


class _Read:
    """Some images' means of a stack, brought to the CPU at once, since each transfer waits for a device."""

    def __init__(self, stack: _Stack, images: slice, steps: tuple[int, ...]) -> None:
        self.stack = stack
        heads, each_step = [], []
        for _, sums, _ in stack.each:
            assert sums.per_head is not None
            heads.append(sums.per_head[images] / sums.count)
            of_steps = torch.stack([sums.per_step[s][images] / sums.forwards[s] for s in steps], 1)
            each_step.append(of_steps if of_steps.ndim == 4 else of_steps[:, :, None])
        self._heads = torch.cat(heads, 1).cpu()  # (B, U, all kinds' tokens)
        self._steps = torch.cat(each_step, 2).cpu()  # (B, S, L or U, all kinds' tokens)

    @property
    def images(self) -> int:
        return len(self._heads)

    def heads(self, name: str) -> torch.Tensor:
        """(B, U, tokens), mean over steps."""
        return self._heads[..., self.stack.places[name]]

    def layer_steps(self, name: str) -> torch.Tensor:
        """(B, L, S, tokens), mean over heads; a step may look at a layer twice (two forwards), their mean counts."""
        each = self._steps[..., self.stack.places[name]]
        return (each if each.shape[2] == len(self.stack.each) else self.stack.to_layers @ each).transpose(1, 2)

    def of_group(self, name: str, of_group: np.ndarray) -> torch.Tensor:
        """(B, U, tokens), mean over the steps of a group; only where a step's heads are kept apart."""
        return self._steps[:, torch.from_numpy(of_group)][..., self.stack.places[name]].mean(1)


def _spread(sums: LayerSums, values_N: np.ndarray) -> np.ndarray:
    """Values of the looked-at heads at their own index, NaN elsewhere."""
    out = np.full(1 + max(sums.heads), np.nan, dtype=np.float32)
    out[sums.heads] = values_N
    return out


def resize(maps: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(…, h, w) maps on another grid: bicubic, `align_corners=False`, clamped at 0 (as the authors do)."""
    h, w = maps.shape[-2:]
    if (h, w) == tuple(grid):
        return maps
    return (resizing(h, grid[0], "bicubic") @ maps.float() @ resizing(w, grid[1], "bicubic").T).clamp_min(0)


def _pooled(maps: torch.Tensor) -> torch.Tensor:
    """(…, h, w) maps as means over patches, at most 16 a side."""
    pooled = F.adaptive_avg_pool2d(maps.float().flatten(0, -3), pooled_grid(tuple(maps.shape[-2:]), HEAD_SIDE))
    return pooled.unflatten(0, maps.shape[:-2])
