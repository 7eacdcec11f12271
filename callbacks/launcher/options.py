"""What `i2am-debug run` is told: the command line's words over those of a TOML file, checked before the script begins."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from inspect import isfunction
from pathlib import Path
from typing import Any

from i2am_debug.alerts.rules import Rules
from i2am_debug.capture.plan import CapturePlan
from i2am_debug.errors import InvalidPair, WrongSettings
from i2am_debug.figures.scores import IMACSSettings
from i2am_debug.pairs.collection import ValidationPairs
from i2am_debug.settings import MonitorSettings, refuse_unknown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_OWN = ("pipeline", "model", "logdir", "allow_outside")
"""Keys of the file that are none of the callback's settings."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a script is watched."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the callback; without `pairs` the script's own validation calls are looked at."""
    pipeline: type | None = None
    """The pipeline's class, where the script and its model do not say it."""
    model: str | None = None
    """Folder or hub name of a whole pipeline, where the script does not load its denoiser from one."""
    logdir: Path | None = None
    """Where to write when the script has no TensorBoard tracker."""
    stops: bool = False
    """Whether an alert as severe as `stop_on` ends the script: where `stop_on` was given."""


def read_options(given: Mapping[str, Any], config: Path | None = None) -> RunOptions:
    """The options of a config file's table [i2am], and over them those given; paths in the file are from its folder.

    Args:
        given: by the names of the file's keys; None is as good as not given.

    Raises:
        WrongSettings: a file, key or value is wrong; names it.
        InvalidPair: the pairs can't be used.
    """
    where = "i2am-debug run" if config is None else f"{config}: [i2am]"
    given = {name: value for name, value in given.items() if value is not None}
    try:
        table = {} if config is None else _from_its_folder(_table(config), config)
        refuse_unknown(where, table, [*_OWN, *(one.name for one in fields(MonitorSettings))])
        if {"every_n_steps", "budget"} & given.keys():  # they say the same in two ways
            table = {name: value for name, value in table.items() if name not in ("every_n_steps", "budget")}
        with _importable(None if config is None else config.parent):
            return _checked({**table, **given})
    except InvalidPair:
        raise
    except (TypeError, ValueError) as error:
        text = str(error)
        raise WrongSettings(text if text.startswith((where, str(config))) else f"{where}: {text}") from None


def _checked(words: Mapping[str, Any]) -> RunOptions:
    read: dict[str, Any] = {}
    for name, value in words.items():
        try:
            read[name] = _READ[name](value) if name in _READ else value
        except InvalidPair:
            raise
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from None
    pairs, outside = read.pop("pairs", None), read.pop("allow_outside", False)
    if not isinstance(outside, bool):
        raise ValueError(f"allow_outside={outside!r}: expected true or false")
    own = {name: read.pop(name, None) for name in ("pipeline", "model", "logdir")}
    if pairs is None and read:
        raise ValueError(
            f"{next(iter(read))}: says how pairs are evaluated, and no pairs are given; give --pairs, or pairs in the file"
        )
    if pairs is not None:
        pairs = pairs if isinstance(pairs, ValidationPairs) else _pairs(pairs, outside)
        if "every_n_steps" not in read and "budget" not in read:
            read["every_n_steps"] = "asked"
        MonitorSettings(pairs=pairs, **read)
        read["pairs"] = pairs
    return RunOptions(settings=read, stops=read.get("stop_on") is not None, **own)


def _table(config: Path) -> dict[str, Any]:
    try:
        tree = tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{config} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{config} is not TOML: {error}") from None
    for outer in (tree, tree.get("tool")):
        found = outer.get("i2am") if isinstance(outer, dict) else None
        if isinstance(found, dict):
            return found
    raise ValueError(f"{config} has no table [i2am]")


def _from_its_folder(table: Mapping[str, Any], config: Path) -> dict[str, Any]:
    """Paths of a file are meant from where it lies."""
    read = dict(table)
    for name in ("pairs", "rules", "baseline", "logdir"):
        if isinstance(read.get(name), str) and not _is_a_name(read[name]):
            read[name] = str(config.parent / read[name])
    return read


@contextmanager
def _importable(folder: Path | None) -> Iterator[None]:
    """A block in which modules beside the config file can be imported, as those beside the script can."""
    path = sys.path[:]
    if folder is not None:
        sys.path.insert(1, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path[:] = path


def _is_a_name(text: str) -> bool:
    """Whether it is "module:name" rather than a path."""
    module, colon, name = text.partition(":")
    return bool(colon) and name.isidentifier() and all(part.isidentifier() for part in module.split("."))


def _named(value: Any) -> Any:
    """What "module:name" stands for."""
    if not isinstance(value, str) or not _is_a_name(value):
        raise ValueError(f'{value!r}: expected "module:name"')
    module, _, name = value.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{value!r}: {error}; expected a module beside the script or the config file") from None


def _function(value: Any) -> Callable[..., Any]:
    found: Callable[..., Any] = _named(value)
    if not callable(found):
        raise ValueError(f"{value!r} is a {type(found).__name__}; expected a function")
    return found


def _made(value: Any) -> Any:
    """What "module:name" stands for, or what it returns: a class or function without arguments."""
    found = _named(value)
    return found() if isinstance(found, type) or isfunction(found) else found


def _pipeline_class(value: Any) -> type:
    if not isinstance(value, str):
        raise ValueError(f"{value!r}: expected a class of diffusers, or module:Class")
    if _is_a_name(value):
        found = _named(value)
    else:
        import diffusers

        found = getattr(diffusers, value, None)
    if not isinstance(found, type) or not hasattr(found, "from_pretrained"):
        raise ValueError(
            f"{value!r} is no pipeline class; expected one of diffusers, such as FluxKontextPipeline, or module:Class"
        )
    return found


def _pairs(value: Any, allow_outside: bool) -> ValidationPairs:
    if isinstance(value, str) and _is_a_name(value):
        return ValidationPairs(_made(value))
    return ValidationPairs.from_folder(value, allow_outside=allow_outside)


def _rules(value: Any) -> Rules:
    return Rules.from_toml(value) if isinstance(value, str) else Rules.from_table(value)


def _of(kind: type, value: Any) -> Any:
    """A dataclass of a table; "all" stands for None, which TOML has no word for."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r}: expected a table")
    refuse_unknown(kind.__name__, value, [one.name for one in fields(kind)])
    return kind(**{name: None if one == "all" else one for name, one in value.items()})


_READ: Mapping[str, Callable[[Any], Any]] = {
    "plan": lambda value: _of(CapturePlan, value),
    "imacs": lambda value: _of(IMACSSettings, value),
    "rules": _rules,
    "size": lambda value: tuple(value) if isinstance(value, list) else value,
    "family": _made,
    "pipeline": _pipeline_class,
    "logdir": Path,
    **dict.fromkeys(("loss_fn", "call", "encode", "on_alert"), _function),
}
