"""All rules of a run, and how sure they have to be: written in Python or read from TOML. Knows no evaluations."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..figures.margin import is_number
from ..figures.resampling import smallest_p
from .default_rules import default_rules
from .rule import Rule

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, kw_only=True)
class Rules:
    """All rules of a run, and how sure they have to be.

    Raises:
        ValueError: two rules have one name, or a value is out of range.
    """

    rules: tuple[Rule, ...] = field(default_factory=default_rules)
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
        if unknown and unknown[0] in {rule.name for rule in default_rules()}:
            raise ValueError(f"{unknown[0]}: to leave out this rule write enabled = false in a table of its name")
        if unknown:
            raise ValueError(f"{unknown[0]}: unknown; expected alpha, min_pairs, defaults or a table for a rule")
        defaults = options.pop("defaults", True)
        if not isinstance(defaults, bool):
            raise ValueError(f"defaults={defaults!r}: expected true or false")
        found = {rule.name: rule for rule in default_rules()} if defaults else {}
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


def _changed(name: str, known: Rule | None, own: Mapping[str, Any]) -> Rule | None:
    own = dict(own)
    enabled = own.pop("enabled", True)
    if not isinstance(enabled, bool):
        raise ValueError(f"rule {name!r}: enabled={enabled!r}: expected true or false")
    valid = [known.name for known in fields(Rule) if known.name != "name"]
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
        alike = get_close_matches(name, [rule.name for rule in default_rules()], n=1)
        meant = f"; did you mean {alike[0]!r}?" if alike else ""
        raise ValueError(f"rule {name!r}: not a default rule, so it needs {' and '.join(missing)}{meant}")
    return Rule(name=name, **own)
