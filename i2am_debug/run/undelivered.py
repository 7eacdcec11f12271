"""Alerts that somebody has not been told of yet: what can't be told is told at the next chance, and after a resume.

Two threads tell: the training's own, of what must be known before the next step, and the one that writes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..alerts.alert import Alert

CHANNELS = ("alerts.jsonl", "trackers", "on_alert")


@dataclass
class Pending:
    """An alert, and where it still has to go."""

    alert: Alert
    left: list[str]


class Undelivered:
    """The alerts that have not gone everywhere, oldest first; an alert may arrive twice somewhere, but never not at all."""

    def __init__(self, state: Sequence[Mapping[str, Any]] = ()) -> None:
        self._pending = [Pending(Alert.from_json(one["alert"]), list(one["left"])) for one in state]
        self._changing = threading.Lock()  # never held while somebody is told, who may come back to us

    def add(self, alert: Alert) -> None:
        """Takes on an alert; one of the same step takes the place of an earlier one, as after a resume."""
        with self._changing:
            others = [one for one in self._pending if one.alert.global_step != alert.global_step]
            self._pending = [*others, Pending(alert, list(CHANNELS))]

    def complete(self, alert: Alert) -> None:
        """The same alert, once more is known of it: its cause, its panels."""
        with self._changing:
            for one in self._pending:
                if one.alert.global_step == alert.global_step:
                    one.alert = alert

    def waiting(self, channel: str) -> list[Alert]:
        """The alerts that have not gone to a channel."""
        return [one.alert for one in self._pending if channel in one.left]

    def deliver(self, channel: str, hand_over: Callable[[Alert], bool]) -> None:
        """Hands over, one after another, what has not gone to a channel; what `hand_over` says no to, or raises at, stays."""
        for one in list(self._pending):
            if channel in one.left and hand_over(one.alert):
                with self._changing:
                    one.left = [other for other in one.left if other != channel]
        with self._changing:
            self._pending = [one for one in self._pending if one.left]

    def state(self) -> list[dict[str, Any]]:
        """Plain values, for a checkpoint."""
        return [{"alert": one.alert.to_json(), "left": list(one.left)} for one in self._pending]
