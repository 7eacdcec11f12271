"""The value of a figure: a finite number, or why there is none. Knows no maps."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .stored_form import LARGEST, entry, is_numeric, text, wrong


@dataclass(frozen=True)
class Undefined:
    """Stands where a figure has no value, and says why."""

    reason: str

    def __str__(self) -> str:
        return f"undefined: {self.reason}"


Figure = float | Undefined
"""A finite number, or why there is none."""


_NOT_FINITE = "not a finite number"

OF_FURTHER = re.compile(r"reference_([1-9]\d{0,2})/")


def reference_tag(number: int) -> str:
    """What the figures, maps and pictures of a further reference are called by: "reference_1" and so on."""
    return f"reference_{number}"


def of_any_reference(tag: str) -> str:
    """A figure's tag without the further reference that it is of: "imacs_g" for "reference_1/imacs_g"."""
    return OF_FURTHER.sub("", tag, count=1) if OF_FURTHER.match(tag) else tag


def figure_to_json(value: Any) -> Any:
    """A number or a name as it is, an `Undefined` as an object with its reason."""
    return {"undefined": value.reason} if isinstance(value, Undefined) else value


def figure_from_json(value: Any, where: str) -> Figure:
    """The inverse of `figure_to_json` for a number; one that is not finite is undefined.

    Raises:
        ValueError: it is neither a number nor an object with a reason; names `where` it stands.
    """
    if isinstance(value, Mapping):
        return Undefined(entry(value, "undefined", text, where))
    if not is_numeric(value):
        raise wrong(value, where, 'a number or {"undefined": reason}')
    return value if -LARGEST <= value <= LARGEST else Undefined(_NOT_FINITE)


def name_from_json(value: Any, where: str) -> str | Undefined:
    """The inverse of `figure_to_json` for a name.

    Raises:
        ValueError: it is neither a text nor an object with a reason.
    """
    return Undefined(entry(value, "undefined", text, where)) if isinstance(value, Mapping) else text(value, where)


def as_figure(value: float, reason: str = _NOT_FINITE) -> Figure:
    """A finite number as a float, anything else as undefined."""
    return float(value) if math.isfinite(value) else Undefined(reason)
