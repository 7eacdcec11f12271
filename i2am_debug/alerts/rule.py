"""One thing that must not happen, and how severe it is: a frozen config. Knows no evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..figures.declaration import DeclaredFigure
from ..figures.margin import Margin, is_number
from ..figures.registry import default_margin, higher_is_worse

Severity = Literal["info", "warning", "critical"]
Kind = Literal["floor", "ceiling", "drop", "drop_from_best", "collapse", "undefined", "unchanged"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""From the least to the most severe."""
KINDS: tuple[Kind, ...] = get_args(Kind)

ANY_FIGURE = "*"
"""Of an undefined or unchanged rule: every figure that another rule looks at, and the loss."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One thing that must not happen.

    Raises:
        ValueError: an unknown kind, severity or direction, a `floor` or `ceiling` without its limit, a wrong margin.
    """

    name: str
    """Names it in alerts, verdicts and TOML."""
    kind: Kind
    """floor, ceiling: the mean is beyond `limit`.
    drop: the mean is worse than the baseline's by more than `margin`, and the paired sign-flip test says so too.
    drop_from_best: the same against the best three evaluations in a row before this one.
    collapse: no longer distinguishable from `nothing`.
    undefined: pairs that had a value have none any more.
    unchanged: every value of every pair is, to the last bit, that of the evaluation before."""
    figure: str
    """Tag of the figure it looks at, "copying_layer/…", or "*" for an undefined or unchanged rule."""
    severity: Severity = "warning"
    direction: Literal["down", "up"] | None = None
    """Which way is worse for drop, drop_from_best and collapse; by default as the figure's declaration says."""
    limit: float | None = None
    """Of floor and ceiling; of undefined: it fires for more than this share of the pairs, 0 for any pair."""
    margin: Margin | float | str | None = None
    """Of a drop: 0.03, or "10%" of the baseline. None: the baseline's calibrated margin, else the declared one."""
    margins: float = 1.0
    """Of a drop: so many margins, whichever margin it is."""
    nothing: float = 0.0
    """Of collapse: what the figure is where the reference is not used."""
    patience: int = 1
    """So many evaluations in a row."""

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name):
            raise ValueError(f"a rule's name must be a word, got {self.name!r}")
        known = {"kind": KINDS, "severity": SEVERITIES, "direction": ("down", "up", None)}
        for field, valid in known.items():
            if getattr(self, field) not in valid:
                expected = ", ".join(repr(v) for v in valid if v is not None)
                raise ValueError(f"rule {self.name!r}: {field}={getattr(self, field)!r}: expected one of {expected}")
        if not (isinstance(self.figure, str) and self.figure):
            raise ValueError(f"rule {self.name!r}: figure={self.figure!r}: expected a figure's tag, such as 'imacs_r'")
        if self.figure == ANY_FIGURE and self.kind not in ("undefined", "unchanged"):
            raise ValueError(
                f"rule {self.name!r}: figure='*' is for kind='undefined' and 'unchanged' only; name one figure"
            )
        if isinstance(self.patience, bool) or not isinstance(self.patience, int) or self.patience < 1:
            raise ValueError(f"rule {self.name!r}: patience={self.patience!r}: expected a whole number of at least 1")
        if self.kind in ("floor", "ceiling") and not is_number(self.limit):
            raise ValueError(
                f"rule {self.name!r}: a {self.kind} needs limit=, a number such as 0.1; got {self.limit!r}"
            )
        if self.limit is not None and self.kind in ("drop", "drop_from_best", "collapse", "unchanged"):
            raise ValueError(
                f"rule {self.name!r}: limit={self.limit!r} is for floor, ceiling and undefined, not for {self.kind}"
            )
        share = 0.0 if self.limit is None else self.limit
        if self.kind == "undefined" and not (is_number(share) and 0 <= share < 1):
            raise ValueError(f"rule {self.name!r}: limit={self.limit!r}: expected a share of the pairs, 0 to below 1")
        if self.kind == "unchanged" and self.figure != ANY_FIGURE:
            raise ValueError(f"rule {self.name!r}: an unchanged rule is of all figures together: figure='*'")
        if not is_number(self.nothing):
            raise ValueError(f"rule {self.name!r}: nothing={self.nothing!r}: expected a number")
        if not (is_number(self.margins) and self.margins > 0):
            raise ValueError(f"rule {self.name!r}: margins={self.margins!r}: expected a number above 0")
        of_a_drop = {"margin": (self.margin, None), "margins": (self.margins, 1.0)}
        for field, (given, default) in of_a_drop.items():
            if given != default and self.kind not in ("drop", "drop_from_best"):
                raise ValueError(
                    f"rule {self.name!r}: {field}={given!r} is for drop and drop_from_best, not for {self.kind}"
                )
        if self.margin is not None:
            try:
                object.__setattr__(self, "margin", Margin.parse(self.margin))
            except ValueError as error:
                raise ValueError(f"rule {self.name!r}: {error}") from None

    def higher_is_worse(self, declared: Mapping[str, DeclaredFigure] | None = None) -> bool:
        """By its direction, else by its figure's; `declared`: `Evaluation.declared` of the baseline."""
        return higher_is_worse(self.figure, declared) if self.direction is None else self.direction == "up"

    def margin_for(
        self, calibrated: Mapping[str, Any], declared: Mapping[str, DeclaredFigure] | None = None
    ) -> Margin | None:
        """So many times its own margin, else the calibrated one of its figure (`Evaluation.margins`), else the declared one,
        else None."""
        if self.margin is not None:
            one: Margin | None = Margin.parse(self.margin)
        elif self.figure in calibrated:
            one = Margin.parse(calibrated[self.figure])
        else:
            one = default_margin(self.figure, declared)
        return None if one is None else one.times(self.margins)


def at_least(severity: Severity, limit: Severity) -> bool:
    """Whether `severity` is as severe as `limit`, or more.

    Raises:
        ValueError: one of them is none of `SEVERITIES`.
    """
    for one in (severity, limit):
        if one not in SEVERITIES:
            raise ValueError(f"severity {one!r}: expected one of {', '.join(map(repr, SEVERITIES))}")
    return SEVERITIES.index(severity) >= SEVERITIES.index(limit)


def more_severe(one: Severity, other: Severity) -> Severity:
    """The more severe of two."""
    return max(one, other, key=SEVERITIES.index)
