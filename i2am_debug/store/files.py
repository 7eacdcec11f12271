"""How files of a run are written: whole or not at all, and lines one by one."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import StoreError

PLUGIN_NAME = "i2am_debug"

_APPENDING = threading.Lock()  # the training's thread and the one that writes may both have a line for `alerts.jsonl`

NOT_OURS = (KeyError, TypeError, ValueError, AttributeError, IndexError)
"""What using plain values of another form ends in, where they were not read by `figures.stored_form`."""


def replace_file(path: Path, write: Callable[[str], Any]) -> None:
    """A file that is there whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    os.close(handle)
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private; a shared log folder is read by others
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    with _APPENDING, open(path, "ab+") as file:
        if file.tell() and not _ends_with_newline(file):
            file.write(b"\n")  # a torn line stays a line of its own
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of lines, each with the number of its line; nothing of a file that is not there.

    Raises:
        StoreError: the file can't be opened.
    """
    try:
        if not path.is_file():
            return
        file = open(path, encoding="utf-8", errors="replace")  # noqa: SIM115
    except OSError as error:
        raise StoreError(f"{path} can't be read: {error.strerror}") from None
    with file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue  # torn by a crash while writing
            if isinstance(row, dict):
                yield number, row
