"""How a pipeline, a family, a function or a value stands in a fingerprint: short, readable, the same in another process.

What is left out is the model itself, which the figures are of: its weights, its layers' configuration, adapters and their
scales, and its dtype. A model that was trained in bfloat16 and is gated in float32 is what a gate is for, and the rounding
moves figures far less than their margins.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import math
import textwrap
from collections.abc import Hashable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from types import CodeType
from typing import Any, cast

import numpy as np
import torch
from diffusers import DiffusionPipeline

from ..capture.sampler_steps import scheduler_name
from ..families.family import Family

_LONG = 120  # characters of a value; what is longer, such as a table of betas, is told by its digest
_PLAIN = (bool, int, float, str, type(None))
_ALWAYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "prediction_type",
    "timestep_spacing",
    "shift",
)
"""Entries of a scheduler's configuration that are told at their defaults too, so that a difference shows both values."""


def of_pipeline(pipeline: Any) -> dict[str, Any]:
    """The pipeline's class and its own switches, its scheduler's class and configuration.

    Of the scheduler everything is told, whatever the way reads of it: a pipeline's code may ask for any entry. What is at its
    default is left out: another diffusers, which knows an argument more, must not make every stored baseline useless.
    """
    scheduler = getattr(pipeline, scheduler_name(pipeline) or "scheduler", None)
    config = dict(getattr(scheduler, "config", {}))
    if scheduler is not None and hasattr(scheduler, "set_shift"):  # which leaves the configuration as it was
        config["shift"] = scheduler.shift
    switches = dict(pipeline.config) if isinstance(pipeline, DiffusionPipeline) else {}
    switches = {
        key: value for key, value in switches.items() if isinstance(value, _PLAIN)
    }  # the others are its modules
    return {
        "pipeline": type(pipeline).__name__,
        **_entries("pipeline", _not_defaults(pipeline, switches)),
        "scheduler": None if scheduler is None else type(scheduler).__name__,
        **_entries("scheduler", _not_defaults(scheduler, config)),
    }


def of_family(family: Family) -> dict[str, Any]:
    """The family's name and settings, and its code where it is none of this package, whose version tells the others'."""
    kind = type(family)
    names = [field.name for field in fields(family)] if is_dataclass(family) else list(vars(family))
    settings = {name: getattr(family, name) for name in names}
    if settings.get("guidance") is True:  # the default, left out as it was before there was such a setting
        del settings["guidance"]
    told = {"family": family.name, **_entries("family", settings)}
    if not kind.__module__.startswith("i2am_debug."):
        told["family.code"] = of_code(kind)
    return told


def of_code(given: Any) -> str | None:
    """Which function or class it is: module, qualified name and eight hex digits that change with its code.

    The digits are of its source without comments and layout; of its bytecode, which differs between Python versions, where
    there is no source, and for a lambda, whose line may hold another one. A `functools.partial` also names its arguments, as
    far as they are plain values. An object that can be called is told by its class.

    Not seen: what a closure, a default, a global or `self` holds, and the code that is called from there. Whoever changes
    those changes the figures unnoticed; a `functools.partial` of a function of the module's top level is seen.
    """
    if given is None:
        return None
    if isinstance(given, functools.partial):
        named = [f"{key}={of_value(value)!r}" for key, value in sorted(given.keywords.items())]
        return f"{of_code(given.func)} with ({', '.join([*(repr(of_value(a)) for a in given.args), *named])})"
    code = given if inspect.isroutine(given) or inspect.isclass(given) else type(given)
    name = f"{getattr(code, '__module__', None)}.{getattr(code, '__qualname__', type(code).__qualname__)}"
    with suppress(ValueError):  # it may wrap itself
        code = inspect.unwrap(code)
    source = _source(code) if isinstance(code, Hashable) else None
    text = source or "\n".join(_bytecode(code))
    return f"{name} {_digest(text.encode())[:8]}" if text else name


def of_value(value: Any) -> Any:
    """The value in a form that JSON keeps; long ones, tensors and arrays by their digest, unknown objects by their type."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and math.isnan(value):
        return "nan"  # which as a number would differ from itself
    if isinstance(value, _PLAIN):
        return value if len(str(value)) <= _LONG else f"{len(str(value))} characters, {_digest(str(value).encode())}"
    if isinstance(value, Mapping):
        return {str(key): of_value(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, (list, tuple)):
        told = [of_value(one) for one in value]
        return told if len(repr(told)) <= _LONG else f"{len(told)} values, {_digest(repr(told).encode())}"
    if isinstance(value, torch.Tensor):
        kept = value.detach().cpu()
        value = (kept.double() if kept.is_floating_point() else kept).numpy()  # numpy knows no bfloat16
    if isinstance(value, np.ndarray):
        return f"{value.shape} {value.dtype}, {_digest(np.ascontiguousarray(value).tobytes())}"
    if isinstance(value, (slice, range, torch.dtype, torch.device)):
        return repr(value)
    return of_code(value) if callable(value) else type(value).__name__


def _not_defaults(made: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a configuration that its class does not have by itself, and those that are always told."""
    parameters = inspect.signature(type(made).__init__).parameters
    given = {name: one.default for name, one in parameters.items() if one.default is not inspect.Parameter.empty}
    defaults = {name: of_value(default) for name, default in given.items()}
    return {k: v for k, v in config.items() if k in _ALWAYS or k not in defaults or of_value(v) != defaults[k]}


def _entries(of: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{of}.{key}": of_value(value) for key, value in settings.items() if not key.startswith("_")}


@functools.lru_cache(maxsize=256)
def _source(code: Hashable) -> str | None:
    """Its source as Python itself would write it; None where there is none, or not of it alone.

    Read once in a program: to parse a file takes longer than to score an evaluation, and the file may be edited meanwhile.
    """
    name = getattr(code, "__name__", "<lambda>")
    try:
        (found,) = ast.parse(textwrap.dedent(inspect.getsource(cast(Any, code)))).body
    except Exception:  # no file, one that was edited meanwhile, …: whatever it is, it must not end a training
        return None
    return ast.unparse(found) if getattr(found, "name", None) == name else None


def _bytecode(code: Any) -> Iterator[str]:
    """What makes up a function, or a class's own functions, line by line."""
    if inspect.isclass(code):
        for name, own in sorted(vars(code).items()):
            if inspect.isfunction(own):
                yield name
                yield from _bytecode(own)
        return
    found = code if isinstance(code, CodeType) else getattr(code, "__code__", None)
    if found is None:
        return
    yield repr((found.co_code.hex(), found.co_names, found.co_varnames))
    for constant in found.co_consts:
        if isinstance(constant, CodeType):
            yield from _bytecode(constant)
        else:  # a set's order changes from process to process
            yield repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
