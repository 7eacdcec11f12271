"""Rules applied to evaluations and a baseline → one finding a rule. Pure; knows no model, no files, no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches

import numpy as np

from ..figures.declaration import Need
from ..figures.declared import LOSS, REFERENCE_GAP
from ..figures.estimates import estimates
from ..figures.record import Evaluation
from ..figures.registry import declaration_of, of_copying_layer
from ..figures.resampling import sign_flip_p
from ..figures.values import Figure, Undefined
from .calm import calmed
from .default_rules import default_rules
from .finding import Finding, Judged, p_in_words
from .rule import ANY_FIGURE, Rule
from .rules import Rules

SMOOTHING = 3
"""The best so far is a mean over so many evaluations in a row, since the best single one is partly luck."""

SETTLING = 3
"""So many evaluations after its baseline show where a run's gap settles."""

MOST_TO_BLAME = 3

_LOOK_BACK = 50


def findings(rules: Rules, baseline: Evaluation, history: Sequence[Judged]) -> tuple[Finding, ...]:
    """What every rule says of the last evaluation of `history`.

    Args:
        history: evaluations by step, at least one, all comparable with the baseline; the baseline may be the first.
    """
    found = tuple(_patient(rule, rules, baseline, history) for rule in _on_single_figures(rules, baseline))
    return calmed(found, rules, calibrated=baseline.margins)


def judged_figures(rules: Rules, baseline: Evaluation) -> tuple[str, ...]:
    """The tags that `findings` asks an evaluation for."""
    tags = (resolve(rule.figure, baseline) for rule in _on_single_figures(rules, baseline) if rule.figure != ANY_FIGURE)
    return tuple(dict.fromkeys([*(tag for tag in tags if isinstance(tag, str)), LOSS.tag]))


def refuse_idle_rules(rules: Rules, baseline: Evaluation) -> None:
    """A rule on a figure that no evaluation has, or with a margin that nothing reaches, would never fire.

    Raises:
        ValueError: names the rule, the figure, and what was probably meant.
    """
    defaults = default_rules()
    for rule in rules.rules:
        tag = resolve(rule.figure, baseline)
        declared = declaration_of(rule.figure, baseline.declared)
        if rule.kind == "drop" and declared is not None and Need.BASELINE in declared.needs:
            raise ValueError(
                f"rule {rule.name!r}: {rule.figure} is a distance to the baseline; limit it with kind='ceiling'"
            )
        margin = rule.margin_for({}, baseline.declared) if rule.kind == "drop" else None
        level = abs(np.nan_to_num(float(baseline.values(tag).mean()))) if isinstance(tag, str) else 0.0
        if margin is not None and not margin.relative and margin.value >= 1 and 0 < level < margin.value:
            raise ValueError(
                f"rule {rule.name!r}: a margin of {margin} is more than all of {tag}, which is {level:.3g}; "
                f"did you mean '{margin}%'?"
            )
        if rule in defaults or rule.figure == ANY_FIGURE or isinstance(tag, Undefined) or tag in baseline.figures:
            continue
        alike = get_close_matches(tag, baseline.figures, n=3) or sorted(t for t in baseline.figures if "/" not in t)
        raise ValueError(f"rule {rule.name!r}: there is no figure {rule.figure!r}; did you mean {', '.join(alike)}?")


def resolve(figure: str, baseline: Evaluation) -> str | Undefined:
    """The tag of a rule's figure: "copying_layer/…" is that of the baseline's copying layer."""
    return of_copying_layer(figure, baseline.copying_layer)


def best_window(means: Sequence[Figure], higher_is_worse: bool) -> int | None:
    """Where the best `SMOOTHING` evaluations in a row begin; None where there are not so many with a value."""
    values = np.array([np.nan if isinstance(m, Undefined) else m for m in means], dtype=float)
    if len(values) < SMOOTHING:
        return None
    smoothed = np.lib.stride_tricks.sliding_window_view(values, SMOOTHING).mean(1)
    if np.isnan(smoothed).all():
        return None
    return int(np.nanargmin(smoothed) if higher_is_worse else np.nanargmax(smoothed))


def _on_single_figures(rules: Rules, baseline: Evaluation) -> list[Rule]:
    """The rules with those for any figure written out, for the figures that the baseline has."""
    tags = {resolve(r.figure, baseline): r.figure for r in rules.rules if r.figure != ANY_FIGURE}
    had = {
        t: f
        for t, f in {**tags, LOSS.tag: LOSS.tag}.items()
        if isinstance(t, str) and np.isfinite(baseline.values(t)).any()
    }
    out = []
    for rule in rules.rules:
        figures = had.values() if rule.kind == "undefined" and rule.figure == ANY_FIGURE else [rule.figure]
        out += [replace(rule, figure=figure) for figure in figures]
    return out


