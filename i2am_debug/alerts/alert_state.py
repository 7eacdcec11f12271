"""When an alert is raised: once when a figure newly falls or gets more severe, not while it stays so. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..figures.record import Evaluation
from .alert import Alert, make_alert
from .finding import Finding, Judged
from .judge import findings
from .rule import Severity, more_severe
from .rules import Rules

_REARM = 3  # evaluations in a row without a finding, after which a figure may alert again


class AlertState:
    """Turns findings into alerts: one when a figure newly falls or gets more severe, none while it stays so."""

    def __init__(self, rules: Rules, alerting: Mapping[str, Sequence[Any]] | None = None) -> None:
        self.rules = rules
        self.alerting: dict[str, tuple[Severity, int]] = {
            figure: (severity, quiet) for figure, (severity, quiet) in (alerting or {}).items()
        }
        """What alerted → how severe it was, and evaluations in a row without it; forgotten after three."""
        self.fired: Sequence[Finding] = ()
        """What fires at the evaluation that was judged last, news or not."""

    def judge(self, baseline: Evaluation, history: Sequence[Judged]) -> Alert | None:
        """Judges the last evaluation of `history`; call it once an evaluation."""
        self.fired = fired = [f for f in findings(self.rules, baseline, history) if f.fired]
        worst: dict[str, Severity] = {}
        for finding in fired:
            # A pair that has lost its value must not keep silent about a later fall of the others.
            what = f"{finding.figure} undefined" if finding.kind == "undefined" else finding.figure
            worst[what] = more_severe(worst.get(what, "info"), finding.severity)
        news = [w for w, severity in worst.items() if _is_news(self.alerting.get(w), severity)]
        kept = {w: (severity, quiet + 1) for w, (severity, quiet) in self.alerting.items() if quiet + 1 < _REARM}
        told = {w: (more_severe(self.alerting.get(w, ("info", 0))[0], severity), 0) for w, severity in worst.items()}
        self.alerting = {**kept, **told}
        return make_alert(baseline, history, fired) if news else None


def _is_news(told: tuple[Severity, int] | None, severity: Severity) -> bool:
    return told is None or more_severe(told[0], severity) != told[0]
