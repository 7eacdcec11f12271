"""Evaluations on disk: one safetensors file each, and `index.jsonl` with the mean of every figure. Imports no torch.

A write is a temporary file, fsync, rename, then the index line; a torn last line is skipped. A line `{"resumed_at": n}`
says that training went back to step n: what was recorded after it before that line is superseded.

An evaluation's file holds the figures of every pair in its metadata, so that it can be compared on its own; the index stays
small enough to be read whole, whatever the number of evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open

from ..alerts.alert import Alert
from ..errors import StoreError
from ..figures.estimates import Estimate
from ..figures.record import FORMAT, Evaluation
from ..figures.stored_form import entry, mapped, text, whole_number, wrong
from ..figures.values import Figure, Undefined, figure_from_json, figure_to_json, name_from_json
from ..pairs.pair import ValidationPair
from .evaluation_file import pairs_file_name, read_figures, refuse_newer, save_arrays, write_evaluation
from .files import PLUGIN_NAME, append_line, read_lines, replace_file
from .packing import pack_pictures

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One line of the index; what it says is known at once, the figures of each pair are read when asked for."""

    global_step: int
    path: Path
    """The evaluation's file."""
    means: Mapping[str, Any]
    """Of every figure, as they stand in the line: [mean, low, high, pairs] or {"undefined": reason}."""
    sampling: Mapping[str, Any]
    """Of the means that have one: `Estimate.sampling`, as it stands in the line."""
    copying_layer: str | Undefined
    comparable_id: str
    """As `Evaluation.comparable_id`."""

    @cached_property
    def evaluation(self) -> Evaluation:
        """Everything, from the file.

        Raises:
            StoreError: the file is missing, broken, or of another step than its line.
        """
        found = read_figures(self.path)
        if found.global_step != self.global_step:
            raise StoreError(
                f"{self.path} is of step {found.global_step}, its line in index.jsonl of step {self.global_step}; was one of "
                "them changed?"
            )
        return found

    def mean(self, tag: str) -> Figure:
        """As `Evaluation.mean`, without reading the file."""
        found = self.estimate(tag)
        return found.mean if isinstance(found, Estimate) else found

    def estimate(self, tag: str) -> Estimate | Undefined:
        """As `Evaluation.estimate`, without reading the file.

        Raises:
            StoreError: its place in the line holds something else.
        """
        found = self.means.get(tag)
        if found is None:
            return Undefined("not recorded")
        try:
            mean = figure_from_json(found if isinstance(found, Mapping) else found[0], tag)
            if isinstance(mean, Undefined):
                return mean
            row = dict(zip(("mean", "low", "high", "pairs"), found, strict=True))
            return Estimate.from_json({**row, "sampling": self.sampling.get(tag)}, tag)
        except ValueError as error:
            raise StoreError(f"the line of step {self.global_step} beside {self.path}: {error}") from None

    def values(self, tag: str) -> np.ndarray:
        """As `Evaluation.values`."""
        return self.evaluation.values(tag)

    def reasons(self, tag: str, among: Sequence[bool] | None = None) -> tuple[str, ...]:
        """As `Evaluation.reasons`."""
        return self.evaluation.reasons(tag, among)


