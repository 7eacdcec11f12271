"""What a run under watch is told: every setting once, checked when it is made. Knows no training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from .alerts.alert import Alert
from .alerts.rule import SEVERITIES, Severity
from .alerts.rules import Rules
from .capture.plan import CapturePlan
from .evaluation.calls import PipelineCall
from .evaluation.evaluator import Evaluator
from .evaluation.loss_function import LossFunction
from .families.family import Family
from .figures.scores import IMACSSettings
from .pairs.collection import ValidationPairs

_AT_LEAST = {"every_n_steps": 1, "batch_size": 1, "keep_matrices": 1, "pictures": 0, "panels": 0}


@dataclass(frozen=True, kw_only=True)
class MonitorSettings:
    """What is looked at, how often, what counts as an alert, and what is written.

    Raises:
        ValueError: a value is out of range; names it.
        InvalidPair: `pairs` holds something else than pairs.
    """

    pairs: ValidationPairs
    """What to look at, or a list of pairs; 8 or more make a drop distinguishable from noise."""
    every_n_steps: int
    """How often, in global (optimizer) steps."""
    plan: CapturePlan = field(default_factory=CapturePlan)
    """Which layers, heads and sampler steps."""
    loss_fn: LossFunction | None = None
    """The teacher-forced way (`loss_function.LossFunction`): figures from a few noised-truth forwards instead of a whole
    sampling, and the reference gap. Without it every pair is sampled."""
    call: PipelineCall | None = None
    """`call(pipeline, pair, generator)` → output; by default as the pipeline's class wants it."""
    baseline: str | Path | None = None
    """A stored evaluation (`step_….safetensors`, or a file of `i2am-debug baseline save`) to compare with; default: this
    run's first."""
    rules: Rules = field(default_factory=Rules)
    """What counts as an alert; `Rules.from_toml(path)` reads them from a file."""
    on_alert: Callable[[Alert], Any] | None = None
    """Called with each alert on the main process; what it raises ends the training."""
    stop_on: Severity | None = "critical"
    """Alerts as severe as this, or more, make `should_stop` true; None for none."""
    fail_on: Severity | None = None
    """Alerts as severe as this, or more, raise `IMACSRegression` on every process; None for none."""
    on_error: Literal["warn", "raise"] = "warn"
    """"warn": a failed evaluation is a warning in the log; "raise": it ends the training."""
    family: Family | None = None
    """Where the reference sits in the model; found from the model by default."""
    imacs: IMACSSettings = field(default_factory=IMACSSettings)
    """How the score is formed."""
    num_inference_steps: int | None = None
    """Of each sampling; None for the pipeline's own default."""
    batch_size: int = 1
    """Pairs in one forward of `loss_fn`."""
    pictures: int = 4
    """For how many pairs the strips are drawn and, with a `loss_fn`, a picture is sampled."""
    panels: int = 16
    """For how many pairs a panel is drawn; an alert draws those of the pairs most to blame in any case."""
    keep_matrices: int = 20
    """How many evaluations keep their specific-reference rows on disk, besides baseline, best and alerted."""
    seed: int = 0
    """Of the noise and all draws."""
    disable_progress_bar: bool = False

    def __post_init__(self) -> None:
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}={value!r}: expected a whole number of at least {least}")
        if self.on_error not in ("warn", "raise"):
            raise ValueError(f'on_error={self.on_error!r}: expected "warn" or "raise"')
        for name in ("stop_on", "fail_on"):
            if getattr(self, name) not in (*SEVERITIES, None):
                expected = ", ".join(map(repr, SEVERITIES))
                raise ValueError(f"{name}={getattr(self, name)!r}: expected {expected} or None")
        for name, kind in (("plan", CapturePlan), ("imacs", IMACSSettings), ("rules", Rules)):
            if getattr(self, name) is None:  # as good as not given
                object.__setattr__(self, name, kind())
            elif not isinstance(getattr(self, name), kind):
                hint = ", or Rules.from_toml(path)" if kind is Rules else ""
                raise ValueError(f"{name}={getattr(self, name)!r}: expected {kind.__name__}{hint}")
        if not isinstance(self.pairs, ValidationPairs):
            object.__setattr__(self, "pairs", ValidationPairs(self.pairs))

    @classmethod
    def of(cls, asked_by: str, **given: Any) -> MonitorSettings:
        """The settings given by name, as somebody asked for them.

        Raises:
            TypeError: there is no such setting; says which was probably meant.
            ValueError, InvalidPair: as of the class.
        """
        known = [one.name for one in fields(cls)]
        for name in given:
            if name not in known:
                alike = get_close_matches(name, known, n=1)
                meant = f"did you mean {alike[0]!r}?" if alike else f"it has {', '.join(known)}"
                raise TypeError(f"{asked_by} has no setting {name!r}; {meant}")
        return cls(**given)

    def evaluator(self) -> Evaluator:
        """What looks at the pairs as these settings say."""
        return Evaluator(
            pairs=self.pairs,
            plan=self.plan,
            family=self.family,
            call=self.call,
            loss_fn=self.loss_fn,
            imacs=self.imacs,
            num_inference_steps=self.num_inference_steps,
            batch_size=self.batch_size,
            pictures=self.pictures,
            seed=self.seed,
        )
