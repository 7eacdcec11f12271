"""What counts as an alert: one frozen config, written in Python or read from TOML. Knows no evaluations.

The margins of the default rules are constants measured on the tiny model (`python -m benchmarks.alerts`): about three times
the largest fall of the six healthy fine-tunes they were set by, and 1.5 times or more that of twenty. Other models are
untested; `i2am-debug calibrate` measures a model's own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

from ..figures.margin import Margin, is_number
from ..figures.resampling import smallest_p
from ..figures.values import of_any_reference

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Severity = Literal["info", "warning", "critical"]
Kind = Literal["floor", "ceiling", "drop", "drop_from_best", "collapse", "undefined"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""From the least to the most severe."""
KINDS: tuple[Kind, ...] = get_args(Kind)

COPYING = "copying_layer/"
"""A figure that begins so is that of the baseline's copying layer: "copying_layer/imacs_r_hole"."""

RISING_IS_WORSE = ("loss", "drift/js_r2g", "drift/js_g2r")


DEFAULT_MARGINS: Mapping[str, Margin] = {
    "copying_layer/imacs_r_hole": Margin(value=0.15),
    "imacs_r_hole": Margin(value=0.15),
    "imacs_r": Margin(value=0.05),
    "imacs_g": Margin(value=0.05),
    "imacs_g_centred": Margin(value=0.15),
    "attention_information": Margin(value=0.10, relative=True),
    "reference_gap": Margin(value=0.20, relative=True),
    "loss": Margin(value=0.20, relative=True),
    # Not measured: the tiny model has neither.
    "reference_mass": Margin(value=0.25, relative=True),
    "branch_share": Margin(value=0.25, relative=True),
}
"""For a drop rule without a margin of its own and a baseline without a calibrated one."""


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
    undefined: pairs that had a value have none any more."""
    figure: str
    """Tag of the figure it looks at, "copying_layer/…", or "*" for an undefined rule."""
    severity: Severity = "warning"
    direction: Literal["down", "up"] | None = None
    """Which way is worse for drop, drop_from_best and collapse; by default up for losses and distances, else down."""
    limit: float | None = None
    """Of floor and ceiling; of undefined: it fires for more than this share of the pairs, 0 for any pair."""
    margin: Margin | float | str | None = None
    """Of a drop: 0.03, or "10%" of the baseline. None: the baseline's calibrated margin, else the default one."""
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
        if self.figure == ANY_FIGURE and self.kind != "undefined":
            raise ValueError(f"rule {self.name!r}: figure='*' is for kind='undefined' only; name one figure")
        if isinstance(self.patience, bool) or not isinstance(self.patience, int) or self.patience < 1:
            raise ValueError(f"rule {self.name!r}: patience={self.patience!r}: expected a whole number of at least 1")
        if self.kind in ("floor", "ceiling") and not is_number(self.limit):
            raise ValueError(
                f"rule {self.name!r}: a {self.kind} needs limit=, a number such as 0.1; got {self.limit!r}"
            )
        if self.limit is not None and self.kind in ("drop", "drop_from_best", "collapse"):
            raise ValueError(
                f"rule {self.name!r}: limit={self.limit!r} is for floor, ceiling and undefined, not for {self.kind}"
            )
        share = 0.0 if self.limit is None else self.limit
        if self.kind == "undefined" and not (is_number(share) and 0 <= share < 1):
            raise ValueError(f"rule {self.name!r}: limit={self.limit!r}: expected a share of the pairs, 0 to below 1")
        if not is_number(self.nothing):
            raise ValueError(f"rule {self.name!r}: nothing={self.nothing!r}: expected a number")
        if self.margin is not None:
            if self.kind not in ("drop", "drop_from_best"):
                raise ValueError(
                    f"rule {self.name!r}: margin={self.margin!r} is for drop and drop_from_best, not for {self.kind}"
                )
            try:
                object.__setattr__(self, "margin", Margin.parse(self.margin))
            except ValueError as error:
                raise ValueError(f"rule {self.name!r}: {error}") from None

    @property
    def higher_is_worse(self) -> bool:
        """By its direction, else by its figure."""
        return of_any_reference(self.figure) in RISING_IS_WORSE if self.direction is None else self.direction == "up"

    def margin_for(self, calibrated: Mapping[str, Any]) -> Margin | None:
        """Its own margin, else the calibrated one of its figure, else the default one, else None."""
        if self.margin is not None:
            return Margin.parse(self.margin)
        if self.figure in calibrated:
            return Margin.parse(calibrated[self.figure])
        return DEFAULT_MARGINS.get(of_any_reference(self.figure))


