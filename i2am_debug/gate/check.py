"""The CI verdict: one evaluation of a run against a stored baseline. Needs no torch and no GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from ..alerts.alert import can_be_diagnosed, what_broke
from ..alerts.default_rules import default_rules
from ..alerts.diagnosis import Diagnosis, diagnose
from ..alerts.judge import Finding, Judged, findings, refuse_idle_rules
from ..alerts.rule import Rule, Severity, at_least
from ..alerts.rules import Rules
from ..errors import StoreError, UndefinedFigure
from ..figures.declaration import COPYING_LAYER
from ..figures.declared import JS_G2R, JS_R2G
from ..figures.distances import js_distance
from ..figures.record import Evaluation, differences, in_words
from ..figures.registry import of_copying_layer
from ..figures.values import Figure, Undefined, of_any_reference
from ..store.evaluation_file import read_evaluation
from ..store.find_run import find_evaluations, find_store
from .exit_codes import ExitCode

Status = Literal["pass", "regression", "not comparable"]

_EXIT_CODES: Mapping[Status, ExitCode] = {
    "pass": ExitCode.OK,
    "regression": ExitCode.FAILED,
    "not comparable": ExitCode.NOT_COMPARABLE,
}
_DISTANCES = {JS_R2G.tag: "r2g", JS_G2R.tag: "g2r"}
"""Figure → the map whose distance to the baseline's it is."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What `check` found."""

    status: Status
    evaluation: Evaluation | None
    """The one judged; None where there is none."""
    evaluation_file: Path | None
    baseline: Evaluation | None
    baseline_file: Path
    findings: tuple[Finding, ...] = ()
    """One a rule, also those that did not fire or could not be judged."""
    problems: tuple[str, ...] = ()
    """Why it is not comparable, or not wholly."""
    pairs: Mapping[str, tuple[str, ...]] | None = None
    """Pair → what is worse about it than allowed; only pairs for which something is, worst first."""
    diagnosis: Diagnosis | None = None
    """What broke, where something is worse than it was."""
    fail_on: Severity = "warning"

    @property
    def exit_code(self) -> ExitCode:
        return _EXIT_CODES[self.status]

    @property
    def regressions(self) -> tuple[Finding, ...]:
        """The findings that make it fail."""
        return tuple(f for f in self.findings if is_regression(f, self.fail_on))

    @property
    def what_broke(self) -> list[str]:
        """Where to look first, and what is known of the cause, in some lines; none of a pass."""
        return what_broke(self.regressions, self.diagnosis) if self.regressions else []

    @property
    def headline(self) -> str:
        """One line."""
        if self.evaluation is None or self.baseline is None:
            return f"{self.status}: {self.problems[0]}"
        milder = len([f for f in self.findings if f.fired])
        rest = f"; {milder} findings less severe than {self.fail_on}" if milder else ""
        what = {
            "pass": f"nothing is worse than allowed{rest}",
            "regression": f"worse than allowed: {', '.join(dict.fromkeys(f.figure for f in self.regressions))}",
            "not comparable": self.problems[0] if self.problems else "",
        }[self.status]
        return f"{self.status}: step {self.evaluation.global_step} against step {self.baseline.global_step}: {what}"


