"""Findings in which nothing is lost wake nobody: they become an info. Pure."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace

from ..figures.declaration import Need
from ..figures.declared import LOSS, REFERENCE_GAP
from ..figures.registry import declaration_of
from .default_rules import default_rules
from .finding import Finding
from .rules import Rules

_UNHARMED, _BETTER = 0.75, 0.25
"""Of its margin: worse by less is no harm; better by more is better."""


def calmed(found: tuple[Finding, ...], rules: Rules, calibrated: Container[str]) -> tuple[Finding, ...]:
    """Where it looks has changed, what it achieves has not: no more than an info.

    That are falls of attention figures while gap and loss are unharmed, and of the gap alone while the loss with the right
    reference got better, as in a new domain. Only of the default rules at their default margins: whoever writes a rule, or
    measures a margin, means it.
    """
    drops = [f for f in found if f.kind == "drop"]
    gap, loss = ([f for f in drops if f.figure == tag] for tag in (REFERENCE_GAP.tag, LOSS.tag))
    unharmed = _all_worse_by_less_than(_UNHARMED, loss) and _all_worse_by_less_than(_UNHARMED, gap)
    looks_elsewhere = any(f.fired and _is_of_attention(f.figure) for f in drops)
    better = _all_worse_by_less_than(-_BETTER, loss) and not looks_elsewhere
    defaults = default_rules()
    default = {rule.name for rule in rules.rules if rule in defaults}

    def nothing_is_lost(f: Finding) -> bool:
        of_attention = f.kind in ("drop", "drop_from_best", "collapse") and _is_of_attention(f.figure)
        of_the_gap = f.kind in ("drop", "drop_from_best") and f.figure == REFERENCE_GAP.tag and f.severity == "warning"
        return (of_attention and unharmed) or (of_the_gap and better)

    return tuple(
        replace(f, severity="info")
        if f.fired and f.rule in default and f.figure not in calibrated and nothing_is_lost(f)
        else f
        for f in found
    )


def _all_worse_by_less_than(share: float, drops: Sequence[Finding]) -> bool:
    """Whether there are some, all judged and worse by less than this share of what is allowed; below 0: better."""
    return bool(drops) and all(
        f.unjudged is None and f.change is not None and f.allowed is not None and f.change.mean < share * f.allowed
        for f in drops
    )


def _is_of_attention(figure: str) -> bool:
    declared = declaration_of(figure)
    return declared is not None and Need.LOSS not in declared.needs
