"""`index.jsonl` and `alerts.jsonl` as the timeline wants them: a column a figure. Keeps nothing between two calls.

What counts is what `RunStore` counts: the last line of each step, without what a resume has superseded. Read line by
line and bounded, since the file may be large, may be growing, and may have been written by anybody.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple, TypeVar

from ..alerts.alert import Alert
from ..figures.declaration import COPYING_LAYER, DeclaredFigure
from ..figures.declared import FIGURES, JS_R2G
from ..figures.record import FORMAT
from ..figures.registry import LAYER
from .refusal import Refusal

T = TypeVar("T")

FILE_BYTES = 2**28
LINE_BYTES = 2**22
DECLARED = 200
"""Figures of its own that a run may say something of."""
CELLS = 4_000_000
"""Values a timeline answer may hold; 1000 evaluations of 57 layers take a quarter of a million."""

_LAYERS = LAYER
_WORDS = {"title": 200, "meaning": 1000, "unit": 60, "lines_of": 500}  # characters
_OF_COPYING_LAYER = tuple(f.tag.removeprefix(COPYING_LAYER) for f in FIGURES if f.tag.startswith(COPYING_LAYER))
_NO_BASELINE = "no baseline"
_NOT_OURS = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)


class Row(NamedTuple):
    """What the timeline needs of one line."""

    global_step: int
    watched_layer: str | None
    copying_layer: str | None
    comparable_id: str
    means: Mapping[str, Any]
    sampling: Mapping[str, Any]
    is_baseline: bool
    declared: tuple[DeclaredFigure, ...]
    """Of figures that this package does not know."""


def summary(file: BinaryIO, name: str) -> tuple[int, int | None]:
    """How many evaluations count, and the newest's step.

    Raises:
        Refusal: as `timeline`.
    """
    steps = _counting(file, name, lambda row: int(row["global_step"]))
    return len(steps), max(steps, default=None)


def timeline(file: BinaryIO, name: str, kind: str | None) -> dict[str, Any]:
    """The columns of all figures that are of no layer; with a `kind`, such as "imacs_r", those of it of every layer.

    Raises:
        Refusal: a line of a newer version, one that is none of ours, or more than the bounds allow.
    """

    def wanted(tag: str) -> bool:
        if kind is None:  # which layer is the copying layer is known when all lines are read
            return not tag.startswith(_LAYERS) or tag.rpartition("/")[2] in _OF_COPYING_LAYER
        return tag.startswith(_LAYERS) and tag.endswith(f"/{kind}")

    def parse(line: Mapping[str, Any]) -> Row:
        watched, copying = (line.get(key) for key in ("watched_layer", "copying_layer"))
        kept = {tag: mean for tag, mean in line["means"].items() if wanted(tag)}
        # Not that of G2R: where all evaluations lack G2R, each says that the baseline has none.
        distance = line["means"].get(JS_R2G.tag)
        is_baseline = isinstance(distance, dict) and distance.get("undefined") == _NO_BASELINE
        declared = tuple(map(DeclaredFigure.from_json, line.get("declared", ())[:DECLARED]))
        step, comparable = int(line["global_step"]), str(line["comparable_id"])
        sampling = line.get("sampling")
        reach = sampling if isinstance(sampling, dict) else {}
        return Row(step, _name(watched), _name(copying), comparable, kept, reach, is_baseline, declared)

    found = _counting(file, name, parse)
    rows = [found[step] for step in sorted(found)]
    tags = dict.fromkeys(tag for row in rows for tag in row.means)
    columns = {tag: [tag] * len(rows) for tag in tags if kind is not None or not tag.startswith(_LAYERS)}
    # What was not written by a callback names no watched layer; its first evaluation stands in for a baseline.
    first = next((row.watched_layer for row in rows if row.watched_layer), rows[0].copying_layer if rows else None)
    if kind is None and first is not None:
        for figure in _OF_COPYING_LAYER:
            columns[COPYING_LAYER + figure] = [f"{_LAYERS}{row.watched_layer or first}/{figure}" for row in rows]
    if len(columns) * len(rows) > CELLS:
        raise Refusal(404, f"{name} has {len(columns)} figures at {len(rows)} steps, more than the tab shows at once.")
    try:
        figures = {
            shown: {
                **_column([row.means.get(tag) for row, tag in zip(rows, own, strict=True)]),
                **_reaches([row.sampling.get(tag) for row, tag in zip(rows, own, strict=True)]),
            }
            for shown, own in columns.items()
        }
    except _NOT_OURS as error:
        raise _unreadable(name, error) from None
    return {
        "steps": [row.global_step for row in rows],
        "copying_layer": [row.watched_layer or first for row in rows],
        "comparable": [row.comparable_id for row in rows],
        "figures": figures,
        "declared": {f.tag: _bounded(f.to_json()) for f in (*(f for row in rows[-1:] for f in row.declared), *FIGURES)},
        # With a baseline from another run, no evaluation of this one is it.
        "baseline_step": max((row.global_step for row in rows if row.is_baseline), default=None),
    }


def alerts(file: BinaryIO, name: str) -> list[dict[str, Any]]:
    """The alerts that count, by step.

    Raises:
        Refusal: as `timeline`.
    """
    found = _counting(file, name, lambda line: short(Alert.from_json(line).to_json()))
    return [found[step] for step in sorted(found)]


def number(value: Any) -> float | int | None:
    """A finite number with 6 digits, or None; also of one so large that charts could not hold a difference."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) < 2**53 else None  # what JavaScript holds exactly
    return float(f"{value:.6g}") if isinstance(value, float) and abs(value) < 1e300 else None


