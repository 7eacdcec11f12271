"""Scores what was seen of all pairs: every declared figure of every pair, or why it has no value. Knows no model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..capture.maps import AttributionMaps
from ..errors import UndefinedFigure
from ..pairs.pair import ValidationPair
from .declaration import DeclaredFigure
from .declared import PROBE
from .observation import Observation
from .pair_view import NOT_FINITE, PairView
from .record import Evaluation
from .registry import LAYER, all_figures, own_figures
from .sampling_error import Sampled, SamplingError
from .scores import IMACSSettings
from .values import Figure, Undefined, as_figure, reference_tag

Columns = dict[str, tuple[Figure, ...]]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What `score` found; the fields are those of `record.Evaluation`."""

    figures: Columns
    errors: Columns
    sampling: dict[str, SamplingError | Undefined]
    reference_lines: dict[str, dict[str, float]]
    copying_layer: str | Undefined


def copying_layer(maps: Sequence[AttributionMaps]) -> str | Undefined:
    """The layer with the highest attention information, mean over pairs."""
    bits = {la: float(np.mean([m.layer_information[la] for m in maps])) for la in maps[0].layers}
    finite = {la: value for la, value in bits.items() if math.isfinite(value)}
    undefined = maps[0].undefined_g2r
    if undefined is not None or not finite:
        return Undefined(undefined or NOT_FINITE)
    return max(finite, key=lambda la: finite[la])


def score(
    observations: Sequence[Observation],
    pairs: Sequence[ValidationPair],
    *,
    settings: IMACSSettings,
    sampled: Callable[[Observation], Sampled],
    baseline: Mapping[str, Any],
) -> Scored:
    """Every declared figure of every observation and its pair.

    Args:
        pairs: of the observations, in their order.
        sampled: how what was looked at was drawn.
        baseline: "0/r2g", "0/g2r", …: unified maps to measure distance from; empty without a baseline.
    """
    copying = copying_layer([observation.maps for observation in observations])
    further = _copying_layers_of_further(observations)
    figures: dict[str, list[Figure]] = {}
    left_out: dict[str, list[np.ndarray | Undefined]] = {}
    lines: dict[str, list[Mapping[str, float]]] = {}

    def view(observation: Observation, pair: ValidationPair, number: int, layer: str | Undefined) -> PairView:
        return PairView(
            observation=observation,
            pair=pair,
            reference=number,
            copying_layer=layer,
            settings=settings,
            baseline=baseline,
        )

    for observation, pair in zip(observations, pairs, strict=True):
        own = view(observation, pair, 0, copying)
        _append(figures, figures_of(own))
        _append(left_out, left_out_of(own))
        _append(lines, _lines_of(own))
        for number, layer in further.items():
            has = number in observation.further
            values = further_figures_of(view(observation, pair, number, layer) if has else None, number)
            _append(figures, {f"{reference_tag(number)}/{tag}": value for tag, value in values.items()})
    return Scored(
        figures=_columns(figures),
        errors=_errors(left_out, [sampled(observation) for observation in observations]),
        sampling=_sampling(left_out, sampled(observations[0])),
        reference_lines={
            tag: {name: float(np.mean([one[name] for one in each])) for name in each[0]} for tag, each in lines.items()
        },
        copying_layer=copying,
    )


def with_probes(evaluation: Evaluation, probes: Mapping[int, Mapping[str, Figure]]) -> Evaluation:
    """The evaluation with the losses of the probes that were tried: pair number → name of the probe → its loss."""
    figures = dict(evaluation.figures)
    for number, losses in probes.items():
        for name, loss in losses.items():
            column = list(figures[PROBE + name])
            column[number] = loss
            figures[PROBE + name] = tuple(column)
    return replace(evaluation, figures=figures)


def figures_of(view: PairView) -> dict[str, Figure]:
    """Every figure of a pair's own reference by its tag; those of layers come last, layer by layer."""
    out = {f.tag: figure_of(f, f.compute, view) for f in all_figures() if f.compute is not None}
    of_layer = [f for f in all_figures() if f.compute_of_layer is not None]
    for layer in view.maps.layers:
        out.update({f"{LAYER}{layer}/{f.tag}": figure_of(f, f.compute_of_layer, view, layer) for f in of_layer})
    return out


