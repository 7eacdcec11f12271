"""Sees during fine-tuning whether an image-to-image diffusion model still uses its reference (I2AM, ICLR 2025).

The names below are the public interface; they are imported when first used, so that `import i2am_debug` is fast and needs
no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "trace": "capture",
    "AttributionMaps": "maps",
    "Direction": "maps",
    "imacs": "scores",
    "IMACSSettings": "scores",
    "js_distance": "distances",
    "CapturePlan": "plan",
    "ValidationPair": "pairs",
    "ValidationPairs": "pairs",
    "Evaluation": "record",
    "Undefined": "record",
    "Alert": "drift",
    "Rule": "rules",
    "Rules": "rules",
    "IMACSRegression": "errors",
}

__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from .capture import trace
    from .distances import js_distance
    from .drift import Alert
    from .errors import IMACSRegression
    from .maps import AttributionMaps, Direction
    from .pairs import ValidationPair, ValidationPairs
    from .plan import CapturePlan
    from .record import Evaluation, Undefined
    from .rules import Rule, Rules
    from .scores import IMACSSettings, imacs


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
