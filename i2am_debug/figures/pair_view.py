"""What the figures of one pair are computed from: its maps, masks, losses and baseline, and the scores of them.

What a pair or a model lacks is raised as `UndefinedFigure` with its reason at the moment it is asked for, so that a figure
need not know what may be missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..capture.maps import AttributionMaps, DirectionMaps, unified_form
from ..errors import UndefinedFigure
from ..grids import pooled_grid, region_weight
from ..pairs.pair import ValidationPair
from .distances import js_distance
from .observation import Observation
from .places import share_at_own_place
from .scores import IMACSSettings, Inside, energy, imacs_chance, left_out, reference_lines, score_imacs
from .values import Figure, Undefined, reference_tag

_SCORED_SIDE = 256  # pixels

NOT_FINITE = "the attention is not finite"
_NO_JOINT = "no joint attention: 1 by construction"


@dataclass(frozen=True, kw_only=True)
class PairView:
    """One pair in one evaluation, and which of its references is meant."""

    observation: Observation
    pair: ValidationPair
    reference: int
    """0 is the pair's own; 1, 2, … are further ones, which have no masks."""
    copying_layer: str | Undefined
    """Of this reference: the layer with the highest attention information, mean over pairs."""
    settings: IMACSSettings
    baseline: Mapping[str, np.ndarray]
    """"0/r2g", "0/g2r", "0/reference_1/r2g", …: unified maps to measure distance from; empty without a baseline."""
    _masks: dict[int, tuple[np.ndarray, Inside]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """A mask's id → the mask, and what scores need of it."""

    @property
    def maps(self) -> AttributionMaps:
        """Of the reference that is meant."""
        return self.observation.maps if self.reference == 0 else self.observation.further[self.reference]

    @property
    def region(self) -> np.ndarray:
        """(H, W) bool of the generated picture: the hole, or the kept region."""
        return _given(self.pair.region, self._without("no mask"))

    @property
    def reference_region(self) -> np.ndarray:
        """(H, W) bool of the reference: the object, or the kept region. Without a place for its tokens a region can't be laid
        over them."""
        own = self.pair.reference_region if self.reference == 0 else None
        place = self.maps.undefined_place
        return _given(None if place else own, place or self._without("no reference mask"))

    def _without(self, reason: str) -> str:
        underived = self.pair.undefined_kept
        return f"{reason} and no kept region ({underived})" if underived else reason

    @property
    def loss(self) -> float:
        """With the pair's own reference."""
        return _number(self.observation.loss)

    @property
    def wrong_reference_loss(self) -> float:
        """The same noise and timesteps with another pair's reference."""
        return _number(self.observation.wrong_reference_loss)

    @property
    def no_reference_loss(self) -> float:
        """The same with a blank reference."""
        return _number(self.observation.no_reference_loss)

    def loss_inside(self) -> float:
        """Mean of the loss over what is to be made anew: the hole, or what an edit changes."""
        return self._loss_within(inside=True)

    def loss_outside(self) -> float:
        """The same over the rest of the picture."""
        return self._loss_within(inside=False)

    def _loss_within(self, *, inside: bool) -> float:
        region = self.region if self.pair.mask is not None else ~self.region
        losses = _given(self.observation.loss_map, self.observation.no_loss_map)
        weight = (
            region_weight(torch.from_numpy(region if inside else ~region), losses.shape).numpy().reshape(losses.shape)
        )
        if not weight.any():
            raise UndefinedFigure(f"nothing of the picture lies {'inside' if inside else 'outside'} the region")
        return float((losses * weight).sum() / weight.sum())

    def imacs(self, map: np.ndarray, mask: np.ndarray) -> float:
        """`scores.score_imacs` with the run's settings, the mask brought to at most 256 pixels a side: values between 0 and 1
        count in part. At its own size a score takes as long as the mask has pixels, and differs by less than 0.01."""
        return score_imacs(map, self._inside(mask), self.settings)

    def _inside(self, mask: np.ndarray) -> Inside:
        known = self._masks.get(id(mask))
        if known is None:
            known = self._masks[id(mask)] = mask, Inside(mask, _SCORED_SIDE)
        return known[1]

    def imacs_z(self, map: np.ndarray, mask: np.ndarray) -> float:
        """How many standard deviations the map's IMACS lies above that of masks that know nothing of it."""
        return imacs_chance(map, self._inside(mask), self.settings).z(self.imacs(map, mask))

    def imacs_without_each(self, by_step: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """(S,) IMACS of the mean of (S, h, w) maps, with each of them left out."""
        return left_out(lambda map: self.imacs(map, mask), list(by_step))

    def layer_imacs_r_hole_without_each(self, layer: str) -> np.ndarray:
        """The same of a layer's IMACS_r of the hole."""
        by_step = _given(
            self.maps.g2r_region.by_layer_step.get(layer), "a layer's maps are kept step by step of a few steps only"
        )
        return self.imacs_without_each(by_step, self.reference_region)

    def imacs_lines(self, maps: DirectionMaps, mask: np.ndarray) -> dict[str, float]:
        """What maps without a model score on this mask."""
        return reference_lines(self._inside(mask), maps.unified.shape, self.settings)

    def energy(self, map: np.ndarray, mask: np.ndarray) -> float:
        """Share of the map's mass inside the mask."""
        return energy(map, self._inside(mask))

    def energy_without_each(self, by_step: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The same of their energy."""
        return left_out(lambda map: self.energy(map, mask), list(by_step))

    def information(self, layer: str | None = None) -> float:
        """Attention information in bits, of a layer, by default of the copying layer."""
        if self.maps.undefined_g2r is not None:
            raise UndefinedFigure(self.maps.undefined_g2r)
        bits = self.maps.layer_information[layer or self._copying_layer]
        return _given(bits if np.isfinite(bits) else None, NOT_FINITE)

    def information_without_each(self, layer: str | None = None) -> np.ndarray:
        """(S,) `information` with each of the sampler steps looked at left out."""
        self.information(layer)
        return left_out(float, list(self.maps.information_by_step[layer or self._copying_layer]))

    def reference_mass(self) -> float:
        """Mean over layers."""
        return _mean(self.maps.reference_mass, _NO_JOINT)

    def edited_mass(self) -> float:
        """The same of the changed region's tokens: those in the hole, or outside the kept region."""
        _given(self.pair.region, self._without("no mask"))
        edited = self.maps.reference_mass_outside if self.pair.mask is None else self.maps.reference_mass_inside
        return _mean(edited, _NO_JOINT)

    def kept_place(self, layer: str | None = None) -> float:
        """`places.share_at_own_place` of the kept patches in a layer, by default the copying layer."""
        if self.maps.undefined_place:
            raise UndefinedFigure(self.maps.undefined_place)
        kept = _given(self.pair.kept, f"no kept region ({self.pair.undefined_kept or 'none was given or derived'})")
        layer = layer or self._copying_layer
        generated, reference = (maps.by_layer[layer].shape for maps in (self.maps.r2g, self.maps.g2r))
        of_rows = self.maps.rows.reference_grid
        if pooled_grid(reference, 32) != of_rows:  # a coarser layer's rows have been brought to the finest grid
            reference = of_rows
        return share_at_own_place(self.maps.rows.by_layer[layer][1], generated, reference, kept)

    def branch_share(self) -> float:
        """Mean over layers."""
        return _mean(self.maps.branch_share, "no decoupled cross-attention")

    def distance_to_baseline(self, direction: str) -> float:
        """JS distance of the unified map, "r2g" or "g2r", to the baseline's."""
        own = "" if self.reference == 0 else f"{reference_tag(self.reference)}/"
        before = _given(self.baseline.get(f"{self.observation.index}/{own}{direction}"), "no baseline")
        return js_distance(unified_form(getattr(self.maps, direction).unified), before)

    @property
    def _copying_layer(self) -> str:
        if isinstance(self.copying_layer, Undefined):
            raise UndefinedFigure(self.copying_layer.reason)
        return self.copying_layer


def _given(value: Any, reason: str) -> Any:
    if value is None:
        raise UndefinedFigure(reason)
    return value


def _number(value: Figure) -> float:
    if isinstance(value, Undefined):
        raise UndefinedFigure(value.reason)
    return value


def _mean(by_layer: Mapping[str, float], without: str) -> float:
    return float(np.mean(list(_given(by_layer or None, without).values())))
