"""Writes an evaluation into the run's own TensorBoard, wandb or other tracker.

Figures and words go through the tracker's existing writer; only a run without a TensorBoard tracker gets one of its own.
Pictures are a TensorBoard run of their own below the run's folder (`event_writer` says why).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from i2am_debug.alerts.alert import Alert
from i2am_debug.figures.record import Evaluation
from i2am_debug.figures.values import Undefined
from i2am_debug.store.files import PLUGIN_NAME

from ..figures.declared import PROBE
from ..figures.registry import LAYER, all_figures, of_copying_layer
from .event_writer import PictureWriter, SharedWriter

PICTURES = "i2am_pictures"
"""The folder of the pictures' own run, inside the run's."""

PREFIX = "i2am/"
logger = logging.getLogger("i2am_debug")

_WANDB_LEVELS = {"info": "INFO", "warning": "WARN", "critical": "ERROR"}


class RunTrackers:
    """The trackers of one run, on its main process.

    Tags:
        | tag | what |
        |---|---|
        | `i2am/<figure>`, `i2am/copying_layer/<figure>` | mean over pairs; docs/figures.md lists them |
        | `i2am/layer/<layer>/<figure>` | of each layer, those that are declared to be of layers |
        | `i2am/reference_1/<figure>`, … | of references 1, 2, … of a model that takes several |
        | `i2am/interval/<figure>/low`, `…/high` | 95 % interval over pairs of the figures charted with a band |
        | `i2am/reference_lines/<figure>/<line>` | what maps without a model score; the charts under Custom Scalars show them |
        | `i2am/alert` | 1 at an evaluation that raised an alert, else 0; `i2am/alert/text` its words |
        | `i2am/undefined` | figures without a value, and why (text) |
        | `i2am/pair_00` … | one panel a pair; `/time`, `/heads`, `/layers`, `/specific` of the first pairs; in the run
        `<run>/i2am_pictures` |
    """

    def __init__(self, trackers: Iterable[Any], fallback_folder: Path) -> None:
        trackers = list(trackers)
        self._others = [t for t in trackers if t.name != "tensorboard"]
        own = next((t.writer for t in trackers if t.name == "tensorboard"), None)
        self._opened = own is None
        if own is None:
            from torch.utils.tensorboard import SummaryWriter

            own = SummaryWriter(str(fallback_folder))
        self._shared = SharedWriter(own)
        self._pictures = PictureWriter(lambda: self.folder / PICTURES)
        self._layout_written = False
        self._undefined: str | None = None

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self._shared.folder

    @property
    def figures_in_order(self) -> bool:
        """Whether there is any but TensorBoard's: MLflow's run is one of the thread that began it, DVCLive counts the steps."""
        return bool(self._others)

    @property
    def pictures_in_order(self) -> bool:
        """Whether a tracker takes pictures that drops what comes for a step once later ones have begun, as wandb does."""
        return any(hasattr(tracker, "log_images") for tracker in self._others)

    def scalars(self, evaluation: Evaluation, copying_layer: str | Undefined) -> None:
        """Every figure's mean over the pairs, the reference lines, and once the charts that put them together."""
        values: dict[str, float] = {}
        undefined: dict[str, str] = {}
        means = evaluation.estimates()
        if not isinstance(copying_layer, Undefined):
            of_it = {f.tag: str(of_copying_layer(f.tag, copying_layer)) for f in all_figures()}
            means.update({tag: means[stored] for tag, stored in of_it.items() if stored != tag})
        bands = {figure.tag for figure in all_figures() if figure.band}
        for tag, value in means.items():
            if isinstance(value, Undefined):
                undefined[tag] = value.reason
                continue
            values[PREFIX + tag] = value.mean
            if tag in bands and value.low is not None and value.high is not None:
                values[f"{PREFIX}interval/{tag}/low"], values[f"{PREFIX}interval/{tag}/high"] = value.low, value.high
        for score, lines in evaluation.reference_lines.items():
            values.update({f"{PREFIX}reference_lines/{score}/{line}": float(v) for line, v in lines.items()})
        step = evaluation.global_step
        text = "\n".join(_undefined_in_words(undefined))
        with self._shared.writing() as writer:
            for tag, number in values.items():
                writer.add_scalar(tag, number, step)
            if not self._layout_written:
                writer.add_custom_scalars(_chart_layout(evaluation))
                writer._get_file_writer().add_summary(marker(), step)
            if text and text != self._undefined:
                writer.add_text(f"{PREFIX}undefined", text, step)
        if not self._layout_written:
            for tracker in self._others:
                self._say_where_the_rest_is(tracker)
        self._layout_written, self._undefined = True, text
        for tracker in self._others:
            tracker.log(values, step=step)

    def numbers(self, values: Mapping[str, float], global_step: int) -> None:
        """Single numbers under their tags."""
        with self._shared.writing() as writer:
            for tag, number in values.items():
                writer.add_scalar(PREFIX + tag, float(number), global_step)
        for tracker in self._others:
            tracker.log({PREFIX + tag: float(number) for tag, number in values.items()}, step=global_step)

    def _say_where_the_rest_is(self, tracker: Any) -> None:
        """wandb keeps the folder in the run's configuration; of any other tracker the log says what it does not get."""
        folder = self.folder.resolve()
        if tracker.name == "wandb":
            tracker.store_init_configuration({f"{PREFIX}folder": str(folder)})
        else:
            what = "figures and panels" if hasattr(tracker, "log_images") else "figures"
            logger.info("i2am: %s gets %s; everything, with the tab, is in %s", tracker.name, what, folder)

    def picture(self, tag: str, picture: Image.Image, global_step: int) -> None:
        """Writes one picture under its tag; of trackers beside TensorBoard to those that take pictures."""
        self._pictures.write(PREFIX + tag, picture, global_step)
        for tracker in self._others:
            if hasattr(tracker, "log_images"):
                tracker.log_images({PREFIX + tag: [np.asarray(picture)]}, step=global_step)

    def alert(self, alert: Alert | None, global_step: int) -> None:
        """1 and the words of an alert, or 0; wandb's own alert too, which reaches a person by mail or chat."""
        with self._shared.writing() as writer:
            writer.add_scalar(f"{PREFIX}alert", float(alert is not None), global_step)
            if alert is not None:
                writer.add_text(f"{PREFIX}alert/text", alert.text, global_step)
        for tracker in self._others:
            tracker.log({f"{PREFIX}alert": float(alert is not None)}, step=global_step)
            if alert is not None and tracker.name == "wandb":
                title = f"i2am: {alert.headline} at step {alert.global_step}"
                text = f"{alert.text}\n\nEverything is in {self.folder.resolve()}"
                tracker.tracker.alert(title=title, text=text, level=_WANDB_LEVELS[alert.severity])

    def flush(self) -> None:
        """Makes the pictures that were written visible to a TensorBoard that is running."""
        self._pictures.flush()

    def close(self) -> None:
        """Closes the pictures' file, and the writer if it is not the tracker's."""
        try:
            self._pictures.close()
        finally:
            if self._opened:
                self._shared.close()


