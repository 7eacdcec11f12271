"""How evaluations, alerts and maps look as the last line of a notebook's cell.

Words are HTML in the notebook's own colours, so that they can be read on light and on dark; maps are drawn by `render`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from html import escape

import numpy as np
from PIL import Image

from ..alerts.alert import Alert
from ..capture.maps import AttributionMaps, DirectionMaps
from ..figures.estimates import Estimate
from ..figures.record import Evaluation
from ..figures.registry import all_figures, of_copying_layer
from ..figures.values import Undefined
from .panels import strip

_LINE = "1px solid rgba(128, 128, 128, .4)"
_CELL = "padding: .15em .8em; text-align: left; white-space: nowrap"
_OF_SEVERITY = {"info": "#4285c8", "warning": "#c98a1b", "critical": "#d5493f"}  # read on white and on black
_LONGEST_SIDE = 256  # pixels of an empty canvas under a map, which has no picture here


def show_in_notebooks() -> None:
    """Gives the classes the methods that notebooks look for. They stand here because drawing comes after what is drawn."""
    for shown, name, show in (
        (Evaluation, "_repr_html_", evaluation_html),
        (Alert, "_repr_html_", alert_html),
        (AttributionMaps, "_repr_png_", maps_png),
    ):
        setattr(shown, name, show)


def evaluation_html(evaluation: Evaluation) -> str:
    """A table of the means with their 95 % intervals over pairs; behind a fold what is undefined, and why."""
    rows, undefined = [], []
    for figure in all_figures():
        tag = of_copying_layer(figure.tag, evaluation.watched_layer or evaluation.copying_layer)
        estimate = tag if isinstance(tag, Undefined) else evaluation.estimate(tag)
        if isinstance(estimate, Undefined):
            undefined.append(f"<li>{escape(figure.title)}: {escape(estimate.reason)}</li>")
        else:
            rows.append(_row([figure.title, f"{estimate.mean:.3g}", _interval(estimate), figure.unit], figure.meaning))
    head = "".join(f'<th style="{_CELL}; border-bottom: {_LINE}">{name}</th>' for name in ("", "mean", "95 %", ""))
    why = (
        f"<details><summary>{len(undefined)} undefined</summary><ul>{''.join(undefined)}</ul></details>"
        if undefined
        else ""
    )
    return (
        f"<div><b>Evaluation at step {evaluation.global_step}</b>, {len(evaluation.pairs)} pairs, "
        f'{evaluation.seconds:.1f} s<table style="border-collapse: collapse; background: none"><tr>{head}</tr>'
        f"{''.join(rows)}</table>{why}</div>"
    )


def alert_html(alert: Alert) -> str:
    """Its words, beside a line of its severity's colour."""
    headline, *lines = alert.text.splitlines()
    return (
        f'<div style="border-left: .3em solid {_OF_SEVERITY[alert.severity]}; padding-left: .8em">'
        f"<b>{escape(headline)}</b>{''.join(_paragraphs(lines))}</div>"
    )


def maps_png(maps: AttributionMaps) -> bytes:
    """Both directions, over all sampler steps and by time, on empty canvases; a PNG."""
    note = " ".join(f"Note: {note}." for note in maps.notes)
    sheets = [_strip("R2G: regions that the reference influences", maps.r2g, note)]
    if maps.undefined_g2r is None:
        sheets.append(_strip("G2R: parts of the reference that contribute", maps.g2r))
    whole = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), sheets[0].getpixel((0, 0)))
    for number, sheet in enumerate(sheets):
        whole.paste(sheet, (0, sum(s.height for s in sheets[:number])))
    encoded = io.BytesIO()
    whole.save(encoded, format="PNG")
    return encoded.getvalue()


def _strip(title: str, direction: DirectionMaps, note: str = "") -> Image.Image:
    height, width = direction.unified.shape
    if min(height, width) == 1:
        height, width = 1, 2  # tokens without a grid become bars
    side = _LONGEST_SIDE / max(height, width)
    times = [one if np.isfinite(one).all() else "not looked at" for one in direction.by_time]
    return strip(
        title=title,
        picture=Image.new("RGB", (round(width * side), round(height * side)), "grey"),
        maps=[direction.unified, *times],
        labels=["all steps", *(f"time group {number}" for number in range(len(times)))],
        columns=1 + len(times),
        note=note,
    )


def _row(cells: Iterable[str], hint: str) -> str:
    inside = "".join(f'<td style="{_CELL}">{escape(cell)}</td>' for cell in cells)
    return f'<tr title="{escape(hint)}" style="background: none">{inside}</tr>'


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return "one pair"
    return f"{estimate.low:.3g} … {estimate.high:.3g}"


def _paragraphs(lines: Iterable[str]) -> Iterable[str]:
    """Markdown's lists and lines, which is all that an alert's text has."""
    for line in filter(None, lines):
        if line.startswith("- "):
            yield f'<div style="padding-left: 1em; text-indent: -.7em">• {escape(line[2:])}</div>'
        else:
            yield f'<div style="padding-top: .5em">{escape(line)}</div>'