def short(value: Any) -> Any:
    """Plain values as JSON can hold them: numbers with 6 digits, None for what is not finite."""
    if isinstance(value, dict):
        return {str(key): short(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [short(item) for item in value]
    return value if value is None or isinstance(value, bool | str) else number(value)


def undefined_reason(value: Any) -> str:
    """Why a figure has no value, from {"undefined": reason}."""
    return str(value["undefined"])[:500]


def _bounded(declared: dict[str, Any]) -> dict[str, Any]:
    """A declaration as a page can show it: whoever wrote the run chose its words."""
    return short({**declared, **{key: declared[key][:most] for key, most in _WORDS.items()}})


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _column(means: list[Any]) -> dict[str, Any]:
    out: dict[str, Any] = {"mean": [], "low": [], "high": [], "undefined": {}}
    for position, mean in enumerate(means):
        if isinstance(mean, list) and len(mean) == 4:
            values = [number(value) for value in mean[:3]]
            if values[0] is None:
                out["undefined"][str(position)] = "not a finite number"
        else:
            values = [None, None, None]
            out["undefined"][str(position)] = "not recorded" if mean is None else undefined_reason(mean)
        for key, value in zip(("mean", "low", "high"), values, strict=True):
            out[key].append(value)
    return out


def _reaches(found: list[Any]) -> dict[str, Any]:
    """Half the intervals from looking at a part only, where there are any."""
    reaches = [number(value) for value in found]
    return {"sampling": reaches} if any(reaches) else {}


def _counting(file: BinaryIO, name: str, parse: Callable[[Mapping[str, Any]], T]) -> dict[int, T]:
    """Step → what `parse` makes of its line, of the lines that count."""
    found: dict[int, T] = {}
    for line in _lines(file, name):
        try:
            if "resumed_at" in line:
                at = 0 + line["resumed_at"]
                found = {step: item for step, item in found.items() if step <= at}
                continue
            refuse_newer(name, line.get("format", 0))
            step = line["global_step"]
            if type(step) is not int or not 0 <= step < 10**12:  # what `integer_of` takes
                raise ValueError(f"the step is {step!r:.100}")
            found[step] = parse(line)
        except (*_NOT_OURS, RecursionError) as error:
            raise _unreadable(name, error) from None
    return found


def refuse_newer(name: str, version: int) -> None:
    """Raises:
    Refusal: the file is of a version that this one can't read.
    """
    if version > FORMAT:
        raise Refusal(
            404,
            f"{name} was written by a newer i2am-debug (format {version}, this one reads up to {FORMAT}); "
            "upgrade with: pip install -U i2am-debug",
        )


def _unreadable(name: str, error: BaseException) -> Refusal:
    return Refusal(404, f"{name} has a line that can't be read ({error!r:.200}); was it written by another version?")


def _lines(file: BinaryIO, name: str) -> Iterator[dict[str, Any]]:
    if os.fstat(file.fileno()).st_size > FILE_BYTES:
        raise Refusal(404, f"{name} is larger than the {FILE_BYTES // 2**20} MiB that the tab reads.")
    left = FILE_BYTES  # it may be growing faster than it is read
    with open(file.fileno(), "rb", closefd=False) as lines:
        while left > 0 and (line := lines.readline(LINE_BYTES + 1)):
            left -= len(line)
            if len(line) > LINE_BYTES:
                raise Refusal(404, f"{name} has a line longer than the {LINE_BYTES // 2**20} MiB that the tab reads.")
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue  # torn by a crash, or just being written
            if isinstance(row, dict):
                yield row
