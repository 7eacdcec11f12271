"""A verdict as text, JSON, JUnit, Markdown and GitHub's annotations. Knows no files and judges nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import quote
from xml.etree import ElementTree

from ..alerts.judge import Finding
from ..figures.record import FORMAT
from ..figures.registry import of_copying_layer
from ..figures.sampling_error import SamplingError
from ..figures.values import Undefined
from .check import Verdict, is_regression

_COLUMNS = ("", "figure", "before", "now", "worse by", "allowed", "p", "against", "rule")
_MOST_PAIRS = 8
_FAILED, _UNDEFINED = "FAILED", "UNDEFINED"


def as_text(verdict: Verdict) -> str:
    """For a terminal: the headline, a line for every rule, what could not be judged, and the pairs to blame."""
    lines = [verdict.headline]
    rows = _rows(verdict)
    if rows:
        table = [_COLUMNS, *rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(_COLUMNS))]
        lines += ["", *("  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in table)]
        lines += ["", "  means over pairs with their 95 % intervals; p: one-sided paired sign-flip test"]
        lines += [f"  {line}" for line in _sampling_in_words(verdict)]
    happened = [f"{f.figure} {f.words}" for f in verdict.regressions if f.words]
    for title, told in (
        ("", happened),
        ("not comparable", verdict.problems if verdict.findings else verdict.problems[1:]),
        ("pairs to blame, worst first", _pairs(verdict)),
        ("what broke", verdict.what_broke),
        ("not judged", [f"{figures}: {reason}" for figures, reason in _unjudged(verdict).items()]),
    ):
        if told:
            lines += ["", *([f"  {title}:"] if title else []), *(f"    {line}" for line in told)]
    return "\n".join(map(_printable, lines))


def as_json(verdict: Verdict) -> str:
    """Everything, for a program. `status` is "pass", "regression" or "not comparable"."""
    evaluation, baseline = verdict.evaluation, verdict.baseline
    tree = {
        "format": FORMAT,
        "status": verdict.status,
        "exit_code": int(verdict.exit_code),
        "headline": verdict.headline,
        "global_step": None if evaluation is None else evaluation.global_step,
        "baseline_step": None if baseline is None else baseline.global_step,
        "evaluation": None if verdict.evaluation_file is None else str(verdict.evaluation_file),
        "baseline": str(verdict.baseline_file),
        "fail_on": verdict.fail_on,
        "sampling": _sampling(verdict),
        "findings": [f.to_json() for f in verdict.findings],
        "problems": list(verdict.problems),
        "diagnosis": None if verdict.diagnosis is None else verdict.diagnosis.to_json(),
        "pairs": {pair: list(what) for pair, what in (verdict.pairs or {}).items()},
    }
    return json.dumps(tree, indent=1) + "\n"


def as_junit(verdict: Verdict) -> str:
    """JUnit XML: a test case for every rule and for every pair, in two suites."""
    rules, pairs = (
        ElementTree.Element("testsuite", name="i2am rules"),
        ElementTree.Element("testsuite", name="i2am pairs"),
    )
    for finding in verdict.findings:
        case = _case(rules, "i2am.rules", f"{finding.rule} [{finding.figure}]")
        if finding.kind == "undefined" and finding.fired:
            _outcome(case, "error", str(finding))
        elif is_regression(finding, verdict.fail_on):
            _outcome(case, "failure", str(finding))
        elif finding.unjudged is not None:
            _outcome(case, "skipped", finding.unjudged)
    if verdict.status == "not comparable":
        _outcome(_case(rules, "i2am.rules", "comparable"), "error", "; ".join(verdict.problems))
    for pair in verdict.baseline.pairs if verdict.baseline is not None and verdict.findings else ():
        case = _case(pairs, "i2am.pairs", pair)
        if pair in (verdict.pairs or {}):
            _outcome(case, "failure", "; ".join((verdict.pairs or {})[pair]))
    root = ElementTree.Element("testsuites", name="i2am-debug check")
    for suite in (rules, pairs):
        for what, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            suite.set(what, str(len(suite.findall(f"testcase/{tag}"))))
        suite.set("tests", str(len(suite)))
        root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def as_markdown(verdict: Verdict, pictures: Mapping[str, str] | None = None) -> str:
    """For a pull request or a job's summary. `pictures`: pair → path, shown below the table."""
    lines = [f"## I2AM: {verdict.status}", "", _cell(verdict.headline), ""]
    rows = _rows(verdict)
    if rows:
        lines += [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
        lines += [f"| {' | '.join(_marked(row))} |" for row in rows]
        lines += ["", "Means over pairs with their 95 % intervals; p: one-sided paired sign-flip test.", ""]
        lines += [text for line in _sampling_in_words(verdict) for text in (_cell(line), "")]
    lines += [line for f in verdict.regressions if f.words for line in (f"{_code(f.figure)} {_cell(f.words)}", "")]
    if verdict.problems:
        lines += ["**Not comparable**", "", *(f"- {_cell(problem)}" for problem in verdict.problems), ""]
    if verdict.pairs:
        lines += ["**Pairs to blame**, worst first", "", *(f"- {_cell(line)}" for line in _pairs(verdict)), ""]
    if verdict.what_broke:
        lines += ["**What broke**", "", *(f"- {_cell(line)}" for line in verdict.what_broke), ""]
    for pair, path in (pictures or {}).items():
        lines += [f"![{_cell(pair)}: the baseline and now]({quote(path, errors='replace')})", ""]
    if _unjudged(verdict):
        lines += ["<details><summary>Not judged</summary>", ""]
        lines += [f"- {_cell(figures)}: {_cell(reason)}" for figures, reason in _unjudged(verdict).items()]
        lines += ["", "</details>", ""]
    return "\n".join(lines)


def as_github_annotation(verdict: Verdict) -> str:
    """The line that GitHub Actions shows at the top of a job; empty for a pass."""
    if verdict.status == "pass":
        return ""
    details = [*(str(f) for f in verdict.regressions), *verdict.what_broke] or list(verdict.problems)
    text = "\n".join(map(_printable, [verdict.headline, *details]))
    escaped = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return f"::error title=I2AM {verdict.status}::{escaped}"


def _word(finding: Finding, verdict: Verdict) -> str:
    if finding.fired and finding.kind == "undefined":
        return _UNDEFINED
    if is_regression(finding, verdict.fail_on):
        return _FAILED
    return finding.severity if finding.fired else "ok"


def _rows(verdict: Verdict) -> list[tuple[str, ...]]:
    """A row of `_COLUMNS` for every rule that was judged, what fails first; values that are all there take one row."""
    judged = [f for f in verdict.findings if f.unjudged is None]
    whole = [f for f in judged if f.kind == "undefined" and not f.fired]
    rows = [_row(f, verdict) for f in judged if f not in whole]
    rows.sort(key=lambda row: (row[0] not in (_FAILED, _UNDEFINED), row[0] == "ok"))
    if whole:
        count = len({f.figure for f in whole})
        rows.append(
            ("ok", f"{count} figures have their values", "", "", "", "", "", "", ", ".join({f.rule: 0 for f in whole}))
        )
    return rows


def _row(finding: Finding, verdict: Verdict) -> tuple[str, ...]:
    p = "" if finding.p is None else f"{finding.p:.2g}" if finding.p >= 0.001 else "< 0.001"
    level = abs(finding.before.mean) if finding.before is not None else 0.0

    def with_share(value: float | None) -> str:
        if value is None:
            return ""
        return f"{value:.3g} ({value / level:.0%})" if level and finding.change is not None else f"{value:.3g}"

    return (
        _word(finding, verdict),
        finding.figure,
        "" if finding.before is None else str(finding.before),
        "" if finding.now is None else str(finding.now),
        with_share(None if finding.change is None else finding.change.mean),
        with_share(finding.allowed),
        p,
        finding.against,
        finding.rule,
    )


def _sampling(verdict: Verdict) -> dict[str, float]:
    """Figure that was judged → half its 95 % interval from looking at some of the heads and noise times only."""
    evaluation = verdict.evaluation
    if evaluation is None:
        return {}
    watched = evaluation.watched_layer or evaluation.copying_layer
    found = {}
    for figure in dict.fromkeys(f.figure for f in verdict.findings):
        tag = of_copying_layer(figure, watched)
        error = None if isinstance(tag, Undefined) else evaluation.sampling.get(tag)
        if isinstance(error, SamplingError) and error.error > 0:
            found[figure] = error.reach
    return found


def _sampling_in_words(verdict: Verdict) -> list[str]:
    """One line, or none where all was looked at."""
    told = ", ".join(f"{figure} ± {reach:.2g}" for figure, reach in _sampling(verdict).items())
    return [f"from a look at all heads and noise times: {told}; both evaluations share most of it"] if told else []


def _marked(row: tuple[str, ...]) -> list[str]:
    word, figure, *numbers, rule = row
    return [f"**{word}**" if word in (_FAILED, _UNDEFINED) else word, _code(figure), *map(_cell, numbers), _code(rule)]


def _pairs(verdict: Verdict) -> list[str]:
    told = [f"{pair}: {'; '.join(what)}" for pair, what in (verdict.pairs or {}).items()]
    rest = len(told) - _MOST_PAIRS
    return told if rest <= 0 else [*told[:_MOST_PAIRS], f"and {rest} more"]


def _unjudged(verdict: Verdict) -> dict[str, str]:
    """Rules, joined where one reason holds for several → the reason."""
    by_reason: dict[str, list[str]] = {}
    for finding in verdict.findings:
        if finding.unjudged is not None:
            by_reason.setdefault(finding.unjudged, []).append(finding.rule)
    return {", ".join(rules): reason for reason, rules in by_reason.items()}


def _cell(text: str) -> str:
    """Text that can't end a table's cell, a line or a picture's alternative text, nor start HTML."""
    text = _printable(text)
    for old, new in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("`", "\\`"), ("[", "\\["), ("]", "\\]")):
        text = text.replace(old, new)
    return text


def _code(text: str) -> str:
    """As code, in a table's cell too."""
    return f"`{_printable(text).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def _case(suite: ElementTree.Element, classname: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=classname, name=_printable(name))


def _outcome(case: ElementTree.Element, tag: str, message: str) -> None:
    text = _printable(message)
    ElementTree.SubElement(case, tag, message=text).text = text


def _printable(text: str) -> str:
    """One line without control characters: names are the user's, and these could speak to a terminal, XML or a CI service."""
    return "".join(c if c.isprintable() else " " if c in "\t\n\r" else "�" for c in text)
