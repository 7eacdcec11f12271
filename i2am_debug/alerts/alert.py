"""Findings → alerts: when to speak, and what to say. Pure; knows no model, no files, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..figures.declared import REFERENCE_GAP
from ..figures.record import Evaluation
from ..figures.registry import declaration_of
from ..figures.stored_form import entry, listed, mapped, optional, text, whole_number
from .causes import CAUSES, STALE
from .diagnosis import Diagnosis
from .judge import MOST_TO_BLAME, Finding, Judged
from .rule import SEVERITIES, Severity

_LOOK_FIRST = 3


@dataclass(frozen=True, kw_only=True)
class Alert:
    """Rules that newly fired at one evaluation, and all that fire with them."""

    global_step: int
    baseline_step: int
    fine_at: int | None
    """The last evaluation at which none of the rules fired; None where there is none."""
    findings: tuple[Finding, ...]
    diagnosis: Diagnosis | None = None
    """What broke, where that can be said."""
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
    def headline(self) -> str:
        """What happened, in one clause."""
        return headline(self.findings, self.diagnosis)

    @property
    def text(self) -> str:
        """What happened, since when, how sure, which pairs, what broke and where to look first; one a line, as Markdown."""
        fine = f"; fine at step {self.fine_at}" if self.fine_at is not None else "; never fine so far"
        lines = [
            f"{self.severity}: {self.headline} at step {self.global_step} (baseline: step {self.baseline_step}{fine})",
            "",
            *(f"- {line}" for line in what_broke(self.findings, self.diagnosis)),
            "",
            *(f"- {line}" for line in _by_figure(self.findings)),
            *(["", f"Validation pairs that show it most: {', '.join(self.pairs)}"] if self.pairs else []),
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain values for one line of JSON."""
        diagnosis = None if self.diagnosis is None else self.diagnosis.to_json()
        return {**asdict(self), "diagnosis": diagnosis, "severity": self.severity, "text": self.text}

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
            diagnosis=None if row.get("diagnosis") is None else Diagnosis.from_json(row["diagnosis"]),
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


def headline(fired: Sequence[Finding], diagnosis: Diagnosis | None = None) -> str:
    """What happened, in one clause."""
    if any(f.kind == "unchanged" for f in fired):
        return STALE.headline
    if all(f.kind == "undefined" for f in fired):
        most = any(f.severity == "critical" for f in fired)
        return "figures have no value any more" if most else "figures have no value any more for some pairs"
    if all(f.severity == "info" for f in fired):
        if any(f.figure == REFERENCE_GAP.tag for f in fired):
            return "it does better with a wrong reference than before, and with the right one too"
        return CAUSES["reordered"].headline
    if diagnosis is not None and diagnosis.headline is not None:
        return diagnosis.headline
    if any(f.kind == "collapse" and f.severity == "critical" for f in fired):
        return "the model no longer uses its reference"
    if all(f.kind == "collapse" for f in fired):
        return "the model does not use its reference"
    if all(f.kind in ("floor", "ceiling") for f in fired):
        return f"{fired[0].figure} is beyond its limit" if len(fired) == 1 else "figures are beyond their limits"
    if any(f.kind in ("drop", "drop_from_best", "floor") and _tells_of_use(f.figure) for f in fired):
        return "the model draws less on its reference"
    return "the figures are worse than allowed"


def can_be_diagnosed(fired: Iterable[Finding]) -> bool:
    """Whether something is worse than it was: a limit that was always passed, or a model that was broken before its baseline,
    shows in no change since."""
    return any(
        f.kind in ("drop", "drop_from_best") or (f.kind == "collapse" and f.severity == "critical") for f in fired
    )


def what_broke(fired: Sequence[Finding], diagnosis: Diagnosis | None) -> list[str]:
    """The likeliest kinds of fault, what that rests on, and where to look first; some lines."""
    if any(f.kind == "unchanged" for f in fired):
        return [f"Look first at: {STALE.first}", _page(STALE.name)]
    if diagnosis is None:
        return [f"Look first at: {look_first(fired)}"]
    first = [CAUSES[name].first for name, _ in diagnosis.likely if name in CAUSES][:_LOOK_FIRST] or [look_first(fired)]
    return [
        _by_likelihood(diagnosis),
        *(f"{'Look first at' if number == 0 else 'Then at'}: {text}" for number, text in enumerate(first)),
        f"It rests on: {'; '.join(diagnosis.evidence)}",
        _page(diagnosis.kind) if diagnosis.kind in CAUSES else "How each kind shows itself: docs/what-broke.md",
    ]


def _by_likelihood(diagnosis: Diagnosis) -> str:
    step = diagnosis.global_step
    if diagnosis.unlike_all:
        return (
            f"What broke is not known, as of step {step}: the figures changed like no fault that was measured, on two tiny "
            "models; in a model unlike them the same faults may show otherwise"
        )
    shares = ", ".join(f"{name} {_percent(share)}" for name, share in diagnosis.likely)
    return f"What broke, by likelihood, as of step {step}: {shares}"


def look_first(fired: Sequence[Finding]) -> str:
    """Where to look first when nothing is known but which rules fired."""
    if any(f.kind == "undefined" for f in fired):
        return "weights that are not finite (a learning rate too high, float16 without a loss scaler)"
    if any(f.kind == "collapse" for f in fired):
        return "a reference encoder that is not loaded, random or detached; references that are all alike"
    return "the pairs' panels beside the baseline's, then references, masks and targets as the loader gives them now"


def _percent(share: float) -> str:
    return "> 99%" if share > 0.99 else f"{share:.0%}"


def _page(name: str) -> str:
    return f"How to make sure, and the cure: docs/what-broke.md#{name}"


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