def marker() -> Any:
    """A summary that says no more than that this run has evaluations: TensorBoard then offers its I2AM tab for it."""
    from tensorboard.compat.proto import summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2

    metadata = summary_pb2.SummaryMetadata(
        plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME),
        data_class=summary_pb2.DATA_CLASS_TENSOR,
    )
    tensor = tensor_pb2.TensorProto(
        dtype=types_pb2.DT_INT32, tensor_shape=tensor_shape_pb2.TensorShapeProto(), int_val=[1]
    )
    return summary_pb2.Summary(
        value=[summary_pb2.Summary.Value(tag=f"{PREFIX}evaluations", tensor=tensor, metadata=metadata)]
    )


def _undefined_in_words(undefined: Mapping[str, str]) -> Iterable[str]:
    """A line for each figure, but one for all probes and for all layers with the same reason, which are many."""
    alike: dict[tuple[str, str], list[str]] = {}
    for tag, reason in undefined.items():
        kind = PROBE + "…" if tag.startswith(PROBE) else tag
        kind = f"{LAYER}…/{tag.rpartition('/')[2]}" if tag.startswith(LAYER) else kind
        alike.setdefault((kind, reason), []).append(tag)
    for (kind, reason), tags in alike.items():
        named = f"`{PREFIX}{tags[0]}`" if len(tags) == 1 else f"{len(tags)} of `{PREFIX}{kind}`"
        yield f"- {named}: undefined: {reason}"


def _chart_layout(evaluation: Evaluation) -> dict[str, dict[str, list[Any]]]:
    """Charts of TensorBoard's Custom Scalars: figures with their reference lines, and each with its interval."""
    shared: dict[str, list[str]] = {}
    for figure in all_figures():
        if figure.chart:
            shared.setdefault(figure.chart, []).append(figure.tag)
    charts = {}
    for title, own in shared.items():
        lines = [f"reference_lines/{tag}/{line}" for tag in own for line in evaluation.reference_lines.get(tag, {})]
        charts[title] = _multiline(own + lines)
    for figure in sorted(all_figures(), key=lambda f: -f.prominence):
        known = of_copying_layer(figure.tag, evaluation.copying_layer)
        if figure.band and isinstance(known, str) and not isinstance(evaluation.mean(known), Undefined):
            charts[f"{figure.label}, 95 % interval"] = _margin(figure.tag)
    return {"I2AM": charts}


def _margin(tag: str) -> list[Any]:
    return ["Margin", [PREFIX + tag, f"{PREFIX}interval/{tag}/low", f"{PREFIX}interval/{tag}/high"]]


def _multiline(tags: list[str]) -> list[Any]:
    """A chart of exactly these tags: TensorBoard takes each as a regular expression and looks for it anywhere."""
    return ["Multiline", [f"^{re.escape(PREFIX + tag)}$" for tag in tags]]