class RunStore:
    """The folder of one run, `<run>/plugins/i2am_debug`."""

    def __init__(self, run: str | Path) -> None:
        self.folder = Path(run) / "plugins" / PLUGIN_NAME
        self.index = self.folder / "index.jsonl"
        self.alerts_file = self.folder / "alerts.jsonl"

    def write(self, evaluation: Evaluation, arrays: Mapping[str, np.ndarray], grids: Mapping[str, Any]) -> Path:
        """Writes one evaluation: its file first, then its line."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(evaluation.global_step)
        write_evaluation(path, evaluation, arrays, grids)
        append_line(self.index, _index_line(evaluation, path))
        return path

    def write_pairs(self, evaluation: Evaluation, pairs: Iterable[ValidationPair]) -> Path:
        """Writes the pictures of the pairs that an evaluation looked at, once for all evaluations of the same pairs."""
        path = self.pairs_file(evaluation)
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            arrays = {f"{i}/{name}": a for i, pair in enumerate(pairs) for name, a in pack_pictures(pair).items()}
            save_arrays(path, arrays, {"format": str(FORMAT)})
        return path

    def pairs_file(self, evaluation: Evaluation) -> Path:
        """Where `write_pairs` puts them."""
        return self.folder / pairs_file_name(evaluation)

    def write_alert(self, alert: Alert) -> None:
        """Appends one alert to `alerts.jsonl`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        append_line(self.alerts_file, {"format": FORMAT, **alert.to_json()})

    def write_panel(self, global_step: int, number: int, panel: Image.Image) -> str:
        """One pair's panel at an alert; returns its path relative to the run's plugin folder."""
        relative = Path("alerts") / f"step_{global_step:08d}" / f"pair_{number:02d}.png"
        path = self.folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda temporary: panel.save(temporary, format="PNG"))
        return relative.as_posix()

    def resume(self, global_step: int) -> None:
        """Training goes on from `global_step`: later evaluations and alerts belong to an abandoned attempt."""
        for file, steps in (
            (self.index, {s.global_step for s in self.readable_evaluations()}),
            (self.alerts_file, self.alerted_steps()),
        ):
            if any(step > global_step for step in steps):
                append_line(file, {"resumed_at": global_step})

    def evaluations(self) -> list[Stored]:
        """All evaluations that count, by step.

        Raises:
            StoreError: the index was written by a newer version, or has a line that is none of ours.
        """
        return _counting(self.index, lambda row: _stored(row, self.folder), lambda stored: stored.global_step)

    def alerts(self) -> list[Alert]:
        """All alerts that count, by step.

        Raises:
            StoreError: as `evaluations`.
        """
        return _counting(self.alerts_file, Alert.from_json, lambda alert: alert.global_step)

    def readable_evaluations(self) -> list[Stored]:
        """All evaluations that count and whose line can be read, by step: a training goes on whatever stands in the index."""
        return _counting(self.index, lambda row: _stored(row, self.folder), lambda s: s.global_step, skip_broken=True)

    def alerted_steps(self) -> set[int]:
        """The steps of all alerts that count and can be read."""
        alerts = _counting(self.alerts_file, Alert.from_json, lambda alert: alert.global_step, skip_broken=True)
        return {alert.global_step for alert in alerts}

    def tidy(self) -> None:
        """Removes what writes that were killed have left; not for a folder into which somebody else is writing."""
        for torn in [*self.folder.glob("*.tmp"), *self.folder.glob("alerts/*/*.tmp")]:
            torn.unlink(missing_ok=True)

    def drop_rows(self, global_step: int) -> None:
        """Rewrites an evaluation's file without its specific-reference rows; its maps and figures stay."""
        path = self._path(global_step)
        if not path.is_file():
            return
        try:
            with safe_open(path, framework="numpy") as file:
                names = list(file.keys())
                if not any("/rows/" in n for n in names):
                    return
                arrays = {n: file.get_tensor(n) for n in names if "/rows/" not in n}
                metadata = file.metadata()
        except SafetensorError as error:
            raise StoreError(f"{path} can't be read: {error}") from None
        save_arrays(path, arrays, metadata)

    def _path(self, global_step: int) -> Path:
        return self.folder / f"step_{global_step:08d}.safetensors"


def _index_line(evaluation: Evaluation, path: Path) -> dict[str, Any]:
    estimates = evaluation.estimates()
    sampling = {tag: _digits(e.sampling) for tag, e in estimates.items() if isinstance(e, Estimate) and e.sampling}
    return {
        "format": FORMAT,
        "global_step": evaluation.global_step,
        "file": path.name,
        "copying_layer": figure_to_json(evaluation.copying_layer),
        "watched_layer": evaluation.watched_layer,
        "comparable_id": evaluation.comparable_id,
        "seconds": evaluation.seconds,
        **({"declared": [figure.to_json() for figure in evaluation.declared.values()]} if evaluation.declared else {}),
        # mean, low, high, pairs; short of the digits that no chart shows
        "means": {
            tag: figure_to_json(e) if isinstance(e, Undefined) else [e.mean, *map(_digits, (e.low, e.high)), e.pairs]
            for tag, e in estimates.items()
        },
        **({"sampling": sampling} if sampling else {}),
    }


def _digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _stored(row: Mapping[str, Any], folder: Path) -> Stored:
    return Stored(
        global_step=entry(row, "global_step", whole_number),
        path=folder / entry(row, "file", _file_name),
        means=entry(row, "means", mapped(_mean)),
        sampling=mapped(lambda value, _: value)(row.get("sampling", {}), "sampling"),
        copying_layer=entry(row, "copying_layer", name_from_json),
        comparable_id=entry(row, "comparable_id", text),
    )


def _file_name(value: Any, where: str) -> str:
    """Whatever a line says, evaluations lie beside their index."""
    name = Path(text(value, where)).name
    if not (name.isprintable() and 0 < len(name.encode(errors="replace")) < 256):
        raise wrong(value, where, "the name of a file")
    return name


def _mean(value: Any, where: str) -> Any:
    """Its form; what stands in it is looked at when asked for: an index holds very many."""
    if not (isinstance(value, list) and len(value) == 4) and not (isinstance(value, dict) and "undefined" in value):
        raise wrong(value, where, 'four numbers or {"undefined": reason}')
    return value


def _counting(
    path: Path, parse: Callable[[Mapping[str, Any]], T], step_of: Callable[[T], int], *, skip_broken: bool = False
) -> list[T]:
    """The lines of an index that count: the last of each step, without what a resume has superseded.

    Raises:
        StoreError: a line is of a newer version or none of ours; not with `skip_broken`.
    """
    found: dict[int, T] = {}
    for line, row in read_lines(path):
        try:
            if "resumed_at" in row:
                at = entry(row, "resumed_at", whole_number)
                found = {step: item for step, item in found.items() if step <= at}
                continue
            refuse_newer(path, whole_number(row.get("format", 0), "format"))
            item = parse(row)
            found[step_of(item)] = item
        except ValueError as error:  # a StoreError is one
            if skip_broken:
                continue
            if isinstance(error, StoreError):
                raise
            raise StoreError(
                f"{path} has a line that can't be read, line {line}: {error}; was it changed by hand or written by another "
                "version? without the line the rest can be read"
            ) from None
    return [found[step] for step in sorted(found)]
