"""The maps as they would be had other heads been looked at: for a pilot, which saw every head by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from .maps import AttributionMaps, DirectionMaps
from .plan import CapturePlan, HeadChoice
from .readout import resize


def with_heads(maps: AttributionMaps, heads: HeadChoice, plan: CapturePlan) -> AttributionMaps:
    """The unified maps, layers' maps and information that a look at these heads alone would have given.

    Args:
        maps: of all heads, read with `every_head`; what is by step, time or head stays as it was.
    """
    every_head = maps.every_head
    assert every_head is not None

    def direction(name: str, found: DirectionMaps | None) -> DirectionMaps | None:
        return None if found is None else _direction(found, every_head[name], heads, plan)

    return replace(
        maps,
        r2g=_direction(maps.r2g, every_head["r2g"], heads, plan),
        r2g_centred=_direction(maps.r2g_centred, every_head["r2g_centred"], heads, plan),
        _g2r=direction("g2r", maps._g2r),
        _g2r_region=direction("g2r_region", maps._g2r_region),
        _r2g_object_mass=direction("r2g_object_mass", maps._r2g_object_mass),
        information_by_step={la: np.array([_mean(maps.information[la], each)]) for la, each in heads.items()},
    )


def _direction(
    found: DirectionMaps, apart: Mapping[str, np.ndarray], heads: HeadChoice, plan: CapturePlan
) -> DirectionMaps:
    by_layer = {la: torch.from_numpy(_mean(apart[la], each)) for la, each in heads.items()}
    common = max((tuple(map.shape) for map in by_layer.values()), key=lambda grid: grid[0] * grid[1])
    together = torch.zeros(common)
    for layer, own in by_layer.items():
        even = own / own.mean().clamp_min(1e-30) if plan.layer_weighting == "equal" else own
        together += sum(heads[layer].values()) * resize(even[None], common)[0]
    return replace(
        found,
        unified=(together / together.sum().clamp_min(1e-30)).numpy(),
        by_layer={la: (own / own.sum().clamp_min(1e-30)).numpy() for la, own in by_layer.items()},
    )


def _mean(of_heads: np.ndarray, weights: Mapping[int, float]) -> np.ndarray:
    """The weighted mean of those heads' values, (N, …)."""
    share = np.fromiter(weights.values(), np.float32) / sum(weights.values())
    return np.tensordot(share, np.asarray(of_heads[list(weights)], dtype=np.float32), 1)
