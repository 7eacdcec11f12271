"""What looking costs, measured while a pilot looks: the forwards of a denoiser, and what is done in them for each layer.

Nothing waits for a device within a forward: on CUDA its own events mark the times, read after one synchronisation when the
forwards are done. Changes nothing of what is seen.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .maps import AttributionMaps
from .pending import Pending
from .trace import Trace

EACH_TIME = ""
"""Stands in `Stopwatch.looking` for what a looked-at forward costs whatever is looked at."""


class Clock:
    """Seconds between marks; on a CUDA device as it runs through what was handed to it."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._on_cuda = device is not None and device.type == "cuda"

    def mark(self) -> Any:
        """Now."""
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, begin: Any, end: Any) -> float:
        """Seconds from one mark to a later one, both passed by: after `wait`."""
        return begin.elapsed_time(end) / 1000 if self._on_cuda else end - begin

    def wait(self) -> None:
        """Until the device has done all it was given."""
        if self._on_cuda:
            torch.cuda.synchronize()


class Stopwatch:
    """Adds up what the forwards of one batch cost, and what looking adds to them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._marks: list[tuple[str | None, bool, Any, Any]] = []  # a forward has no name
        self._depth, self._within = 0, False  # blocks around this one; whether a forward is
        self.reading = 0.0
        """Seconds of reading the maps out, and of what else looking takes beside the forwards."""

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """A block that looking adds; blocks inside of it count as its part."""
        self._depth += 1
        begin = self._clock.mark() if self._depth == 1 else None
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._marks.append((name, self._within, begin, self._clock.mark()))

    @contextmanager
    def read(self) -> Iterator[None]:
        """A block before or after the forwards."""
        self._clock.wait()
        begin = self._clock.mark()
        yield
        end = self._clock.mark()
        self._clock.wait()
        self.reading += self._clock.between(begin, end)

    @contextmanager
    def forwards_of(self, denoiser: nn.Module) -> Iterator[None]:
        """A block in which the denoiser's forwards are timed, those that are not looked at too."""
        begun: list[Any] = []

        def before(*_: Any) -> None:
            self._within = True
            begun[:] = [self._clock.mark()]

        def after(*_: Any) -> None:
            if begun:
                self._within = False
                self._marks.append((None, False, begun.pop(), self._clock.mark()))

        first = denoiser.register_forward_pre_hook(before, prepend=True)
        last = denoiser.register_forward_hook(after, always_call=True)
        try:
            yield
        finally:
            first.remove()
            last.remove()

    def seconds(self) -> tuple[float, dict[str, float]]:
        """Of all forwards without looking, and of looking by layer; after the forwards."""
        self._clock.wait()
        forwards, looking = 0.0, defaultdict[str, float](float)
        for name, within, begin, end in self._marks:
            took = self._clock.between(begin, end)
            if name is None:
                forwards += took
            else:
                looking[name] += took
                forwards -= took if within else 0.0
        return forwards, dict(looking)


class TimedTrace(Trace):
    """A trace that says what each layer costs by itself: at most what it costs together with others."""

    def __init__(self, *args: Any, watch: Stopwatch, **named: Any) -> None:
        super().__init__(*args, **named)
        self._pending = Pending(self._buffers, at_once=True)
        self._watch = watch

    def __enter__(self) -> TimedTrace:
        with self._watch.read():
            super().__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._watch.read():
            super().__exit__(*exception)

    def maps(self, image: int = 0, reference: int = 0) -> AttributionMaps:
        with self._watch.read():
            return super().maps(image, reference)

    def _before_forward(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._timed(EACH_TIME, super()._before_forward, module, args, kwargs)

    def _after_forward(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._timed(EACH_TIME, super()._after_forward, module, args, output)

    def _before_module(self, name: str, module: nn.Module, args: tuple) -> None:
        self._timed(name, super()._before_module, name, module, args)

    def _after_module(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self._running:
            self._timed(self._running[-1].name, super()._after_module, module, args, output)

    def _layout(self, run: Any, query_tokens: int, key_tokens: int) -> Any:
        return self._timed(run.name, super()._layout, run, query_tokens, key_tokens)

    def _observe(self, run: Any, seen: Any, layout: Any) -> None:
        self._timed(run.name, super()._observe, run, seen, layout)

    def _timed(self, name: str, work: Callable[..., Any], *args: Any) -> Any:
        with self._watch.of(name):
            return work(*args)
