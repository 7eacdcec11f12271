"""The figures of one pair: what its maps score, and why some can't be computed. Knows no model and no training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..capture.maps import AttributionMaps, unified_form
from ..errors import UndefinedFigure
from ..pairs.pair import ValidationPair
from .distances import js_distance
from .observation import Observation
from .scores import IMACSSettings, energy, imacs_chance, jackknife_error, score_imacs
from .values import Figure, Undefined, as_figure, reference_tag

_NOT_FINITE = "the attention is not finite"


def copying_layer(maps: Sequence[AttributionMaps]) -> str | Undefined:
    """The layer with the highest attention information, mean over pairs."""
    bits = {la: float(np.mean([m.layer_information[la] for m in maps])) for la in maps[0].layers}
    finite = {la: value for la, value in bits.items() if math.isfinite(value)}
    undefined = maps[0].undefined_g2r
    if undefined is not None or not finite:
        return Undefined(undefined or _NOT_FINITE)
    return max(finite, key=lambda la: finite[la])


def score_pair(
    observation: Observation,
    pair: ValidationPair,
    copying: str | Undefined,
    *,
    settings: IMACSSettings,
    population: int,
    baseline: Mapping[str, Any],
) -> tuple[dict[str, Figure], dict[str, Figure]]:
    """Every figure of a pair's own reference by its tag, and the standard errors of those that have one.

    Args:
        population: how many sampler steps those that were looked at stand for.
        baseline: "i/r2g" and "i/g2r" of pair i, unified maps to measure distance from; empty without one.
    """
    maps = observation.maps
    # Without a place for its tokens a reference's mask can't be laid over them.
    no_object = maps.undefined_place or "no reference mask"
    object_mask = None if maps.undefined_place else pair.reference_mask
    figures: dict[str, Figure] = {}
    errors: dict[str, Figure] = {}

    def imacs_of(tag: str, get: Callable[[], Any], mask: np.ndarray | None, without: str) -> None:
        def value() -> float:
            return score_imacs(get().unified, _given(mask, without), settings)

        def chance() -> float:
            return imacs_chance(get().unified, _given(mask, without), settings).z(value())

        def error() -> float:
            return jackknife_error(lambda m: score_imacs(m, mask, settings), list(get().by_step), population)

        figures[tag], figures[f"{tag}_z"] = _figure(value), _figure(chance)
        errors[tag] = figures[tag] if isinstance(figures[tag], Undefined) else _figure(error)

    def of_object(score: Callable[..., float], get: Callable[[], np.ndarray], *more: Any) -> Figure:
        return _figure(lambda: score(get(), _given(object_mask, no_object), *more))

    imacs_of("imacs_g", lambda: maps.r2g, pair.mask, "no mask")
    imacs_of("imacs_r", lambda: maps.g2r, object_mask, no_object)
    imacs_of("imacs_r_hole", lambda: maps.g2r_region, object_mask, no_object)
    figures["imacs_g_centred"] = _of_hole(lambda: maps.r2g_centred.unified, pair, settings)
    figures["imacs_g_object_mass"] = _of_hole(lambda: maps.r2g_object_mass.unified, pair, settings)
    figures["energy_r_hole"] = of_object(energy, lambda: maps.g2r_region.unified)
    for layer in maps.layers:
        all_queries, hole_queries = (partial(_by_layer, maps, which, layer) for which in ("g2r", "g2r_region"))
        figures[f"layer/{layer}/imacs_r"] = of_object(score_imacs, all_queries, settings)
        figures[f"layer/{layer}/imacs_r_hole"] = of_object(score_imacs, hole_queries, settings)
        figures[f"layer/{layer}/energy_r_hole"] = of_object(energy, hole_queries)
        figures[f"layer/{layer}/attention_information"] = _information(maps, layer)
    figures["attention_information"] = _information(maps, copying)
    errors["attention_information"] = (
        copying
        if isinstance(copying, Undefined)
        else _figure(lambda: jackknife_error(float, list(maps.information_by_step[copying]), population))
    )
    figures["reference_mass"], figures["branch_share"] = _shares(maps)
    figures["loss"], figures["reference_gap"] = observation.loss, _gap(observation)
    for tag in ("r2g", "g2r"):
        figures[f"drift/js_{tag}"] = _figure(partial(_distance, maps, tag, baseline, f"{observation.index}/{tag}"))
    return figures, errors


def layers_of_further(observations: Sequence[Observation]) -> dict[int, str | Undefined]:
    """Number of each further reference that any pair has → its own `copying_layer`."""
    numbers = sorted({number for observation in observations for number in observation.further})
    return {
        n: copying_layer([observation.further[n] for observation in observations if n in observation.further])
        for n in numbers
    }


def score_further(
    observation: Observation,
    pair: ValidationPair,
    layers: Mapping[int, str | Undefined],
    *,
    settings: IMACSSettings,
    baseline: Mapping[str, Any],
) -> dict[str, Figure]:
    """Figures of references 1, 2, … under tags such as "reference_1/imacs_g".

    They have no masks of their own, so nothing is said of where in them the model looks. `layers` from `layers_of_further`;
    `baseline` as for `score_pair`, with "i/reference_1/r2g" and so on.
    """
    figures = {}
    for number, layer in layers.items():
        name = reference_tag(number)
        if number in observation.further:
            own = _of_reference(
                observation.further[number], f"{observation.index}/{name}", pair, layer, settings, baseline
            )
        else:
            own = dict.fromkeys(_OF_FURTHER, Undefined(f"this pair has no reference {number}"))
        figures.update({f"{name}/{tag}": value for tag, value in own.items()})
    return figures


_OF_FURTHER = (
    "imacs_g",
    "imacs_g_centred",
    "attention_information",
    "reference_mass",
    "branch_share",
    "drift/js_r2g",
    "drift/js_g2r",
)


def _of_reference(
    maps: AttributionMaps,
    place: str,
    pair: ValidationPair,
    layer: str | Undefined,
    settings: IMACSSettings,
    baseline: Mapping[str, Any],
) -> dict[str, Figure]:
    values = (
        _of_hole(lambda: maps.r2g.unified, pair, settings),
        _of_hole(lambda: maps.r2g_centred.unified, pair, settings),
        _information(maps, layer),
        *_shares(maps),
        _figure(partial(_distance, maps, "r2g", baseline, f"{place}/r2g")),
        _figure(partial(_distance, maps, "g2r", baseline, f"{place}/g2r")),
    )
    return dict(zip(_OF_FURTHER, values, strict=True))


def _of_hole(get: Callable[[], np.ndarray], pair: ValidationPair, settings: IMACSSettings) -> Figure:
    return _figure(lambda: score_imacs(get(), _given(pair.mask, "no mask"), settings))


def _information(maps: AttributionMaps, layer: str | Undefined) -> Figure:
    if isinstance(layer, Undefined):
        return layer
    if maps.undefined_g2r is not None:
        return Undefined(maps.undefined_g2r)
    return as_figure(maps.layer_information[layer], _NOT_FINITE)


def _shares(maps: AttributionMaps) -> tuple[Figure, Figure]:
    """Reference mass and branch share."""
    return (
        _mean(maps.reference_mass, "no joint attention: 1 by construction"),
        _mean(maps.branch_share, "no decoupled cross-attention"),
    )


def _mean(by_layer: Mapping[str, float], without: str) -> Figure:
    return as_figure(float(np.mean(list(by_layer.values())))) if by_layer else Undefined(without)


def _gap(observation: Observation) -> Figure:
    if isinstance(observation.loss, Undefined):
        return observation.loss
    return (
        observation.wrong_reference_loss
        if isinstance(observation.wrong_reference_loss, Undefined)
        else observation.wrong_reference_loss - observation.loss
    )


def _distance(maps: AttributionMaps, tag: str, baseline: Mapping[str, Any], name: str) -> float:
    before = _given(baseline.get(name), "no baseline")
    return js_distance(unified_form(getattr(maps, tag).unified), before)


def _by_layer(maps: AttributionMaps, which: str, layer: str) -> np.ndarray:
    return getattr(maps, which).by_layer[layer]


def _figure(compute: Callable[[], float]) -> Figure:
    try:
        value = compute()
    except UndefinedFigure as error:
        return Undefined(error.reason)
    return as_figure(value) if not math.isnan(value) else Undefined("not a number")


def _given(value: Any, reason: str) -> Any:
    if value is None:
        raise UndefinedFigure(reason)
    return value
