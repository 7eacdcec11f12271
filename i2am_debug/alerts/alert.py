"""Findings → alerts: when to speak, and what to say. Pure; knows no model, no files, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..figures.declared import ATTENTION_INFORMATION, REFERENCE_GAP
from ..figures.record import Evaluation
from ..figures.registry import declaration_of
from ..figures.stored_form import entry, listed, mapped, optional, text, whole_number
from .judge import MOST_TO_BLAME, Finding, Judged
from .rule import SEVERITIES, Severity


@dataclass(frozen=True, kw_only=True)
class Alert:
    """Rules that newly fired at one evaluation, and all that fire with them."""

    global_step: int
    baseline_step: int
    fine_at: int | None
    """The last evaluation at which none of the rules fired; None where there is none."""
    findings: tuple[Finding, ...]
    panels: Mapping[str, str] = field(default_factory=dict)
    """Pair → file of its panel, relative to the run's plugin folder."""

    @property
    def severity(self) -> Severity:
        """The most severe finding's."""
        return max((f.severity for f in self.findings), key=SEVERITIES.index)

    @property
    def pairs(self) -> tuple[str, ...]:
        """The pairs most to blame over all findings, most often named first."""
        named = [pair for finding in self.findings for pair in finding.pairs]
        return tuple(sorted(dict.fromkeys(named), key=lambda pair: -named.count(pair)))[:MOST_TO_BLAME]

    @property
    def text(self) -> str:
        """What happened, since when, how sure, which pairs, and what is usually the cause; one a line, as Markdown."""
        fine = f"; fine at step {self.fine_at}" if self.fine_at is not None else "; never fine so far"
        lines = [
            f"{self.severity}: {headline(self.findings)} at step {self.global_step} "
            f"(baseline: step {self.baseline_step}{fine})",
            "",
            *(f"- {line}" for line in _by_figure(self.findings)),
            "",
            *([f"Pairs most to blame: {', '.join(self.pairs)}", ""] if self.pairs else []),
            f"Usual causes: {usual_causes(self.findings)}",
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain values for one line of JSON."""
        return {**asdict(self), "severity": self.severity, "text": self.text}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Alert:
        """The inverse of `to_json`.

        Raises:
            ValueError: it has another form; names the place.
        """
        findings = entry(row, "findings", listed(Finding.from_json))
        if not findings:
            raise ValueError("findings is empty; an alert has at least one")
        return cls(
            global_step=entry(row, "global_step", whole_number),
            baseline_step=entry(row, "baseline_step", whole_number),
            fine_at=entry(row, "fine_at", optional(whole_number)),
            findings=findings,
            panels=entry(row, "panels", mapped(text)),
        )


def make_alert(baseline: Evaluation, history: Sequence[Judged], fired: Iterable[Finding]) -> Alert:
    """The alert of the last evaluation of `history` with these findings."""
    fired = tuple(fired)
    now = history[-1].global_step
    first = min((f.since for f in fired if f.since is not None), default=now)
    earlier = [step for step in (baseline.global_step, *(seen.global_step for seen in history)) if step < first]
    return Alert(
        global_step=now,
        baseline_step=baseline.global_step,
        fine_at=max(earlier, default=None),
        findings=fired,
    )


def headline(fired: Sequence[Finding]) -> str:
    """What happened, in one clause."""
    if all(f.kind == "undefined" for f in fired):
        most = any(f.severity == "critical" for f in fired)
        return "figures have no value any more" if most else "figures have no value any more for some pairs"
    if any(f.kind == "collapse" and f.severity == "critical" for f in fired):
        return "the model no longer uses its reference"
    if all(f.kind == "collapse" for f in fired):
        return "the model does not use its reference"
    if all(f.kind in ("floor", "ceiling") for f in fired):
        return f"{fired[0].figure} is beyond its limit" if len(fired) == 1 else "figures are beyond their limits"
    if any(f.kind in ("drop", "drop_from_best", "floor") and _tells_of_use(f.figure) for f in fired):
        return "the model draws less on its reference"
    return "the figures are worse than allowed"


def usual_causes(fired: Sequence[Finding]) -> str:
    """What to look at first, by which figures fell."""
    figures = {f.figure for f in fired if f.kind != "undefined"}
    causes = []
    if any(f.kind == "undefined" for f in fired):
        causes.append("weights that are not finite (a learning rate too high, float16 without a loss scaler)")
    if any(f.kind == "collapse" for f in fired):
        causes.append("a reference encoder that is not loaded, random or detached; references that are all alike")
    elif figures & {REFERENCE_GAP.tag, ATTENTION_INFORMATION.tag}:
        causes.append(
            "references that no longer belong to their targets (shuffled, mirrored, other colours or normalisation), zeroed or "
            "dropped too often; masks that do not fit; a learning rate too high"
        )
    if figures == {REFERENCE_GAP.tag}:
        causes.append("the gap alone fell: look first at what is in the references")
    if not causes:
        causes.append(
            "references or masks that do not fit their targets; compare the pairs' panels with the baseline's"
        )
    return "; ".join(causes) + "."


def _tells_of_use(figure: str) -> bool:
    """Whether its fall says that the reference is used less; of an unknown figure nothing is claimed."""
    declared = declaration_of(figure)
    return declared is not None and declared.tells_of_use


def _by_figure(fired: Sequence[Finding]) -> list[str]:
    """One clause a figure: of its most telling finding, and the names of the other rules that fired for it."""
    telling = ("unchanged", "undefined", "collapse", "drop", "drop_from_best", "floor", "ceiling")
    out = []
    for figure in dict.fromkeys(f.figure for f in fired):
        own = sorted((f for f in fired if f.figure == figure), key=lambda f: telling.index(f.kind))
        also = f" [rules {', '.join(f.rule for f in own)}]" if len(own) > 1 else f" [rule {own[0].rule}]"
        out.append(f"{own[0]}{also}")
    return out