def _patient(rule: Rule, rules: Rules, baseline: Evaluation, history: Sequence[Judged]) -> Finding:
    found = _judge(rule, rules, baseline, history)
    for count in range(1, rule.patience):
        if not found.fired:
            return found
        if count >= len(history):
            short = f"it takes {rule.patience} evaluations in a row, there are {len(history)}"
            return replace(found, fired=False, words="", pairs=(), unjudged=short)
        if not _judge(rule, rules, baseline, history[:-count]).fired:
            return replace(found, fired=False, words="", pairs=())
    return found


def _judge(rule: Rule, rules: Rules, baseline: Evaluation, history: Sequence[Judged]) -> Finding:
    tag = resolve(rule.figure, baseline)
    found = Finding(rule=rule.name, kind=rule.kind, severity=rule.severity, figure=rule.figure)
    if isinstance(tag, Undefined):
        return replace(found, unjudged=tag.reason)
    found = replace(found, figure=tag)
    return _BY_KIND[rule.kind](found, rule, rules, baseline, history)


def _limit(found: Finding, rule: Rule, rules: Rules, baseline: Evaluation, history: Sequence[Judged]) -> Finding:
    """floor and ceiling."""
    limit, values = float(rule.limit or 0.0), history[-1].values(found.figure)
    if not np.isfinite(values).any():
        return replace(found, unjudged=_why(history[-1], found.figure))
    sign = 1.0 if rule.kind == "ceiling" else -1.0

    def beyond(values: np.ndarray) -> bool:
        return bool(np.isfinite(values).any() and sign * np.nanmean(values) > sign * limit)

    fired = beyond(values)
    return replace(
        found,
        fired=fired,
        now=estimates({"now": values})["now"],
        allowed=limit,
        against=f"{'above' if rule.kind == 'ceiling' else 'below'} {limit:.3g}" if fired else f"limit {limit:.3g}",
        pairs=_worst(baseline, sign * (values - limit)) if fired else (),
        since=_since(found.figure, baseline, history, beyond) if fired else None,
    )


def _drop(found: Finding, rule: Rule, rules: Rules, baseline: Evaluation, history: Sequence[Judged]) -> Finding:
    before, against = baseline.values(found.figure), f"baseline, {_step(baseline)}"
    if rule.severity != "critical" and found.figure == REFERENCE_GAP.tag:
        settled = _settled(found.figure, rule, baseline, history)
        if settled is not None:
            return _compare(found, rule, rules, baseline, history, *settled)
    return _compare(found, rule, rules, baseline, history, before, against)


def _settled(figure: str, rule: Rule, baseline: Evaluation, history: Sequence[Judged]) -> tuple[np.ndarray, str] | None:
    """The mean of a run's first evaluations after its own baseline, and how that is called; None where they are not all within
    the margin, or no worse than the baseline.

    A training that drops 10 % of its references, as for classifier-free guidance, learns to do without them a little, once.
    """
    first, margin = history[1 : 1 + SETTLING], rule.margin_for(baseline.margins, baseline.declared)
    own = baseline.values(figure)
    if (
        len(history) < SETTLING + 2
        or margin is None
        or not np.array_equal(history[0].values(figure), own, equal_nan=True)
    ):
        return None
    sign = 1.0 if rule.higher_is_worse(baseline.declared) else -1.0
    settled = np.mean([seen.values(figure) for seen in first], axis=0)
    both = np.isfinite(own) & np.isfinite(settled)
    if not both.any():
        return None
    worse = [sign * float((seen.values(figure) - own)[both].mean()) for seen in first]
    if not float(np.mean(worse)) > 0 or max(worse) > margin.of(float(own[both].mean())):
        return None
    return settled, f"baseline as it settled, steps {first[0].global_step} to {first[-1].global_step}"


