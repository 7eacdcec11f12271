"""Plain values of JSON as what they are said to be, or a `ValueError` that names the place. Knows no files and no figures.

Anybody may have written a file. What is read here has the form that its writer would have given it, so that nothing after the
reading has to be afraid of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
Read = Callable[[Any, str], T]
"""(value, where it stands) → what it is; raises `ValueError`."""

LARGEST = sys.float_info.max
"""A number may be so large."""
LATEST = 10**12
"""No training has so many steps."""

_DEPTH = 16
_SHOWN = 100  # characters of a value in an error


def entry(row: Any, key: str, read: Read[T], where: str = "") -> T:
    """A key of an object that must have it."""
    if not isinstance(row, Mapping):
        raise wrong(row, where or "it", "an object")
    if key not in row:
        raise ValueError(f"{where or 'it'} has no {key!r}")
    return read(row[key], f"{where}/{key}" if where else key)


def text(value: Any, where: str) -> str:
    """A text."""
    if not isinstance(value, str):
        raise wrong(value, where, "a text")
    return value


def number(value: Any, where: str) -> float:
    """A finite number, whole or not."""
    if not is_numeric(value) or not -LARGEST <= value <= LARGEST:  # NaN is neither
        raise wrong(value, where, "a finite number")
    return value


def finite_or_none(value: Any, where: str) -> float | None:
    """A finite number; none where it is null or not finite."""
    return None if value is None or (is_numeric(value) and not -LARGEST <= value <= LARGEST) else number(value, where)


def is_numeric(value: Any) -> bool:
    """Whether it is a number of any size, NaN too."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def whole_number(value: Any, where: str) -> int:
    """A whole number from 0 on, such as a step."""
    if type(value) is not int or not 0 <= value < LATEST:
        raise wrong(value, where, "a whole number of at least 0")
    return value


def truth(value: Any, where: str) -> bool:
    """True or false."""
    if type(value) is not bool:
        raise wrong(value, where, "true or false")
    return value


def optional(read: Read[T]) -> Read[T | None]:
    """Null, or what `read` reads."""
    return lambda value, where: None if value is None else read(value, where)


def listed(read: Read[T]) -> Read[tuple[T, ...]]:
    """A list of what `read` reads."""

    def of_list(value: Any, where: str) -> tuple[T, ...]:
        if not isinstance(value, (list, tuple)):
            raise wrong(value, where, "a list")
        return tuple(read(item, f"{where}/{i}") for i, item in enumerate(value))

    return of_list


def mapped(read: Read[T]) -> Read[dict[str, T]]:
    """An object, each of whose values `read` reads."""

    def of_object(value: Any, where: str) -> dict[str, T]:
        if not isinstance(value, Mapping):
            raise wrong(value, where, "an object")
        return {text(key, where): read(item, f"{where}/{key}") for key, item in value.items()}

    return of_object


def one_of(known: tuple[str, ...]) -> Read[Any]:
    """One of these words."""

    def of_word(value: Any, where: str) -> str:
        if not (isinstance(value, str) and value in known):
            raise wrong(value, where, f"one of {', '.join(known)}")
        return value

    return of_word


def plain(value: Any, where: str, depth: int = _DEPTH) -> Any:
    """Any value of JSON, of bounded depth, whose numbers a float holds."""
    if depth < 0:
        raise ValueError(f"{where:.{_SHOWN}} is nested deeper than {_DEPTH} levels")
    if isinstance(value, Mapping):
        return {text(key, where): plain(item, f"{where}/{key}", depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}/{i}", depth - 1) for i, item in enumerate(value)]
    if type(value) is int and abs(value) > LARGEST:
        raise wrong(value, where, "a number that a float holds")
    if not (value is None or isinstance(value, (bool, int, float, str))):
        raise wrong(value, where, "a value of JSON")
    return value


def wrong(value: Any, where: str, expected: str) -> ValueError:
    """That a value is not what it should be, in words."""
    shown = "a very long whole number" if type(value) is int and abs(value) > LARGEST else f"{value!r:.{_SHOWN}}"
    return ValueError(f"{where:.{_SHOWN}} is {shown}; expected {expected}")
