"""Methods of other packages' classes, wrapped for as long as a script runs and then put back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any


class Patches(AbstractContextManager["Patches"]):
    """Wraps methods; at the end, on any exception too, each class has again what it had, the last wrapped first."""

    def __init__(self) -> None:
        self._put_back: list[tuple[type, str, Any]] = []

    def wrap(self, owner: type, name: str, wrapper: Callable[..., Any]) -> None:
        """`owner.name` becomes `wrapper(original, self_or_class, *args, **kwargs)`; once for each owner and name.

        `original` takes the same `self_or_class` first. The signature, which pipelines and schedulers are asked for, stays.
        """
        if any((owner, name) == (known, of) for known, of, _ in self._put_back):
            return
        stored = owner.__dict__.get(name, _INHERITED)
        is_class_method = isinstance(_raw(owner, name), classmethod)
        original = getattr(owner, name).__func__ if is_class_method else getattr(owner, name)

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return wrapper(original, *args, **kwargs)

        self._put_back.append((owner, name, stored))
        setattr(owner, name, classmethod(wrapped) if is_class_method else wrapped)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._put_back:
            owner, name, stored = self._put_back.pop()
            if stored is _INHERITED:
                delattr(owner, name)
            else:
                setattr(owner, name, stored)


_INHERITED = object()


def _raw(owner: type, name: str) -> Any:
    return next(parent.__dict__[name] for parent in owner.__mro__ if name in parent.__dict__)