def _drop_from_best(
    found: Finding, rule: Rule, rules: Rules, baseline: Evaluation, history: Sequence[Judged]
) -> Finding:
    earlier = history[:-1]
    start = best_window([seen.mean(found.figure) for seen in earlier], rule.higher_is_worse(baseline.declared))
    if start is None and not np.isfinite(baseline.values(found.figure)).any():
        return replace(found, unjudged=_why(baseline, found.figure))
    if start is None:
        return replace(found, unjudged=f"fewer than {SMOOTHING} evaluations in a row before this one have it")
    window = earlier[start : start + SMOOTHING]
    before = np.mean([seen.values(found.figure) for seen in window], axis=0)
    if not np.isfinite(before).any():
        return replace(found, unjudged="no pair has a value at all of the best evaluations")
    words = f"best so far, steps {window[0].global_step} to {window[-1].global_step}"
    return _compare(found, rule, rules, baseline, history, before, words)


def _compare(
    found: Finding,
    rule: Rule,
    rules: Rules,
    baseline: Evaluation,
    history: Sequence[Judged],
    before: np.ndarray,
    against: str,
) -> Finding:
    after = history[-1].values(found.figure)
    sign = 1.0 if rule.higher_is_worse(baseline.declared) else -1.0
    worse = sign * (after - before)
    usable = np.isfinite(worse)
    if not usable.any():
        no_more = np.isfinite(before).any()
        return replace(found, unjudged=_why(history[-1] if no_more else baseline, found.figure))
    if usable.sum() < 2:
        return replace(found, unjudged="one pair")
    margin = rule.margin_for(baseline.margins, baseline.declared)
    if margin is None:
        return replace(
            found, unjudged=f"no margin is known for {rule.figure}; give the rule one: margin = 0.03 or '10%'"
        )
    level = float(before[usable].mean())
    testable = rules.can_test(int(usable.sum()))
    if margin.relative and (level <= 0 or (testable and sign_flip_p(before[usable]) >= rules.alpha)):
        return replace(found, unjudged=f"not above 0 at its {against.partition(',')[0]}: nothing to lose")
    allowed = margin.of(level)
    p = sign_flip_p(worse[usable]) if testable else None
    fired = bool(worse[usable].mean() > allowed) and (p is None or p < rules.alpha)
    columns = {"before": np.where(usable, before, np.nan), "now": np.where(usable, after, np.nan), "change": worse}

    def beyond(values: np.ndarray) -> bool:
        own = sign * (values - before)
        return bool(np.isfinite(own).any() and np.nanmean(own) > allowed)

    return replace(
        found,
        fired=fired,
        against=against,
        **estimates(columns),  # type: ignore[arg-type]
        allowed=allowed,
        p=p,
        pairs=_worst(baseline, worse) if fired else (),
        since=_since(found.figure, baseline, history, beyond) if fired else None,
    )


def _collapse(found: Finding, rule: Rule, rules: Rules, baseline: Evaluation, history: Sequence[Judged]) -> Finding:
    sign = -1.0 if rule.higher_is_worse(baseline.declared) else 1.0
    after = history[-1].values(found.figure)
    before, when = _what_there_was(found.figure, rule, rules, baseline, history)
    usable = np.isfinite(before) & np.isfinite(after)
    if not usable.any():
        return replace(found, unjudged=_why(history[-1] if np.isfinite(before).any() else baseline, found.figure))
    if not rules.can_test(int(usable.sum())):
        return replace(found, unjudged=f"too few pairs for a test: {rules.too_few(int(usable.sum()))}")

    def p_of_nothing(values: np.ndarray) -> float:
        """Of "it is not on the good side of nothing"."""
        own = sign * (values[usable & np.isfinite(values)] - rule.nothing)
        return sign_flip_p(own) if len(own) else 1.0

    worse, p = sign * (before - after), p_of_nothing(after)
    columns = {"before": np.where(usable, before, np.nan), "now": np.where(usable, after, np.nan), "change": worse}
    known = estimates(columns)
    found = replace(found, against=f"nothing is {rule.nothing:.3g}", p=p, **known)  # type: ignore[arg-type]
    gone = p >= rules.alpha
    nothing = f"{'above' if sign > 0 else 'below'} {rule.nothing:.3g}, where the reference is not used"
    shown = f"{known['now']}, p {p_in_words(p)}"
    if p_of_nothing(before) < rules.alpha:
        fired = gone and sign_flip_p(worse[usable]) < rules.alpha
        words = f"can no longer be shown to be {nothing}: {shown}; it was {known['before']} at the {when}"
        found = replace(found, pairs=_worst(baseline, worse) if fired else ())
    else:
        # There was nothing to lose. That may be how a training from scratch begins: it takes two evaluations to say so.
        fired = gone and any(seen.global_step != baseline.global_step for seen in history)
        words = f"can't be shown to be {nothing}, neither at the baseline nor now: {shown}"
        found = replace(found, severity="warning" if rule.severity == "critical" else rule.severity)
    since = (
        _since(found.figure, baseline, history, lambda values: p_of_nothing(values) >= rules.alpha) if fired else None
    )
    return replace(found, fired=fired, words=words if fired else "", since=since)


