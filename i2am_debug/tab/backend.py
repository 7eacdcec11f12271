"""The tab's routes under /data/plugin/i2am_debug/. They only read, and only runs that TensorBoard lists.

All state is a bounded memory of headers and of each run's summary; a request opens what it needs and closes it.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tensorboard import plugin_util
from tensorboard.plugins import base_plugin
from werkzeug.wrappers import Request, Response

from ..store.files import PLUGIN_NAME
from . import evaluation_file, index_file
from .http_rules import answer_bytes, answer_json, etag, integer_of, open_route, route, text_of, unchanged
from .refusal import Refusal
from .regions import regions
from .run_files import RunFolder, RunFolders
from .stored_arrays import ArrayFile

STATIC = Path(__file__).parent / "static"

_INDEX, _ALERTS = "index.jsonl", "alerts.jsonl"
_TYPES = {".js": "text/javascript", ".css": "text/css"}  # mimetypes.guess_type reads Windows' registry
_STATIC_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_PICTURE = re.compile(r"generated|reference|target|mask|reference_mask|reference_[1-9]\d{0,2}")
_BINARY = "application/octet-stream"
_SUMMARIES = 2000


class Backend(base_plugin.TBPlugin):
    """The tab; `loader.Loader` makes it."""

    plugin_name = PLUGIN_NAME

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._provider = context.data_provider
        self._folders = RunFolders(context)
        self._summaries: OrderedDict[str, tuple[tuple[int, int], tuple[int, int | None]]] = OrderedDict()

    def is_active(self) -> bool:
        """False: TensorBoard itself sees the marker that a run with evaluations has."""
        return False

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """How TensorBoard shows it."""
        return base_plugin.FrontendMetadata(es_module_path="/static/index.js", tab_name="I2AM")

    def get_plugin_apps(self) -> dict[str, Callable[..., Iterable[bytes]]]:
        """Route → WSGI app."""
        return {
            "/static/*": self.static,
            "/runs": self.runs,
            "/index": self.index,
            "/evaluation": self.evaluation,
            "/map": self.map,
            "/rows": self.rows,
            "/information": self.information,
            "/picture": self.picture,
            "/regions": self.regions,
        }

    @open_route
    def static(self, request: Request) -> Response:
        """A module or style sheet of the flat folder `static`."""
        name = request.path.partition(f"/{PLUGIN_NAME}/static/")[2]
        path = STATIC / name
        kind = _TYPES.get(path.suffix)
        if not _STATIC_NAME.fullmatch(name) or kind is None or not path.is_file():
            raise Refusal(404, "The tab has no such file.")
        tag = etag(path.stat())
        return unchanged(request, tag, kind) or answer_bytes(request, path.read_bytes(), kind, tag)

    @route
    def runs(self, request: Request) -> Response:
        """All runs with evaluations, and why one can't be read."""
        found = [self._run_row(run) for run in self._listed(request)]
        return answer_json(request, {"logdir": "local" if self._folders.local else "remote", "runs": found})

    @route
    def index(self, request: Request) -> Response:
        """The timeline of one run: of all figures that are of no single layer, or of one kind of figure of every layer."""
        folder = self._folder(request)
        kind = text_of(request, "layers") if "layers" in request.args else None
        with folder.open(_INDEX) as file, _optional(folder, _ALERTS) as alerts_file:
            both = (os.fstat(file.fileno()), os.fstat(alerts_file.fileno()) if alerts_file else None)
            tag = etag(*both)
            if answer := unchanged(request, tag, "application/json"):
                return answer
            found = index_file.timeline(file, _INDEX, kind)
            found.update(alerts=[], alerts_problem=None)
            if alerts_file:
                try:
                    found["alerts"] = index_file.alerts(alerts_file, _ALERTS)
                except Refusal as refusal:  # the figures can be shown all the same
                    found["alerts_problem"] = str(refusal)
        return answer_json(request, found, tag)

    @route
    def evaluation(self, request: Request) -> Response:
        """What one evaluation holds, and its pairs' figures."""
        with self._file(request) as file:
            tag = etag(file.status)
            return unchanged(request, tag, "application/json") or answer_json(
                request, evaluation_file.describe(file), tag
            )

    @route
    def map(self, request: Request) -> Response:
        """One map: float32, little endian, row by row."""

        def read(*asked: Any) -> tuple[bytes, Iterable[int]]:
            found = evaluation_file.read_map(*asked)
            return found.tobytes(), found.shape

        return self._binary(request, read)

    @route
    def rows(self, request: Request) -> Response:
        """A matrix of rows: its scale, float32 little endian, then its values, uint8."""

        def read(*asked: Any) -> tuple[bytes, Iterable[int]]:
            scale, values, grid = evaluation_file.read_rows(*asked)
            return scale.tobytes() + values.tobytes(), grid

        return self._binary(request, read)

    @route
    def information(self, request: Request) -> Response:
        """Attention information of each layer and head, of one of the references."""
        reference = integer_of(request, "reference") if "reference" in request.args else 0
        with self._file(request) as file:
            tag = etag(file.status)
            return unchanged(request, tag, "application/json") or answer_json(
                request, evaluation_file.information(file, reference), tag
            )

    @route
    def picture(self, request: Request) -> Response:
        """One of a pair's pictures, as it is stored."""
        pair, which = integer_of(request, "pair"), text_of(request, "which")
        if not _PICTURE.fullmatch(which):
            raise Refusal(
                400, "which must be one of generated, target, mask, reference, reference_mask, reference_1 and so on."
            )
        if which == "generated":
            with self._file(request) as file:
                return _picture(request, file, pair, which)
        with self._pairs_file(request) as file:
            return _picture(request, file, pair, which)

    @route
    def regions(self, request: Request) -> Response:
        """The hole, the object and the kept region of a pair, those that it has."""
        pair = integer_of(request, "pair")
        with self._pairs_file(request) as file:
            tag = etag(file.status)
            return unchanged(request, tag, "application/json") or answer_json(
                request, {"regions": regions(file, pair)}, tag
            )

    def _binary(self, request: Request, read: Callable[..., tuple[bytes, Iterable[int]]]) -> Response:
        """What `read(file, pair, name, index)` makes of the asked array, with its shape in a header."""
        pair, name, index = integer_of(request, "pair"), text_of(request, "name"), _index(request)
        with self._file(request) as file:
            tag = etag(file.status)
            if answer := unchanged(request, tag, _BINARY):
                return answer
            body, shape = read(file, pair, name, index)
        return answer_bytes(request, body, _BINARY, tag, [_shape(shape)])

    def _listed(self, request: Request) -> list[str]:
        """The runs with our marker, as TensorBoard's data provider knows them."""
        if self._provider is None:
            return []
        return sorted(
            self._provider.list_tensors(
                plugin_util.context(request.environ),
                experiment_id=plugin_util.experiment_id(request.environ),
                plugin_name=PLUGIN_NAME,
            )
        )

    def _folder(self, request: Request) -> RunFolder:
        run = text_of(request, "run")
        if run not in self._listed(request):
            raise Refusal(404, "TensorBoard knows no run of this name with evaluations.")
        return self._folders.folder(run)

    def _file(self, request: Request, folder: RunFolder | None = None) -> ArrayFile:
        """Of the evaluation."""
        return _opened(folder or self._folder(request), f"step_{integer_of(request, 'step'):08d}.safetensors")

    def _pairs_file(self, request: Request) -> ArrayFile:
        """Of the evaluation's pairs: what does not change from one evaluation to the next."""
        folder = self._folder(request)
        with self._file(request, folder) as file:
            name = evaluation_file.pairs_file_of(file)
        return _opened(folder, name)

    def _run_row(self, run: str) -> dict[str, Any]:
        count, newest, problem, alert = 0, None, None, None
        try:
            folder = self._folders.folder(run)
            if folder.has(_INDEX):  # else it has its marker, and its first line is still to come
                count, newest = self._summary(folder)
                alert = _newest_alert(folder)
        except Refusal as refusal:
            problem = str(refusal)
        return {"name": run, "evaluations": count, "newest": newest, "alert": alert, "problem": problem}

    def _summary(self, folder: RunFolder) -> tuple[int, int | None]:
        """Number of evaluations and the newest step; an index that has not changed is not read again."""
        with folder.open(_INDEX) as file:
            status = os.fstat(file.fileno())
            stamp = (status.st_mtime_ns, status.st_size)
            known = self._summaries.get(folder.path)
            if known is None or known[0] != stamp:
                known = self._summaries[folder.path] = (stamp, index_file.summary(file, _INDEX))
                while len(self._summaries) > _SUMMARIES:
                    self._summaries.popitem(last=False)
            return known[1]


