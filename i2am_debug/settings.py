"""What a run under watch is told: every setting once, checked when it is made. Knows no training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
from .evaluation.spacing import Budget, EveryNSteps, Spacing, WhenAsked
from .evaluation.truth import Encode
from .evaluation.ways import WAYS, WayName
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
    every_n_steps: int | Literal["asked"] | None = None
    """How often, in global (optimizer) steps; this or `budget`. "asked": at the beginning, the end and `on_validation`."""
    budget: float | None = None
    """In place of `every_n_steps`: the share of the run's time that evaluations may take, such as 0.02; they are spaced from
    what the last ones took."""
    plan: CapturePlan = field(default_factory=CapturePlan)
    """Which layers, heads and sampler steps."""
    loss_fn: LossFunction | None = None
    """Your own loss of a pair (`loss_function.LossFunction`), where you want the figures to be of that one."""
    way: WayName | None = None
    """How the pairs are looked at: "loss_fn", "teacher_forcing" (the pipeline's own call on the noised truth) or "sampling". By
    default by the `loss_fn` if there is one, else by teacher forcing, and where a pipeline's call does not allow that, by
    sampling; the log says which, and why."""
    encode: Encode | None = None
    """`encode(pipeline, pair)` → (1, …), the pair's target as latents of the pipeline; teacher forcing needs it only where the
    pipeline neither edits its picture nor has a plain VAE."""
    call: PipelineCall | None = None
    """`call(pipeline, pair, generator)` → output; by default as the pipeline's class wants it."""
    size: tuple[int, int] | None = None
    """(width, height) of the pictures of an evaluation; by default each target's own, rounded to what the model takes."""
    baseline: str | Path | None = None
    """A stored evaluation (`step_….safetensors`, or a file of `i2am-debug baseline save`) to compare with, whose heads are
    looked at; default: this run's first."""
    rules: Rules = field(default_factory=Rules)
    """What counts as an alert; `Rules.from_toml(path)` reads them from a file."""
    on_alert: Callable[[Alert], Any] | None = None
    """Called with each alert on the main process, before the step goes on; what it raises ends the training. The alert's panels
    are not drawn yet then, unless `synchronous`; their place is `alerts/step_…/` beside `alerts.jsonl`."""
    stop_on: Severity | None = "critical"
    """Alerts as severe as this, or more, make `should_stop` true; None for none."""
    fail_on: Severity | None = None
    """Alerts as severe as this, or more, raise `IMACSRegression` on every process; None for none."""
    on_error: Literal["warn", "raise"] = "warn"
    """"warn": a failed evaluation is a warning in the log; "raise": it ends the training."""
    family: Family | None = None
    """Where the reference sits in the model; found from the model by default."""
    kept_threshold: float | None = None
    """Where |target − reference| lies below it, an edit keeps the picture; by default Otsu's, for pipelines that edit their
    reference and pairs without a mask."""
    imacs: IMACSSettings = field(default_factory=IMACSSettings)
    """How the score is formed."""
    num_inference_steps: int | None = None
    """Of each sampling; None for the pipeline's own default."""
    batch_size: int = 1
    """Pairs in one forward, of `loss_fn` or of a pipeline that takes several at once."""
    pictures: int = 4
    """For how many pairs the strips are drawn and a picture is made: by teacher forcing the prediction from much noise, which
    costs a decoding, with a `loss_fn` a whole sampling."""
    panels: int = 16
    """For how many pairs a panel is drawn; an alert draws those of the pairs most to blame in any case."""
    keep_matrices: int = 20
    """How many evaluations keep their specific-reference rows on disk, besides baseline, best and alerted."""
    seed: int = 0
    """Of the noise and all draws."""
    disable_progress_bar: bool = False
    synchronous: bool = False
    """Whether an evaluation is packed, written and drawn before the step goes on, rather than by a thread of its own: for
    tests, and scripts that read at once what was written."""

    def __post_init__(self) -> None:
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if name == "every_n_steps" and (value == "asked" or (value is None and self.budget is not None)):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                other = ", or budget= in its place" if name == "every_n_steps" else ""
                raise ValueError(f"{name}={value!r}: expected a whole number of at least {least}{other}")
        if self.budget is not None and self.every_n_steps is not None:
            raise ValueError("every_n_steps= and budget= say the same in two ways; give one of them")
        if self.budget is not None and not (isinstance(self.budget, (int, float)) and 0 < self.budget < 1):
            raise ValueError(
                f"budget={self.budget!r}: expected a share of the run's time between 0 and 1, such as 0.02"
            )
        if self.on_error not in ("warn", "raise"):
            raise ValueError(f'on_error={self.on_error!r}: expected "warn" or "raise"')
        if not isinstance(self.synchronous, bool):
            raise ValueError(f"synchronous={self.synchronous!r}: expected True or False")
        if self.way not in (*WAYS, None):
            raise ValueError(f"way={self.way!r}: expected {', '.join(map(repr, WAYS))} or None")
        if self.way == "loss_fn" and self.loss_fn is None:
            raise ValueError('way="loss_fn" needs a loss_fn=')
        if self.size is not None and not _is_size(self.size):
            raise ValueError(f"size={self.size!r}: expected (width, height) in pixels, such as (512, 512)")
        if self.kept_threshold is not None and not (
            isinstance(self.kept_threshold, (int, float)) and 0 < self.kept_threshold < 1
        ):
            raise ValueError(f"kept_threshold={self.kept_threshold!r}: expected a number between 0 and 1, or None")
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
        refuse_unknown(asked_by, given, [one.name for one in fields(cls)])
        return cls(**given)

    def spacing(self) -> Spacing:
        """Where in the run the evaluations lie."""
        if self.every_n_steps == "asked":
            return WhenAsked()
        return (
            Budget(self.budget) if self.every_n_steps is None and self.budget else EveryNSteps(self.every_n_steps or 1)
        )

    def evaluator(self) -> Evaluator:
        """What looks at the pairs as these settings say."""
        return Evaluator(
            pairs=self.pairs,
            plan=self.plan,
            family=self.family,
            call=self.call,
            loss_fn=self.loss_fn,
            way=self.way,
            encode=self.encode,
            size=self.size,
            kept_threshold=self.kept_threshold,
            imacs=self.imacs,
            num_inference_steps=self.num_inference_steps,
            batch_size=self.batch_size,
            pictures=self.pictures,
            seed=self.seed,
        )


def refuse_unknown(asked_by: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raises:
    TypeError: a name is none of those known; says which was probably meant.
    """
    for name in given:
        if name not in known:
            alike = get_close_matches(name, known, n=1)
            meant = f"did you mean {alike[0]!r}?" if alike else f"it has {', '.join(known)}"
            raise TypeError(f"{asked_by} has no setting {name!r}; {meant}")


def _is_size(value: Any) -> bool:
    return (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in value)
    )