def _what_there_was(
    figure: str, rule: Rule, rules: Rules, baseline: Evaluation, history: Sequence[Judged]
) -> tuple[np.ndarray, str]:
    """The baseline's values, or, where that had nothing and the run has learned since, those of its best evaluations."""
    own = baseline.values(figure)
    sign = -1.0 if rule.higher_is_worse(baseline.declared) else 1.0

    def has_something(values: np.ndarray) -> bool:
        known = values[np.isfinite(values)]
        return rules.can_test(len(known)) and sign_flip_p(sign * (known - rule.nothing)) < rules.alpha

    start = (
        None
        if has_something(own)
        else best_window([seen.mean(figure) for seen in history[:-1]], rule.higher_is_worse(baseline.declared))
    )
    if start is not None:
        window = history[start : start + SMOOTHING]
        best = np.mean([seen.values(figure) for seen in window], axis=0)
        if has_something(best):
            return best, f"best, steps {window[0].global_step} to {window[-1].global_step}"
    return own, "baseline"


def _undefined(found: Finding, rule: Rule, rules: Rules, baseline: Evaluation, history: Sequence[Judged]) -> Finding:
    had = np.isfinite(baseline.values(found.figure))
    if not had.any():
        return replace(found, unjudged=_why(baseline, found.figure))

    def too_many_lost(values: np.ndarray) -> bool:
        return bool((had & ~np.isfinite(values)).sum() > (rule.limit or 0.0) * had.sum())

    values = history[-1].values(found.figure)
    found = replace(found, against=f"baseline, {_step(baseline)}")
    if not too_many_lost(values):
        return found
    lost = had & ~np.isfinite(values)
    reasons = "; ".join(history[-1].reasons(found.figure, lost.tolist())) or "no reason is known"
    return replace(
        found,
        fired=True,
        words=f"is undefined for {lost.sum()} of {had.sum()} pairs that had it: {reasons}",
        pairs=tuple(np.array(baseline.pairs)[lost][:MOST_TO_BLAME].tolist()),
        since=_since(found.figure, baseline, history, too_many_lost),
    )


def _unchanged(found: Finding, rule: Rule, rules: Rules, baseline: Evaluation, history: Sequence[Judged]) -> Finding:
    if len(history) < 2:
        return replace(found, unjudged="one evaluation")
    now, before = history[-1], history[-2]
    values = [(now.values(tag), before.values(tag)) for tag in judged_figures(rules, baseline)]
    if not any(np.isfinite(own).any() for own, _ in values):
        return replace(found, unjudged="no figure has a value")
    if not all(np.array_equal(own, earlier, equal_nan=True) for own, earlier in values):
        return found
    return replace(
        found,
        fired=True,
        words=f"every figure of every pair is, to the last bit, what it was at {_step(before)}",
        since=before.global_step,
    )


_BY_KIND = {
    "floor": _limit,
    "ceiling": _limit,
    "drop": _drop,
    "drop_from_best": _drop_from_best,
    "collapse": _collapse,
    "undefined": _undefined,
    "unchanged": _unchanged,
}


def _since(tag: str, baseline: Evaluation, history: Sequence[Judged], is_so: Callable[[np.ndarray], bool]) -> int:
    """The first evaluation of the unbroken row, up to the last one, at which a figure's values are so.

    Looks back over 50 evaluations at most: each one's file has to be read.
    """
    earlier = [baseline] if baseline.global_step < history[0].global_step else []
    since = history[-1].global_step
    for seen in reversed([*earlier, *history[-_LOOK_BACK:-1]]):
        if not is_so(seen.values(tag)):
            break
        since = seen.global_step
    return since


def _worst(baseline: Evaluation, worse: np.ndarray) -> tuple[str, ...]:
    order = [i for i in np.argsort(-np.nan_to_num(worse, nan=-np.inf), kind="stable") if worse[i] > 0]
    return tuple(baseline.pairs[i] for i in order[:MOST_TO_BLAME])


def _why(seen: Judged, tag: str) -> str:
    return "; ".join(seen.reasons(tag)) or "undefined"


def _step(seen: Judged) -> str:
    return f"step {seen.global_step}"
