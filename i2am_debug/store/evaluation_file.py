"""One evaluation as a safetensors file: figures in the metadata, maps as arrays. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..errors import StoreError
from ..figures.record import FORMAT, Evaluation
from .files import PLUGIN_NAME, replace_file


def read_figures(path: str | Path) -> Evaluation:
    """One evaluation's figures from its file.

    Raises:
        StoreError: no such file, not an evaluation, broken, or of a newer version.
    """
    return _open(path, lambda name: False)[0]


def read_evaluation(path: str | Path) -> tuple[Evaluation, dict[str, np.ndarray]]:
    """One evaluation's figures and its unified maps ("0/r2g", "0/g2r", …) from its file.

    Raises:
        StoreError: as `read_figures`.
    """
    evaluation, arrays = _open(path, lambda name: name.endswith(("/r2g/unified", "/g2r/unified")))
    for name, array in arrays.items():
        if array.ndim != 2 or not array.size or array.dtype.kind != "f":
            raise StoreError(f"{path} is broken: {name} is no map, it has shape {array.shape} of {array.dtype}")
    return evaluation, {name.removesuffix("/unified"): array for name, array in arrays.items()}


def read_arrays(path: str | Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Those of the arrays `names` that a safetensors file has; nothing when there is no such file.

    Raises:
        StoreError: the file can't be read.
    """
    path = Path(path)
    if not _is_file(path):
        return {}
    wanted = set(names)
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys() if name in wanted}  # noqa: SIM118


def write_evaluation(path: Path, evaluation: Evaluation, arrays: Mapping[str, np.ndarray], grids: Any) -> None:
    """One evaluation's file: its figures as metadata, and arrays by name ("0/r2g/unified", …)."""
    metadata = {
        "format": str(FORMAT),
        "evaluation": json.dumps(evaluation.to_json()),
        "grids": json.dumps(grids),
    }
    save_arrays(path, arrays, metadata)


def pairs_file_name(evaluation: Evaluation) -> str:
    """Of the file with the pictures of its pairs; other pairs have another one, and so have other derived regions."""
    pairs, regions = (evaluation.fingerprint.get(key) for key in ("pairs", "regions"))
    digest = hashlib.sha256(json.dumps(pairs if regions is None else [pairs, regions]).encode()).hexdigest()
    return f"pairs_{digest[:12]}.safetensors"


def _open(path: str | Path, wanted: Callable[[str], bool]) -> tuple[Evaluation, dict[str, np.ndarray]]:
    path = Path(path)
    if not _is_file(path):
        raise StoreError(
            f"no evaluation at {path}; expected a step_….safetensors of a run's plugins/{PLUGIN_NAME} folder, or a file of "
            "i2am-debug baseline save"
        )
    with _opened(path) as file:
        metadata = file.metadata() or {}
        if "evaluation" not in metadata:
            raise StoreError(f"{path} is a safetensors file, but not an evaluation of i2am-debug")
        version = metadata.get("format", "0")
        if not (version.isascii() and version.isdecimal() and len(version) < 10):
            raise StoreError(f"{path} has a format that is no number: {version!r:.100}")
        refuse_newer(path, int(version))
        arrays = {name: file.get_tensor(name) for name in file.keys() if wanted(name)}  # noqa: SIM118
    try:
        return Evaluation.from_json(json.loads(metadata["evaluation"])), arrays
    except RecursionError:
        raise StoreError(f"{path} holds an evaluation that can't be read: it is nested without end") from None
    except ValueError as error:
        raise StoreError(
            f"{path} holds an evaluation that can't be read: {error}; was it changed by hand or by another version?"
        ) from None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise StoreError(f"{str(path)[:300]} can't be opened: {error.strerror}") from None


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file, whose header the library checks against the file's size; what breaks in it names the file."""
    try:
        open(path, "rb").close()  # of a file that may not be read, safetensors says that it isn't there
        with safe_open(path, framework="numpy") as file:
            yield file
    except StoreError:
        raise
    except PermissionError as error:
        raise StoreError(f"{path} can't be read: {error.strerror}") from None
    # Of kinds of numbers that numpy does not know, safetensors raises a TypeError or an AttributeError.
    except (SafetensorError, OSError, TypeError, AttributeError, ValueError) as error:
        raise StoreError(f"{path} can't be read: {error}; is it a whole .safetensors file?") from None


def refuse_newer(path: Path, version: int) -> None:
    if version > FORMAT:
        raise StoreError(
            f"{path} was written by a newer i2am-debug (format {version}, this one reads up to {FORMAT}); "
            "upgrade with: pip install -U i2am-debug"
        )


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    contiguous = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
    replace_file(path, lambda temporary: save_file(contiguous, temporary, metadata=dict(metadata)))
