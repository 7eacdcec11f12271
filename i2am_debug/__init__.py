"""Sees during fine-tuning whether an image-to-image diffusion model still uses its reference (I2AM, ICLR 2025).

The names below are the public interface; they are imported when first used, so that `import i2am_debug` is fast and needs
no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "trace": "capture.trace",
    "AttributionMaps": "capture.maps",
    "Direction": "capture.maps",
    "imacs": "figures.scores",
    "IMACSSettings": "figures.scores",
    "js_distance": "figures.distances",
    "CapturePlan": "capture.plan",
    "ValidationPair": "pairs.pair",
    "ValidationPairs": "pairs.collection",
    "Evaluation": "figures.record",
    "Undefined": "figures.values",
    "DeclaredFigure": "figures.declaration",
    "register_figure": "figures.registry",
    "Alert": "alerts.alert",
    "Rule": "alerts.rule",
    "Rules": "alerts.rules",
    "IMACSRegression": "errors",
}

_SHOWN = ("trace", "AttributionMaps", "Evaluation", "Alert")
"""Are, or give, what a notebook can show inline."""

__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:  # "as": mypy's --strict takes no other name for one that is meant to be imported from here
    from .alerts.alert import Alert as Alert
    from .alerts.rule import Rule as Rule
    from .alerts.rules import Rules as Rules
    from .capture.maps import AttributionMaps as AttributionMaps
    from .capture.maps import Direction as Direction
    from .capture.plan import CapturePlan as CapturePlan
    from .capture.trace import trace as trace
    from .errors import IMACSRegression as IMACSRegression
    from .figures.declaration import DeclaredFigure as DeclaredFigure
    from .figures.distances import js_distance as js_distance
    from .figures.record import Evaluation as Evaluation
    from .figures.registry import register_figure as register_figure
    from .figures.scores import IMACSSettings as IMACSSettings
    from .figures.scores import imacs as imacs
    from .figures.values import Undefined as Undefined
    from .pairs.collection import ValidationPairs as ValidationPairs
    from .pairs.pair import ValidationPair as ValidationPair


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    if name in _SHOWN:
        importlib.import_module(".report.notebook", __name__).show_in_notebooks()
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
