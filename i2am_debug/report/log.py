"""One evaluation as one line of the log."""

from __future__ import annotations

from ..figures.declaration import Need
from ..figures.estimates import Estimate
from ..figures.record import Evaluation
from ..figures.registry import all_figures, of_copying_layer
from ..figures.values import Undefined

_SAMPLED = "; ±: what was not looked at, of heads and noise times"


def log_line(evaluation: Evaluation, copying_layer: str | Undefined) -> str:
    """The figures that are declared to stand in the log, with their 95 % intervals over pairs and, after ±, half that over the
    heads and noise times that were not looked at."""
    parts, samples = [], False
    for figure in all_figures():
        tag = of_copying_layer(figure.tag, copying_layer)
        if not figure.in_log or isinstance(tag, Undefined):
            continue
        where = f" ({copying_layer})" if tag != figure.tag else ""
        estimate = evaluation.estimate(tag)
        if isinstance(estimate, Undefined) and Need.BASELINE in figure.needs:
            continue  # a first evaluation, which needs no saying
        samples |= isinstance(estimate, Estimate) and bool(estimate.sampling)
        unit = f" {figure.unit}" if figure.unit and not isinstance(estimate, Undefined) else ""
        parts.append(f"{figure.title}{where} {estimate}{unit}")
    return (
        f"i2am step {evaluation.global_step}: {', '.join(parts)} "
        f"({len(evaluation.pairs)} pairs, {evaluation.seconds:.1f} s{_SAMPLED if samples else ''})"
    )