def _newest_alert(folder: RunFolder) -> dict[str, Any] | None:
    """Step and severity of the run's newest alert; None without one, or where its file can't be read."""
    try:
        with _optional(folder, _ALERTS) as file:
            found = index_file.alerts(file, _ALERTS) if file else []
    except Refusal:  # opening the run says why
        return None
    return {"step": found[-1]["global_step"], "severity": found[-1]["severity"]} if found else None


def _optional(folder: RunFolder, name: str) -> Any:
    """The open file, or a context of None where there is none."""
    return folder.open(name) if folder.has(name) else nullcontext()


def _opened(folder: RunFolder, name: str) -> ArrayFile:
    found = ArrayFile(folder.open(name), name)
    try:
        evaluation_file.check_version(found)
    except Refusal:
        found.close()
        raise
    return found


def _index(request: Request) -> int | None:
    return integer_of(request, "index") if "index" in request.args else None


def _shape(numbers: Iterable[int]) -> tuple[str, str]:
    return "X-I2AM-Shape", ",".join(map(str, numbers))


def _picture(request: Request, file: ArrayFile, pair: int, which: str) -> Response:
    tag = etag(file.status)
    found, kind = evaluation_file.read_picture(file, pair, which)
    return unchanged(request, tag, kind) or answer_bytes(request, found, kind, tag)