def check(
    target: str | Path | Evaluation,
    baseline: str | Path,
    *,
    rules: Rules | None = None,
    asked_for: Iterable[str] = (),
    step: int | None = None,
    fail_on: Severity = "warning",
) -> Verdict:
    """Judges an evaluation against a baseline.

    Args:
        target: a run's folder (its last evaluation, or that at `step`), an evaluation's file, or an `Evaluation`.
        baseline: a file of `i2am-debug baseline save`, or any evaluation's file.
        rules: default: `Rules()`.
        asked_for: names of rules that must be judged; not being able to is then a problem, not a remark.
        fail_on: findings less severe than this are shown and don't fail.

    Raises:
        ValueError: there is no such run or step, the folder holds several runs, or a rule's figure does not exist.
    """
    rules = rules or Rules()
    baseline = Path(baseline)
    verdict = Verdict(
        status="not comparable",
        evaluation=None,
        evaluation_file=None,
        baseline=None,
        baseline_file=baseline,
        fail_on=fail_on,
    )
    try:
        found = _Target.find(target, step)
        verdict = replace(verdict, evaluation=found.evaluation, evaluation_file=found.path)
        if baseline.is_dir():
            raise StoreError(f"the baseline {baseline} is a folder; expected a file of: i2am-debug baseline save")
        if not baseline.is_file():
            raise StoreError(
                f"there is no baseline {baseline}; make one with: i2am-debug baseline save RUN -o {baseline}"
            )
        base, base_maps = read_evaluation(baseline)
        verdict = replace(verdict, baseline=base)
        unlike = differences(found.evaluation, base)
        if unlike:
            raise StoreError(f"the evaluation and the baseline differ in {in_words(unlike)}")
        refuse_idle_rules(rules, base)
        if not rules.can_test(len(base.pairs)):
            raise StoreError(f"{rules.too_few(len(base.pairs))} (--min-pairs, --alpha)")
        history = [_Rebased(seen, path, base_maps) for seen, path in found.history]
        every = findings(rules, base, history)
        defaults = default_rules()
        asked = {*asked_for, *(rule.name for rule in rules.rules if rule not in defaults)}
        problems = tuple(_problems(every, rules, asked, base, found.evaluation, history[-1]))
        failing = [f for f in every if is_regression(f, fail_on)]
        return replace(
            verdict,
            status="regression" if failing else "not comparable" if problems else "pass",
            findings=every,
            problems=problems,
            pairs=_to_blame(base, history[-1], failing, {rule.name: rule for rule in rules.rules}),
            diagnosis=diagnose(base, history[-1]) if can_be_diagnosed(failing) else None,
        )
    except StoreError as error:
        return replace(verdict, problems=(str(error),))


def is_regression(finding: Finding, fail_on: Severity) -> bool:
    """Whether it makes a verdict fail. A figure without a value is no regression: nothing is known of it."""
    return finding.fired and finding.kind != "undefined" and at_least(finding.severity, fail_on)


def _problems(
    every: Sequence[Finding], rules: Rules, asked_for: set[str], base: Evaluation, own: Evaluation, now: Judged
) -> Iterable[str]:
    lost = {f.figure: f.words for f in every if f.fired and f.kind == "undefined"}
    yield from (f"{figure} {words}" for figure, words in lost.items())
    for figure, rules_on_it in _without_a_baseline(every, base, own, now).items():
        lost[figure] = ""
        reasons = "; ".join(base.reasons(figure)) or "undefined"
        if figure.startswith(COPYING_LAYER) and isinstance(base.copying_layer, Undefined):
            reasons = base.copying_layer.reason
        yield (
            f"{figure} can't be judged (rules {', '.join(rules_on_it)}): the baseline has no value of it, or of one pair at "
            f"most: {reasons}; take one that has: i2am-debug baseline update"
        )
    for finding in every:
        if finding.unjudged is not None and finding.figure not in lost:
            # A run that is too short for a best is none that can't be judged.
            wanted = finding.rule in asked_for and finding.kind != "drop_from_best"
            had, has = (np.isfinite(seen.values(finding.figure)) for seen in (base, now))
            if wanted or (had.any() and (had & has).sum() < 2):
                yield f"rule {finding.rule}: {finding.figure} could not be judged: {finding.unjudged}"
        elif finding.change is not None and finding.p is None and not finding.fired:
            yield (
                f"rule {finding.rule}: {finding.figure} has a value for {rules.too_few(finding.change.pairs)} "
                "(--min-pairs, --alpha)"
            )
    if not any(f.unjudged is None and f.kind != "undefined" for f in every):
        yield "no rule could be judged"


def _without_a_baseline(
    every: Sequence[Finding], base: Evaluation, own: Evaluation, now: Judged
) -> dict[str, list[str]]:
    """Figures that the run has and the baseline has not, so that nobody knows how far they fell, and the rules on them."""
    found: dict[str, list[str]] = {}
    for finding in every:
        if finding.unjudged is None or finding.kind == "undefined":  # what had no value has lost none
            continue
        tag = of_copying_layer(finding.figure, own.copying_layer)
        has = isinstance(tag, str) and np.isfinite(now.values(tag)).sum() > 1
        if has and np.isfinite(base.values(finding.figure)).sum() < 2:
            found.setdefault(finding.figure, []).append(finding.rule)
    return found


