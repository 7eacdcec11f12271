"""Accumulates attributions over sampler steps, layers and heads while a model runs, and averages them into `AttributionMaps`.

Only sums are kept. Knows no model and no picture.

Shapes: B batch, S looked-at sampler steps, T time groups, N heads, h w tokens of a map, g r tokens of pooled rows.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..grids import Grid, pooled_grid
from .attention import Attribution
from .maps import NO_GRID, ONE_TOKEN, AttributionMaps, DirectionMaps, SpecificRows
from .plan import CapturePlan
from .product import shares

_HEAD_SIDE = 16  # of the maps of single heads and of their rows


@dataclass(kw_only=True)
class _LayerSums:
    """Sums of one layer over sampler steps, for a batch of B images; `per_head` ones as (B, N, tokens)."""

    generated_grid: Grid
    reference_grid: Grid | None
    heads: list[int]
    weights: tuple[float, ...]
    per_head: dict[str, torch.Tensor] = field(default_factory=dict)
    per_step: dict[str, dict[int, torch.Tensor]] = field(default_factory=lambda: defaultdict(dict))
    forwards: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    rows: torch.Tensor | None = None
    shares: dict[str, tuple[torch.Tensor, int]] = field(default_factory=dict)
    count: int = 0


class Accumulator:
    """Running sums of what was captured; `maps(image, total)` reads them out."""

    def __init__(self, plan: CapturePlan) -> None:
        self._plan = plan
        self._layers: dict[str, _LayerSums] = {}
        # Rows of heads and steps are summed over layers of equal grids at once: keeping layer x head would not scale.
        self._head_rows: dict[tuple[Grid, Grid], dict[int, torch.Tensor]] = defaultdict(dict)
        self._step_rows: dict[tuple[Grid, Grid], dict[int, torch.Tensor]] = defaultdict(dict)
        self.images = 0

    @property
    def empty(self) -> bool:
        return not self._layers

    def add(
        self,
        layer: str,
        step: int,
        grids: tuple[Grid, Grid | None],
        heads: Mapping[int, float],
        found: Attribution,
    ) -> None:
        """Adds one product's attribution; `heads`: head looked at → how many of the model's heads it stands for."""
        assert found.rows is not None
        self.images = len(found.r2g_BNG)
        weights = tuple(heads.values())
        sums = self._layers.setdefault(
            layer,
            _LayerSums(generated_grid=grids[0], reference_grid=grids[1], heads=list(heads), weights=weights),
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
        share = shares(weights, found.r2g_BNG.device)
        for name, value in values.items():
            _add_to(sums.per_head, name, value)
            _add_to(sums.per_step[name], step, share @ value)
        sums.forwards[step] += 1  # a step may look at a layer twice (two forwards); their mean counts
        sums.rows = found.rows.mean_Bgr.clone() if sums.rows is None else sums.rows.add_(found.rows.mean_Bgr)
        sums.count += 1

        small = (
            pooled_grid(grids[0], _HEAD_SIDE),
            pooled_grid(grids[1] or (1, found.g2r_BNR.shape[-1]), _HEAD_SIDE),
        )
        each = found.rows.heads_BNgr
        for i, (head, weight) in enumerate(heads.items()):
            _add_to(self._head_rows[small], head, each[:, i], weight)
        step_rows = (share @ each.flatten(2)).view_as(each[:, 0])
        _add_to(self._step_rows[small], step, step_rows, sum(weights))

    def add_share(self, layer: str, name: str, value_B: torch.Tensor) -> None:
        """Adds one product's share of the reference, (B,) in [0, 1]: "reference_mass", "branch_share", …; NaN: has none."""
        sums = self._layers[layer]
        total, count = sums.shares.get(name, (torch.zeros_like(value_B), 0))
        sums.shares[name] = (total + value_B, count + 1)

    def maps(self, image: int, total_steps: int | None) -> AttributionMaps:
        """The maps of one image; `total_steps` is the sampler's, by default as many as were seen."""
        if not 0 <= image < self.images:
            raise IndexError(f"image {image} of a batch of {self.images}")
        first = next(iter(self._layers.values()))
        steps = tuple(sorted(first.per_step["r2g"]))
        total = total_steps or steps[-1] + 1
        count = min(self._plan.time_groups, total)
        groups_TS = np.arange(count)[:, None] == np.array([s * count // total for s in steps])
        reference_tokens = first.per_head["g2r"].shape[-1]
        undefined = ONE_TOKEN if reference_tokens == 1 else None
        no_place = undefined or (NO_GRID if first.reference_grid is None else None)

        def direction(name: str) -> DirectionMaps | None:
            why_not = {"g2r": undefined, "g2r_region": undefined, "r2g_object_mass": no_place}.get(name)
            if name not in first.per_head or why_not is not None:
                return None
            return self._direction(name, image, steps, groups_TS)

        r2g, centred = direction("r2g"), direction("r2g_centred")
        assert r2g is not None and centred is not None
        return AttributionMaps(
            r2g=r2g,
            r2g_centred=centred,
            rows=self._rows(image, steps, groups_TS),
            information={
                name: self._spread(s, s.per_head["information"][image, :, 0] / s.count)
                for name, s in self._layers.items()
            },
            information_by_step={
                name: np.array([float(s.per_step["information"][i][image, 0]) / s.forwards[i] for i in steps])
                for name, s in self._layers.items()
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
            undefined_g2r=undefined,
            undefined_place=no_place,
        )

    def _shares(self, name: str, image: int) -> dict[str, float]:
        found = {layer: s.shares[name] for layer, s in self._layers.items() if name in s.shares}
        means = {layer: float(total[image]) / count for layer, (total, count) in found.items()}
        return {layer: mean for layer, mean in means.items() if not math.isnan(mean)}

    @property
    def _all_heads(self) -> int:
        return 1 + max(max(s.heads) for s in self._layers.values())

    def _spread(self, sums: _LayerSums, values_N: torch.Tensor) -> np.ndarray:
        """Values of the looked-at heads at their own index, NaN elsewhere."""
        out = np.full(1 + max(sums.heads), np.nan, dtype=np.float32)
        out[sums.heads] = values_N.cpu().numpy()
        return out

    def _grid(self, sums: _LayerSums, name: str) -> Grid:
        if name.startswith("r2g"):
            return sums.generated_grid
        return sums.reference_grid or (1, sums.per_head["g2r"].shape[-1])

    def _direction(self, name: str, image: int, steps: tuple[int, ...], groups_TS: np.ndarray) -> DirectionMaps:
        layers = self._layers
        common = max((self._grid(s, name) for s in layers.values()), key=lambda g: g[0] * g[1])
        by_layer, by_layer_head, layer_weight, step_maps, head_maps = {}, {}, {}, [], []
        head_weight = torch.zeros(len(layers), self._all_heads)
        for row, (layer, sums) in enumerate(layers.items()):
            grid = self._grid(sums, name)
            per_head = (sums.per_head[name][image] / sums.count).cpu()
            share = shares(sums.weights, torch.device("cpu"))
            by_layer[layer] = _sum_1((share @ per_head).view(grid)).numpy()
            if name in ("r2g", "g2r"):
                by_layer_head[layer] = _sum_1(_pooled(per_head.view(-1, *grid))).numpy()
            layer_weight[layer] = sum(sums.weights)
            per_step = torch.stack([sums.per_step[name][s][image] / sums.forwards[s] for s in steps]).cpu()
            step_maps.append(self._on(common, per_step, grid))
            spread = torch.zeros(self._all_heads, *common)
            spread[sums.heads] = self._on(common, per_head, grid)
            head_maps.append(spread)
            head_weight[row, sums.heads] = torch.tensor(sums.weights)
        weights = torch.tensor(list(layer_weight.values()))
        by_step = torch.einsum("lshw,l->shw", torch.stack(step_maps), weights / weights.sum())
        by_head = torch.einsum("lnhw,ln->nhw", torch.stack(head_maps), head_weight)
        by_head[head_weight.sum(0) == 0] = torch.nan
        by_time = torch.stack(
            [
                by_step[torch.from_numpy(of_group)].mean(0) if of_group.any() else torch.full(common, torch.nan)
                for of_group in groups_TS
            ]
        )
        return DirectionMaps(
            unified=_sum_1(by_step.mean(0)).numpy(),
            by_time=_sum_1(by_time).numpy(),
            by_head=_sum_1(by_head).numpy(),
            by_layer=by_layer,
            by_layer_head=by_layer_head,
            by_step=_sum_1(by_step).numpy(),
        )

    def _on(self, common: Grid, maps: torch.Tensor, grid: Grid) -> torch.Tensor:
        """(n, tokens) maps of one layer on the common grid (n, h, w), weighted as the plan says."""
        if self._plan.layer_weighting == "equal":
            maps = maps / maps.mean(-1, keepdim=True).clamp_min(1e-30)
        return resize(maps.view(-1, *grid), common)

    def _rows(self, image: int, steps: tuple[int, ...], groups_TS: np.ndarray) -> SpecificRows:
        layers = self._layers
        grids = {
            name: (
                pooled_grid(s.generated_grid, 32),
                pooled_grid(s.reference_grid or (1, s.per_head["g2r"].shape[-1]), 32),
            )
            for name, s in layers.items()
        }
        fine, small = _finest(list(grids.values())), _finest(list(self._step_rows))
        by_layer, unified, weight = {}, 0, 0.0
        for name, sums in layers.items():
            assert sums.rows is not None
            rows = (sums.rows[image] / sums.count).cpu()
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
        for own, by_head in self._head_rows.items():
            for head, rows in by_head.items():
                head_rows[head] = head_rows[head] + _resize_rows(rows[image].cpu(), own, small)
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
    if tuple(maps.shape[-2:]) == tuple(grid):
        return maps
    return F.interpolate(maps[:, None].float(), size=grid, mode="bicubic", align_corners=False)[:, 0].clamp_min(0)


def _resize_rows(rows: torch.Tensor, own: tuple[Grid, Grid], wanted: tuple[Grid, Grid]) -> torch.Tensor:
    """(g, r) rows between grids; bilinear, so that a row stays a distribution without ringing."""
    if own == wanted:
        return rows
    (gh, gw), (rh, rw) = own
    x = rows.view(1, gh * gw, rh, rw)
    if own[1] != wanted[1]:
        x = F.interpolate(x, size=wanted[1], mode="bilinear", align_corners=False)
    x = x.reshape(gh * gw, -1).T.reshape(1, -1, gh, gw)
    if own[0] != wanted[0]:
        x = F.interpolate(x, size=wanted[0], mode="bilinear", align_corners=False)
    return _sum_1(x.reshape(x.shape[1], -1).T, dim=-1) * rows.sum(-1).mean()


def _pooled(maps: torch.Tensor) -> torch.Tensor:
    """(n, h, w) maps as means over patches, at most 16 a side."""
    return F.adaptive_avg_pool2d(maps.float(), pooled_grid(tuple(maps.shape[-2:]), _HEAD_SIDE))


def _stack_rows(rows: list[Any], grids: Any) -> np.ndarray:
    (gh, gw), (rh, rw) = grids
    missing = torch.full((gh * gw, rh * rw), torch.nan)
    return torch.stack([missing if isinstance(r, int) else _sum_1(r, dim=-1) for r in rows]).numpy()


def _sum_1(maps: torch.Tensor, dim: Any = (-2, -1)) -> torch.Tensor:
    return maps / maps.sum(dim, keepdim=True).clamp_min(1e-30)


def _add_to(sums: dict[Any, torch.Tensor], key: Any, value: torch.Tensor, weight: float = 1.0) -> None:
    if key in sums:
        sums[key].add_(value, alpha=weight)
    else:
        sums[key] = value * weight
