"""A folder of pairs with a `metadata.jsonl`, read as something that anybody may have written. Opens no picture."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import InvalidPair
from .pair import ValidationPair, what_is_wrong_with_name
from .pictures import why_not_opened

LISTING = "metadata.jsonl"

_COLUMNS = {
    "file_name": "target",
    "reference_file_name": "reference",
    "mask_file_name": "mask",
    "reference_mask_file_name": "reference_mask",
    "kept_mask_file_name": "kept",
}
_FURTHER = "further_reference_file_names"
_LISTING_BYTES = 2**26
_LINE_CHARACTERS = 2**20
_DEPTH = 16  # of lists and objects in one another
_SHOWN = 200  # characters of a value in an error


def why_no_pairs(folder: Path) -> str:
    """Why a folder holds no pairs at all, or nothing: what can be said before anything is loaded that takes seconds."""
    try:
        _text(folder / LISTING)
    except InvalidPair as error:
        return str(error)
    return ""


def makers_of(folder: Path, *, allow_outside: bool) -> list[Callable[[], ValidationPair]]:
    """A function for each line of `metadata.jsonl`, which makes its pair.

    Raises:
        InvalidPair: as `ValidationPairs.from_folder`.
    """
    listing = folder / LISTING
    makers = []
    # str.splitlines would also cut at characters such as U+2028, which may stand in a JSON string
    for number, line in enumerate(_text(listing).split("\n"), 1):
        if line.strip():
            where = f"{listing}, line {number}"
            makers.append(_maker(folder, _parsed(line, where), where, allow_outside))
    return makers


def _text(listing: Path) -> str:
    try:
        status = listing.stat()
    except (FileNotFoundError, NotADirectoryError):
        status = None
    except (OSError, ValueError) as error:
        raise InvalidPair(f"{listing!s:.{_SHOWN}} can't be opened: {why_not_opened(error)}") from None
    if status is None or not stat.S_ISREG(status.st_mode):
        raise InvalidPair(
            f"no {listing}; expected one JSON object a line, such as "
            '{"file_name": "target_0.png", "reference_file_name": "reference_0.png", "prompt": "a red hat"}, with '
            '"mask_file_name" where there is a hole'
        )
    if status.st_size > _LISTING_BYTES:
        raise InvalidPair(
            f"{listing} has {status.st_size} bytes, more than the {_LISTING_BYTES} that are read; divide it"
        )
    try:
        return listing.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidPair(f"{listing} is not UTF-8: {error}; save it as UTF-8") from None
    except OSError as error:
        raise InvalidPair(f"{listing} can't be read: {why_not_opened(error)}") from None


def _parsed(line: str, where: str) -> dict[str, Any]:
    """One line's object: no key twice, no number that is not finite, nothing nested without end."""
    if len(line) > _LINE_CHARACTERS:
        raise InvalidPair(f"{where} has {len(line)} characters, more than the {_LINE_CHARACTERS} that are read")
    try:
        row = json.loads(line, object_pairs_hook=_without_twins, parse_constant=_refused_constant)
    except RecursionError:
        raise InvalidPair(f"{where} is nested too deeply; at most {_DEPTH} levels are read") from None
    except ValueError as error:
        raise InvalidPair(f"{where} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise InvalidPair(f"{where} is a {type(row).__name__}; expected a JSON object")
    _check_plain(row, where, _DEPTH)
    return row


def _without_twins(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) < len(items):
        keys = [key for key, _ in items]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r:.{_SHOWN}} stands there twice")
    return found


def _refused_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _check_plain(value: Any, where: str, depth: int) -> None:
    if depth < 0:
        raise InvalidPair(f"{where} is nested too deeply; at most {_DEPTH} levels are read")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_plain(key, where, depth)
            _check_plain(item, where, depth - 1)
    elif isinstance(value, list):
        for item in value:
            _check_plain(item, where, depth - 1)
    elif isinstance(value, float) and value in (float("inf"), float("-inf")):  # as 1e999 is read
        raise InvalidPair(f"{where} has a number beyond what a float holds")
    elif isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidPair(f"{where} has half a character (a lone surrogate) in {value!r:.{_SHOWN}}") from None


def _maker(folder: Path, row: dict[str, Any], where: str, allow_outside: bool) -> Callable[[], ValidationPair]:
    row = dict(row)
    arguments: dict[str, Any] = {}

    def file(value: Any, column: str) -> Path:
        return _file(folder, value, f"{where}: {column}", allow_outside)

    for column, key in _COLUMNS.items():
        value = row.pop(column, None)
        if value is not None:
            arguments[key] = file(value, column)
        elif key in ("target", "reference"):
            raise InvalidPair(f"{where} has no {column!r}; a pair needs file_name and reference_file_name")
    further = row.pop(_FURTHER, None)
    if further is not None:
        if not isinstance(further, list):
            raise InvalidPair(f"{where}: {_FURTHER} is {further!r:.{_SHOWN}}; expected a list of names of files")
        arguments["further_references"] = [file(value, _FURTHER) for value in further]
    name, prompt = row.pop("name", None), row.pop("prompt", None)
    if name is None or name == "":
        name = arguments["target"].stem
    name = str(name) if type(name) is int else name  # numbers are names, too
    if wrong := what_is_wrong_with_name(name):
        raise InvalidPair(f"{where}: the name of the pair {wrong}")
    if not (prompt is None or isinstance(prompt, str)):
        raise InvalidPair(f"{where}: prompt is {prompt!r:.{_SHOWN}}; expected a text")
    if "kept" in arguments:
        arguments["kept_origin"] = "file"
    arguments.update(name=name, prompt=prompt, extra=row)
    return lambda: ValidationPair(**arguments)


def _file(folder: Path, value: Any, what: str, allow_outside: bool) -> Path:
    if not isinstance(value, str):
        raise InvalidPair(f"{what} is {value!r:.{_SHOWN}}; expected the name of a file")
    path = folder / value
    try:
        is_file = path.is_file()
        is_inside = allow_outside or path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError) as error:  # a name too long or with a NUL; a loop of links
        raise InvalidPair(f"{what} names {value!r:.{_SHOWN}}, which can't be opened: {why_not_opened(error)}") from None
    if not is_inside:
        raise InvalidPair(
            f"{what} names {value!r:.{_SHOWN}}, which leads out of the folder {folder}; move the file into it, or, if you "
            "trust who wrote it, say allow_outside=True (--allow-outside)"
        )
    if not is_file:
        raise InvalidPair(f"{what} names {path}, which does not exist or is no plain file")
    return path
