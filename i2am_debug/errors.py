"""Everything this package raises on purpose. Each text names the thing, what was expected, and the cure."""

from __future__ import annotations


class I2AMError(Exception):
    """Parent of all errors of this package."""


class InvalidPair(I2AMError, ValueError):
    """A validation pair can't be used: a missing file, masks of another size, NaN pixels."""


class UnsupportedModel(I2AMError, ValueError):
    """No family knows where the reference sits in this model, or the model has no reference tokens at all."""


class CannotForce(I2AMError, RuntimeError):
    """A pipeline's own call can't be teacher-forced; the text says why."""


class NothingCaptured(I2AMError, RuntimeError):
    """A tracked attention module ran, but its attention product was never seen."""


class UndefinedFigure(I2AMError, ValueError):
    """A figure that has no value for this model or pair; `reason` says why in a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"undefined: {reason}")
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.reason,)


class NotComparable(I2AMError, ValueError):
    """Two evaluations differ in what their figures depend on; `differences` names each such thing, `cure` says what to do."""

    def __init__(self, differences: dict[str, tuple[object, object]], cure: str = "") -> None:
        listed = "; ".join(f"{name}: {ours!r} here, {theirs!r} there" for name, (ours, theirs) in differences.items())
        super().__init__(f"the two evaluations are not comparable, they differ in {listed}{cure}")
        self.differences, self.cure = differences, cure

    def __reduce__(self) -> tuple[type, tuple[dict[str, tuple[object, object]], str]]:
        return type(self), (self.differences, self.cure)


class IMACSRegression(I2AMError, RuntimeError):
    """An alert at least as severe as `fail_on` was raised; its text says which figures fell. `alert` is the `Alert`."""

    def __init__(self, text: str, alert: object = None) -> None:
        super().__init__(text)
        self.alert = alert

    def __reduce__(self) -> tuple[type, tuple[str, object]]:
        return type(self), (str(self), self.alert)


class ProcessFailed(I2AMError, RuntimeError):
    """Of the processes that train together another one failed, so that this one stopped too; the text says at what."""


class ProcessMissing(I2AMError, RuntimeError):
    """Not every process called the callback; nothing was done."""


class StoreError(I2AMError, ValueError):
    """A stored evaluation is missing, broken, or was written by a newer version."""


class TrainingChanged(I2AMError, RuntimeError):
    """An evaluation changed what is being trained and it can't be undone: to go on would train other weights than before.

    It ends the training whatever `on_error` says.
    """


class WrongSettings(I2AMError, ValueError):
    """A setting of the command line or of a config file is wrong; names it."""


class TrainingStopped(I2AMError, RuntimeError):
    """An alert at least as severe as `stop_on` ended an unmodified script, as its user asked for (`i2am-debug run`)."""


class NoRoom(I2AMError, OSError):
    """A disk has too little room for what is to be written and for the training's own files."""