ANY_FIGURE = "*"
"""Of an undefined rule: every figure that another rule looks at, and the loss."""

_WATCHED = {
    "copying-layer": "copying_layer/imacs_r_hole",
    "imacs-g": "imacs_g_centred",
    "information": "attention_information",
    "gap": "reference_gap",
    "mass": "reference_mass",
    "branch": "branch_share",
}

DEFAULT_RULES: tuple[Rule, ...] = (
    *(Rule(name=f"{name}-drop", kind="drop", figure=figure) for name, figure in _WATCHED.items()),
    *(Rule(name=f"{name}-below-best", kind="drop_from_best", figure=figure) for name, figure in _WATCHED.items()),
    Rule(name="loss-rise", kind="drop", figure="loss"),
    Rule(name="loss-above-best", kind="drop_from_best", figure="loss"),
    Rule(name="gap-halved", kind="drop", figure="reference_gap", margin="50%", severity="critical"),
    Rule(name="gap-collapse", kind="collapse", figure="reference_gap", severity="critical"),
    # In bits: random attention weights have 0.3 to 0.7 in the tiny model.
    Rule(
        name="information-collapse",
        kind="collapse",
        figure="attention_information",
        severity="critical",
        nothing=0.1,
    ),
    Rule(name="undefined", kind="undefined", figure=ANY_FIGURE),
    Rule(name="undefined-for-most", kind="undefined", figure=ANY_FIGURE, limit=0.5, severity="critical"),
)
"""By name: what they look at falls below the baseline, or below the run's best; or nothing is left of it."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """All rules of a run, and how sure they have to be.

    Raises:
        ValueError: two rules have one name, or a value is out of range.
    """

    rules: tuple[Rule, ...] = DEFAULT_RULES
    alpha: float = 0.05
    """A drop or collapse counts only if its one-sided paired sign-flip test has p below this."""
    min_pairs: int = 8
    """With fewer pairs the test is too weak, and drops are judged by margin alone; so it is where the test could never
    come out below `alpha`, whose smallest p is 2^-pairs."""

    def __post_init__(self) -> None:
        if not isinstance(self.rules, (list, tuple)):
            raise ValueError(f"Rules(rules=…): expected Rule objects, got a {type(self.rules).__name__}")
        object.__setattr__(self, "rules", tuple(self.rules))
        for rule in self.rules:
            if not isinstance(rule, Rule):
                raise ValueError(f"Rules(rules=…): expected Rule objects, got a {type(rule).__name__}")
        names = [rule.name for rule in self.rules]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"two rules are named {twice[0]!r}; give each a name of its own")
        if not (is_number(self.alpha) and 0 < self.alpha < 1):
            raise ValueError(f"alpha={self.alpha!r}: expected a number between 0 and 1, such as 0.05")
        if isinstance(self.min_pairs, bool) or not isinstance(self.min_pairs, int) or self.min_pairs < 2:
            raise ValueError(f"min_pairs={self.min_pairs!r}: expected a whole number of at least 2")

    @classmethod
    def from_toml(cls, path: str | Path) -> Rules:
        """The default rules, changed by `[i2am.rules]` (or `[tool.i2am.rules]`) of a TOML file.

        `alpha`, `min_pairs` and `defaults` (false: without the default rules) stand in the table itself; each table in it
        is a rule by its name, new or a default one to change; `enabled = false` drops it.

        Raises:
            ValueError: no such file or table, not TOML, an unknown key or a wrong value; names the file and the key.
        """
        try:
            tree = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"the rules {path} can't be read: {error.strerror}") from None
        except (
            ValueError,
            RecursionError,
        ) as error:  # TOMLDecodeError, UnicodeDecodeError, and what Python itself refuses
            raise ValueError(f"{path} is not TOML: {error}") from None
        for name, outer in (("i2am.rules", tree), ("tool.i2am.rules", tree.get("tool"))):
            inner = outer.get("i2am") if isinstance(outer, dict) else None
            found = inner.get("rules") if isinstance(inner, dict) else None
            if isinstance(found, dict):
                try:
                    return cls.from_table(found)
                except ValueError as error:
                    raise ValueError(f"{path}: [{name}]: {error}") from None
        raise ValueError(f"{path} has no table [i2am.rules]")

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Rules:
        """As `from_toml`, of the table itself."""
        if not isinstance(table, Mapping):
            raise ValueError(f"expected a table, got a {type(table).__name__}")
        options = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
        unknown = sorted(set(options) - {"alpha", "min_pairs", "defaults"})
        if unknown and unknown[0] in {rule.name for rule in DEFAULT_RULES}:
            raise ValueError(f"{unknown[0]}: to leave out this rule write enabled = false in a table of its name")
        if unknown:
            raise ValueError(f"{unknown[0]}: unknown; expected alpha, min_pairs, defaults or a table for a rule")
        defaults = options.pop("defaults", True)
        if not isinstance(defaults, bool):
            raise ValueError(f"defaults={defaults!r}: expected true or false")
        found = {rule.name: rule for rule in DEFAULT_RULES} if defaults else {}
        for name, own in table.items():
            if isinstance(own, Mapping):
                changed = _changed(name, found.get(name), own)
                if changed is None:
                    found.pop(name, None)
                else:
                    found[name] = changed
        return cls(rules=tuple(found.values()), **options)

    def asking_for(self, *, max_drop: Mapping[str, Any], fail_under: Mapping[str, Any]) -> tuple[Rules, list[str]]:
        """With a drop rule for each figure of `max_drop` (figure → margin), which takes the place of all drop rules on
        that figure, and a floor for each of `fail_under` (figure → limit); and the names of these rules.

        Raises:
            ValueError: a wrong margin or limit; names it.
        """
        kept = tuple(r for r in self.rules if not (r.kind in ("drop", "drop_from_best") and r.figure in max_drop))
        own = [
            *(Rule(name=f"max-drop {f}", kind="drop", figure=f, margin=m) for f, m in max_drop.items()),
            *(Rule(name=f"fail-under {f}", kind="floor", figure=f, limit=v) for f, v in fail_under.items()),
        ]
        return replace(self, rules=(*kept, *own)), [rule.name for rule in own]

    def can_test(self, pairs: int) -> bool:
        """Whether a sign-flip test of so many pairs could come out below `alpha`."""
        return pairs >= self.min_pairs and smallest_p(pairs) < self.alpha

    def too_few(self, pairs: int) -> str:
        """Why not, in words."""
        if pairs < self.min_pairs:
            return f"{pairs} pairs, at least {self.min_pairs} are needed"
        return f"{pairs} pairs, whose smallest p is {smallest_p(pairs):.2g}: never below alpha = {self.alpha:g}"

    def with_rule(self, rule: Rule) -> Rules:
        """With one rule more, or in place of the one of its name."""
        if not isinstance(rule, Rule):
            raise ValueError(f"with_rule: expected a Rule, got a {type(rule).__name__}")
        return replace(self, rules=(*(r for r in self.rules if r.name != rule.name), rule))


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


def _changed(name: str, known: Rule | None, own: Mapping[str, Any]) -> Rule | None:
    own = dict(own)
    enabled = own.pop("enabled", True)
    if not isinstance(enabled, bool):
        raise ValueError(f"rule {name!r}: enabled={enabled!r}: expected true or false")
    valid = [field.name for field in fields(Rule) if field.name != "name"]
    unknown = sorted(set(own) - set(valid))
    if unknown:
        raise ValueError(f"rule {name!r}: {unknown[0]}: unknown; expected {', '.join(valid)} or enabled")
    if not enabled:
        if known is None:
            raise ValueError(f"rule {name!r}: enabled=false, but there is no default rule of that name")
        return None
    if known is not None:
        return replace(known, **own)
    missing = [key for key in ("kind", "figure") if key not in own]
    if missing:
        alike = get_close_matches(name, [rule.name for rule in DEFAULT_RULES], n=1)
        meant = f"; did you mean {alike[0]!r}?" if alike else ""
        raise ValueError(f"rule {name!r}: not a default rule, so it needs {' and '.join(missing)}{meant}")
    return Rule(name=name, **own)
