"""What a function that builds a pipeline may change before it returns it: the parts of a script that it holds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import nn


def mentioned(build: Callable[..., Any]) -> list[Any]:
    """The modules, schedulers and pipelines that it holds: in its closure, the globals it names, its arguments if it is a
    `partial`, the object whose method it is; there, in the attributes of what is found there, and in what functions found
    there hold (of those it names as globals, only ones of its own file)."""
    held = list(_held(build, set()))
    inside = [value for one in held if not isinstance(one, nn.Module) for value in _attributes(one)]
    return list({id(one): one for one in (*held, *inside) if _is_part(one)}.values())


def _held(build: Any, seen: set[int]) -> Iterator[Any]:
    while isinstance(build, partial):
        yield from (*build.args, *build.keywords.values())
        build = build.func
    if inspect.ismethod(build):
        yield build.__self__
        build = build.__func__
    if not inspect.isfunction(build):
        yield build  # an object with a __call__
        return
    seen.add(id(build))
    try:
        names = inspect.getclosurevars(build)
    except ValueError:  # a variable that has no value yet
        return
    functions = list(names.nonlocals.values())
    functions += [value for value in names.globals.values() if getattr(value, "__module__", "") == build.__module__]
    yield from (*names.nonlocals.values(), *names.globals.values())
    for function in functions:
        if inspect.isfunction(function) and id(function) not in seen:
            yield from _held(function, seen)


def _attributes(thing: Any) -> list[Any]:
    inside = getattr(thing, "__dict__", None)
    return list(inside.values()) if isinstance(inside, dict) and not inspect.ismodule(thing) else []


def _is_part(thing: Any) -> bool:
    if isinstance(thing, type):
        return False
    kind = type(thing)  # to ask the thing itself might run a script's own code
    return isinstance(thing, nn.Module) or hasattr(kind, "set_timesteps") or hasattr(kind, "register_modules")
