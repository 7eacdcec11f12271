"""Single arrays out of a safetensors file that anybody may have written. Knows no evaluation.

Nothing is believed before it is checked: the header is bounded, the arrays fill the rest of the file without gap or overlap,
and each is as long as its shape and dtype say. Header and array are read from the same open file, so a file that is replaced
meanwhile can't mix the two.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from .refusal import Refusal

HEADER_BYTES = 2**24
"""A header may be this long: 256 pairs of a model with 57 layers take about half of it."""

_KEPT_BYTES = 2**22
_SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
_DTYPES = {"F16": "<f2", "F32": "<f4", "U8": "u1"}


@dataclass(frozen=True, slots=True)
class Array:
    """Where an array lies, counted from the file's beginning."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a file says that it holds, checked."""

    metadata: Mapping[str, str]
    arrays: Mapping[str, Array]


class ArrayFile:
    """One open safetensors file; closes it at the end of a `with`."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        """`file`: unbuffered. `name`: to call it by in a refusal.

        Raises:
            Refusal: it is no safetensors file, or a broken one.
        """
        self._file, self.name = file, name
        try:
            self.status = os.fstat(file.fileno())
            self.header = _headers.of(file, name, self.status)
        except BaseException:
            file.close()
            raise

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """For a file that is not opened in a `with`."""
        self._file.close()

    def read(self, name: str, *, dtypes: Collection[str], most_bytes: int, index: int | None = None) -> np.ndarray:
        """An array, or one entry along its first axis.

        Raises:
            Refusal: there is no such array, it has another dtype, is larger than `most_bytes`, or `index` is beyond it.
        """
        found = self.header.arrays.get(name)
        if found is None:
            raise Refusal(404, f"{self.name} has no {name}.")
        if found.dtype not in dtypes:
            raise Refusal(404, f"{name} in {self.name} is of dtype {found.dtype}, expected {' or '.join(dtypes)}.")
        shape, begin, size = found.shape, found.begin, found.end - found.begin
        if index is not None:
            if not shape or not 0 <= index < shape[0]:
                raise Refusal(400, f"index is {index}, but {name} has {shape[0] if shape else 0} entries.")
            size //= shape[0]
            shape, begin = shape[1:], begin + index * size
        if size > most_bytes:
            raise Refusal(
                404, f"{name} in {self.name} has {size} bytes, more than the {most_bytes} that the tab reads."
            )
        return np.frombuffer(_exactly(self._file, begin, size, self.name), dtype=_DTYPES[found.dtype]).reshape(shape)


class _Headers:
    """The headers read last: a person who looks at one evaluation asks for dozens of its arrays.

    Bounded in bytes, whatever is opened. A file that was replaced has another key.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, ...], tuple[Header, int]] = OrderedDict()

    def of(self, file: BinaryIO, name: str, status: os.stat_result) -> Header:
        """The header of an open file."""
        key = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
        header, size = _read_header(file, name, status.st_size)
        with self._lock:
            self._kept[key] = header, size
            while len(self._kept) > 1 and sum(kept for _, kept in self._kept.values()) > _KEPT_BYTES:
                self._kept.popitem(last=False)
        return header


_headers = _Headers()


def _read_header(file: BinaryIO, name: str, file_size: int) -> tuple[Header, int]:
    length = int.from_bytes(_exactly(file, 0, 8, name), "little")
    if length > HEADER_BYTES:
        raise Refusal(
            404, f"{name} is no evaluation: its header claims {length} bytes, at most {HEADER_BYTES} are read."
        )
    if 8 + length > file_size:
        raise Refusal(404, f"{name} is cut off: its header claims {length} bytes.")
    try:
        rows = json.loads(_exactly(file, 8, length, name))
    except (ValueError, RecursionError):
        raise Refusal(404, f"{name} is broken: its header is no JSON.") from None
    if not isinstance(rows, dict):
        raise Refusal(404, f"{name} is broken: its header is no object.")
    metadata = rows.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Refusal(404, f"{name} is broken: its metadata are not all texts.")
    arrays = {key: _array(row, 8 + length, f"{name} is broken: its entry {key[:200]!r}") for key, row in rows.items()}
    at = 8 + length
    for key, found in sorted(arrays.items(), key=lambda item: (item[1].begin, item[1].end)):
        if found.begin != at:
            how = "overlaps the one before" if found.begin < at else "leaves a gap before it"
            raise Refusal(404, f"{name} is broken: its entry {key[:200]!r} {how}.")
        at = found.end
    if at != file_size:
        how = "is cut off" if at > file_size else "is broken"
        raise Refusal(404, f"{name} {how}: it has {file_size} bytes, its header tells of {at}.")
    return Header(metadata, arrays), length


def _array(row: Any, start: int, what: str) -> Array:
    if not isinstance(row, dict):
        raise Refusal(404, f"{what} is no object.")
    dtype, shape, offsets = row.get("dtype"), _naturals(row.get("shape")), _naturals(row.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise Refusal(404, f"{what} has an unknown dtype.")
    if shape is None or len(shape) > 8:
        raise Refusal(404, f"{what} has no proper shape.")
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise Refusal(404, f"{what} has no proper offsets.")
    if math.prod(shape) * _SIZES[dtype] != offsets[1] - offsets[0]:
        raise Refusal(404, f"{what} is not as long as its shape and dtype say.")
    return Array(dtype, shape, start + offsets[0], start + offsets[1])


def _naturals(value: Any) -> tuple[int, ...] | None:
    good = isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)
    return tuple(value) if good else None


def _exactly(file: BinaryIO, begin: int, size: int, name: str) -> bytes:
    file.seek(begin)
    parts, left = [], size
    while left:
        part = file.read(left)
        if not part:
            raise Refusal(404, f"{name} is cut off.")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
