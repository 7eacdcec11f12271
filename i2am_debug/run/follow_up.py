"""The last alert that was told, and how often its cause is still looked for: a fault that goes on shows more of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..alerts.alert import Alert

TIMES = 1
"""Evaluations after an alert at which its cause is looked for again: those that signatures were measured at. What has gone on
for longer is like none of them."""


@dataclass
class FollowUp:
    """Follows one alert at a time."""

    alert: Alert | None = None
    left: int = 0

    def begin(self, alert: Alert) -> None:
        """Follows an alert that is told now."""
        self.alert, self.left = alert, TIMES

    def once_more(self) -> Alert:
        """The alert, whose cause is looked for once more; that counts whether one is found or not."""
        assert self.alert is not None
        self.left -= 1
        return self.alert

    def state(self) -> dict[str, Any] | None:
        """Plain values, for a checkpoint."""
        return None if self.alert is None or not self.left else {"alert": self.alert.to_json(), "left": self.left}

    @classmethod
    def of(cls, state: Mapping[str, Any] | None) -> FollowUp:
        """What `state` gave."""
        return cls() if state is None else cls(Alert.from_json(state["alert"]), state["left"])
