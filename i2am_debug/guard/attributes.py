"""What an object carries in its `__dict__`, remembered and put back: not what it means, only that it is as it was."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

_CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)
_LARGEST_COPY = 2**20  # bytes of an array that is neither parameter nor buffer, such as a scheduler's noise times


class Attributes:
    """One object's attributes as they are now, by identity, with one level of its plain containers.

    Containers are restored in place, since others may hold them: hooks are removed from the dictionary they were put into.
    Small arrays (a scheduler's) are copied, so that a write into them is undone as well.
    """

    def __init__(self, thing: Any) -> None:
        self._thing = thing
        self._values = dict(vars(thing))
        self._contents = [(v, v.copy() if v else ()) for v in self._values.values() if type(v) in _CONTAINERS]
        self._arrays = [(v, _copied(v)) for v in self._values.values() if _is_small_array(v)]

    def value(self, name: str) -> Any:
        """Of the attribute of this name; None if there was none."""
        return self._values.get(name)

    def parts(self) -> Iterator[Any]:
        """Every value there was, those of the containers too."""
        yield from self._values.values()
        for _, content in self._contents:
            yield from content.values() if isinstance(content, dict) else content  # an empty one is kept as ()

    def put_back(self) -> None:
        now = vars(self._thing)
        for name in now.keys() - self._values.keys():
            del now[name]
        for name, value in self._values.items():
            if name not in now or now[name] is not value:
                now[name] = value
        for container, content in self._contents:
            if not _same_items(container, content):
                _fill(container, content)
        with torch.no_grad():
            for array, kept in self._arrays:
                if not _same_bytes(array, kept):
                    array[...] = kept


def has_attributes(thing: Any) -> bool:
    return isinstance(getattr(thing, "__dict__", None), dict)


def _same_items(ours: Any, theirs: Any) -> bool:
    """Whether the very same things are in both; equal ones would do, but asking a tensor that gives a tensor."""
    if len(ours) != len(theirs) or not theirs:
        return len(ours) == len(theirs)
    if isinstance(ours, set):
        return ours == theirs
    if isinstance(ours, dict):
        return all(a is b and ours[a] is theirs[b] for a, b in zip(ours, theirs, strict=True))
    return all(a is b for a, b in zip(ours, theirs, strict=True))


def _fill(container: Any, content: Any) -> None:
    container.clear()
    (container.update if isinstance(container, dict | set) else container.extend)(content)


def _is_small_array(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype != object and value.ndim > 0 and value.nbytes <= _LARGEST_COPY
    # A parameter or buffer is in a container of its module's `__dict__`, never a value of it.
    return type(value) is torch.Tensor and value.device.type != "meta" and value.nbytes <= _LARGEST_COPY


def _copied(array: Any) -> Any:
    return array.copy() if isinstance(array, np.ndarray) else array.detach().clone()


def _same_bytes(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, np.ndarray):
        return ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes()
    return torch.equal(ours, theirs)
