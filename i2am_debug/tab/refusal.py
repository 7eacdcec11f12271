"""How the tab says no: a status and one sentence for a person."""

from __future__ import annotations

from ..errors import I2AMError


class Refusal(I2AMError):
    """What was asked for can't be had. The text names no path outside the logdir.

    `status`: 400 what was asked makes no sense, 403 not allowed, 404 not there or not readable, 405 not a GET, 422 a picture
    that can't be shown.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        return type(self), (self.status, str(self))