def _to_blame(
    base: Evaluation, now: Judged, failing: Sequence[Finding], rules: Mapping[str, Rule]
) -> dict[str, tuple[str, ...]]:
    """Pair → its figures that are worse than allowed; the pair that is so by most, in shares of what is allowed, first."""
    told: dict[str, dict[str, str]] = {}
    excess: dict[str, float] = {}
    for finding in failing:
        before, after = base.values(finding.figure), now.values(finding.figure)
        worse = _worse(finding, rules[finding.rule].higher_is_worse(base.declared), before, after)
        for number, pair in enumerate(base.pairs):
            if worse[number] > 0 or pair in finding.pairs:
                was = "" if finding.before is None else f"{before[number]:.3g} → "
                text = f"{finding.figure}: {was}{after[number]:.3g}"
                if finding.kind == "drop_from_best":
                    text = f"{finding.figure}: {after[number]:.3g}, worse than the run's best"
                told.setdefault(pair, {}).setdefault(finding.figure, text)  # the drop from the baseline comes first
                excess[pair] = max(excess.get(pair, 0.0), float(np.nan_to_num(worse[number])))
    return {pair: tuple(told[pair].values()) for pair in sorted(told, key=lambda p: -excess[p])}


def _worse(finding: Finding, higher_is_worse: bool, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(pairs,) how much worse than allowed each pair is by itself, in shares of what is allowed; NaN where unknown."""
    allowed = finding.allowed
    if allowed is None or finding.kind == "drop_from_best":  # of the best, the finding names the pairs
        return np.full(len(before), np.nan)
    if finding.kind == "drop":
        return (after - before if higher_is_worse else before - after) / allowed - 1
    return (after - allowed if finding.kind == "ceiling" else allowed - after) / max(abs(allowed), 1e-12)


@dataclass(frozen=True, kw_only=True)
class _Target:
    """The evaluation to judge, and what came before it."""

    evaluation: Evaluation
    path: Path | None
    history: Sequence[tuple[Judged, Path | None]]
    """The run's evaluations that are comparable with this one, up to it."""

    @classmethod
    def find(cls, target: str | Path | Evaluation, step: int | None) -> _Target:
        if isinstance(target, Evaluation):
            return cls(evaluation=target, path=None, history=[(target, None)])
        path = Path(target)
        if path.is_file():
            if step is not None:
                raise ValueError(f"--step is for a run; {path} is one evaluation")
            evaluation = read_evaluation(path)[0]
            return cls(evaluation=evaluation, path=path, history=[(evaluation, path)])
        *earlier, stored = find_evaluations(find_store(path), step)
        comparable = [s for s in earlier if s.comparable_id == stored.comparable_id and s.path.is_file()]
        history = [(s, s.path) for s in (*comparable, stored)]
        return cls(evaluation=stored.evaluation, path=stored.path, history=history)


class _Rebased:
    """One evaluation of a run whose distances are to the baseline given, not to the one that the run had."""

    def __init__(self, seen: Judged, path: Path | None, base_maps: Mapping[str, np.ndarray]) -> None:
        self._seen, self._path, self._base_maps = seen, path, base_maps

    @property
    def global_step(self) -> int:
        return self._seen.global_step

    def mean(self, tag: str) -> Figure:
        if not _is_distance(tag):
            return self._seen.mean(tag)
        values = self.values(tag)
        return float(np.nanmean(values)) if np.isfinite(values).any() else Undefined("; ".join(self.reasons(tag)))

    def values(self, tag: str) -> np.ndarray:
        if not _is_distance(tag):
            return self._seen.values(tag)
        return np.array([np.nan if isinstance(d, str) else d for d in self._distances(tag)])

    def reasons(self, tag: str, among: Sequence[bool] | None = None) -> tuple[str, ...]:
        if not _is_distance(tag):
            return self._seen.reasons(tag, among)
        return tuple(sorted({d for d in self._distances(tag) if isinstance(d, str)}))

    @cached_property
    def _maps(self) -> Mapping[str, np.ndarray]:
        return read_evaluation(self._path)[1] if self._path is not None else {}

    def _distances(self, tag: str) -> list[float | str]:
        plain = of_any_reference(tag)
        name = (
            tag.removesuffix(plain) + _DISTANCES[plain]
        )  # "reference_1/drift/js_r2g" is of the maps "reference_1/r2g"
        count = len(self._seen.values(tag))
        return [_distance(self._maps.get(f"{i}/{name}"), self._base_maps.get(f"{i}/{name}")) for i in range(count)]


def _is_distance(tag: str) -> bool:
    return of_any_reference(tag) in _DISTANCES


def _distance(ours: np.ndarray | None, theirs: np.ndarray | None) -> float | str:
    if ours is None or theirs is None:
        return "no map of it is stored"
    try:
        return js_distance(ours, theirs)
    except UndefinedFigure as error:
        return error.reason