def left_out_of(view: PairView) -> dict[str, np.ndarray | Undefined]:
    """Of the figures that have a standard error, and of the copying layer's: the value with each looked-at step left out."""
    out = {f.tag: _known(f, f.without_each_step, view) for f in all_figures() if f.without_each_step is not None}
    if not isinstance(view.copying_layer, Undefined):
        for f in all_figures():
            if f.without_each_step_of_layer is not None:
                known = _known(f, f.without_each_step_of_layer, view, view.copying_layer)
                out[f"{LAYER}{view.copying_layer}/{f.tag}"] = known
    return out


def _known(figure: DeclaredFigure, compute: Any, *arguments: Any) -> np.ndarray | Undefined:
    value = _guarded(figure, compute, *arguments)
    return value if isinstance(value, Undefined) else np.asarray(value, dtype=float)


def _errors(left_out: Mapping[str, Sequence[np.ndarray | Undefined]], sampled: Sequence[Sampled]) -> Columns:
    """The standard errors of each pair's figures."""

    def error(tag: str, values: np.ndarray | Undefined, how: Sampled) -> Figure:
        found = values if isinstance(values, Undefined) else how.variance(tag, values, 1)
        return found if isinstance(found, Undefined) else as_figure(math.sqrt(found.variance))

    return {
        tag: tuple(error(tag, values, how) for values, how in zip(column, sampled, strict=True))
        for tag, column in left_out.items()
    }


def _sampling(
    left_out: Mapping[str, Sequence[np.ndarray | Undefined]], sampled: Sampled
) -> dict[str, SamplingError | Undefined]:
    """The standard errors of the figures' means over those pairs that have them, all of which were looked at alike."""
    out: dict[str, SamplingError | Undefined] = {}
    for tag, column in left_out.items():
        known = [values for values in column if not isinstance(values, Undefined)]
        if not known or len({len(values) for values in known}) > 1:
            reasons = sorted({values.reason for values in column if isinstance(values, Undefined)})
            out[tag] = Undefined("; ".join(reasons) or "not all pairs were looked at at as many sampler steps")
            continue
        found = sampled.variance(tag, np.mean(known, axis=0), len(known))
        if isinstance(found, Undefined):
            out[tag] = found
        else:
            out[tag] = SamplingError.of(found) if math.isfinite(found.variance) else Undefined(NOT_FINITE)
    return out


def further_figures_of(view: PairView | None, number: int) -> dict[str, Figure]:
    """The figures of a further reference, which has no mask of its own; `view` is None where the pair has none."""
    missing = Undefined(f"this pair has no reference {number}")
    return {
        f.tag: missing if view is None else figure_of(f, f.compute, view)
        for f in all_figures()
        if f.of_further_references and f.compute is not None
    }


def _lines_of(view: PairView) -> dict[str, Mapping[str, float]]:
    out = {}
    for figure in all_figures():
        if figure.reference_lines is not None:
            try:
                out[figure.tag] = figure.reference_lines(view)
            except UndefinedFigure:  # without a mask there is nothing to read the chart by
                continue
            except Exception:
                if figure not in own_figures():
                    raise
    return out


def figure_of(figure: DeclaredFigure, compute: Any, *arguments: Any) -> Figure:
    """One value of a declared figure, or why there is none."""
    value = _guarded(figure, lambda: float(compute(*arguments)))
    if isinstance(value, Undefined):
        return value
    return Undefined("not a number") if math.isnan(value) else as_figure(value)


def _guarded(figure: DeclaredFigure, compute: Any, *arguments: Any) -> Any:
    try:
        return compute(*arguments)
    except UndefinedFigure as error:
        return Undefined(error.reason)
    except Exception as error:
        if figure not in own_figures():
            raise
        return Undefined(
            f"its own function raised {type(error).__name__}: {error}"
        )  # the others are still worth having


def _copying_layers_of_further(observations: Sequence[Observation]) -> dict[int, str | Undefined]:
    """Number of each further reference that any pair has → its own `copying_layer`."""
    numbers = sorted({number for one in observations for number in one.further})
    return {n: copying_layer([one.further[n] for one in observations if n in one.further]) for n in numbers}


def _append(columns: dict[str, list[Any]], values: Mapping[str, Any]) -> None:
    for tag, value in values.items():
        columns.setdefault(tag, []).append(value)


def _columns(lists: Mapping[str, Sequence[Figure]]) -> Columns:
    return {tag: tuple(values) for tag, values in lists.items()}
