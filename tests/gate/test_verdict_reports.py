"""A verdict as text, JSON, JUnit, Markdown and GitHub's annotation: what is in it, and that no name can break its form."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_runs import COUNT, evaluation, sick

from i2am_debug.alerts.alert import look_first
from i2am_debug.alerts.judge import Finding
from i2am_debug.figures.estimates import Estimate
from i2am_debug.figures.record import FORMAT
from i2am_debug.gate.check import Verdict
from i2am_debug.gate.verdict_reports import as_github_annotation, as_json, as_junit, as_markdown, as_text

DROP = Finding(
    rule="gap-drop",
    kind="drop",
    severity="warning",
    figure="reference_gap",
    fired=True,
    against="baseline, step 0",
    before=Estimate(mean=0.06, low=0.05, high=0.07, pairs=10),
    now=Estimate(mean=0.006, low=0.005, high=0.007, pairs=10),
    change=Estimate(mean=0.054, low=0.05, high=0.06, pairs=10),
    allowed=0.012,
    p=1 / 1024,
    pairs=("pair 3",),
    since=100,
)
FINE = Finding(rule="r-drop", kind="drop", severity="warning", figure="imacs_r", p=0.6, allowed=0.05)
SKIPPED = Finding(
    rule="mass-drop", kind="drop", severity="warning", figure="reference_mass", unjudged="not | in <this> family"
)
LOST = Finding(
    rule="undefined",
    kind="undefined",
    severity="warning",
    figure="loss",
    fired=True,
    words="is undefined for 2 of 10 pairs that had it: not a finite number",
    pairs=("pair 1",),
)
NASTY = [
    "a|b",
    "two\nlines",
    "carriage\rreturn",
    "<script>alert(1)</script>",
    "]]> & \"quotes\" 'single'",
    "\x00\x07\x1b[31mred\x1b[0m",
    "::error::injected",
    "\n::stop-commands::x",
    "100%25 %0A",
    "`code` **bold** ](http://example.invalid)",
    "ﬀ 图 \u2028 \u202e \ufffe",
    "\ud800",
    " ",
]


def verdict(
    status: Any = "regression",
    findings: Sequence[Finding] = (DROP, FINE, SKIPPED),
    names: Sequence[str] | None = None,
    **options: Any,
) -> Verdict:
    of_pairs = {} if names is None else {"pairs": tuple(names), "figures": {}}
    given: dict[str, Any] = {
        "status": status,
        "evaluation": sick(**of_pairs),
        "evaluation_file": Path("run/step.safetensors"),
        "baseline": evaluation(**of_pairs),
        "baseline_file": Path("b.safetensors"),
        "findings": tuple(findings),
        "pairs": {"pair 3": ("reference_gap: 0.06 → 0.001",), "pair 1": ("reference_gap: 0.06 → 0.002",)},
    }
    return Verdict(**{**given, **options})


def unknown(**options: Any) -> Verdict:
    given = {
        "findings": (),
        "problems": ("there is no baseline",),
        "pairs": None,
        "baseline": None,
        "baseline_file": Path("b"),
    }
    return verdict("not comparable", **{**given, **options})


def nasty(name: str) -> Verdict:
    """Every text that comes from elsewhere is this one."""
    bad = Finding(
        rule=name,
        kind="drop",
        severity="warning",
        figure=name,
        fired=True,
        against=name,
        before=DROP.before,
        now=DROP.now,
        change=DROP.change,
        allowed=0.01,
        p=0.001,
        pairs=(name,),
    )
    gone = Finding(rule=name, kind="collapse", severity="critical", figure=name, fired=True, words=name)
    skipped = Finding(rule=name, kind="drop", severity="warning", figure=name, unjudged=name)
    return verdict(findings=(bad, gone, skipped), names=[name, "other"], pairs={name: (name, name)}, problems=(name,))


# -- text -----------------------------------------------------------------------------------------------------------


def test_text_begins_with_the_headline_and_names_figures_numbers_rules_and_pairs() -> None:
    lines = as_text(verdict()).splitlines()
    assert lines[0] == verdict().headline
    (failed,) = (line for line in lines if "FAILED" in line)
    assert failed.split()[1] == "reference_gap" and failed.split()[-1] == "gap-drop"
    assert "0.0540 (90%)" in failed or "0.054 (90%)" in failed  # 0.054 of 0.06
    assert "0.012 (20%)" in failed and "< 0.001" in failed
    assert [line.strip() for line in lines if line.strip().startswith("pair ")] == [
        "pair 3: reference_gap: 0.06 → 0.001",
        "pair 1: reference_gap: 0.06 → 0.002",
    ]
    assert any("mass-drop: not | in <this> family" in line for line in lines)


def test_text_puts_what_failed_first() -> None:
    lines = as_text(verdict(findings=(FINE, LOST, FINE, DROP))).splitlines()
    words = [line.split()[0] for line in lines if line.split()[:1] in (["ok"], ["FAILED"], ["UNDEFINED"])]
    assert words == ["UNDEFINED", "FAILED", "ok", "ok"]


def test_text_lists_so_many_pairs_and_counts_the_rest() -> None:
    told = as_text(verdict(pairs={f"pair {i}": ("worse",) for i in range(11)}))
    assert "pair 7: worse" in told and "pair 8: worse" not in told and "and 3 more" in told


def test_text_shows_less_severe_findings_by_their_severity() -> None:
    rows = as_text(verdict("pass", fail_on="critical")).splitlines()
    assert any(row.split()[:2] == ["warning", "reference_gap"] for row in rows)
    assert not any("FAILED" in row for row in rows)


def test_text_of_what_has_no_findings_is_its_problem() -> None:
    assert as_text(unknown()) == "not comparable: there is no baseline"


def test_text_says_what_happened_where_numbers_do_not() -> None:
    gone = Finding(rule="c", kind="collapse", severity="critical", figure="reference_gap", fired=True, words="is gone")
    assert "reference_gap is gone" in as_text(verdict(findings=(gone,)))


def test_text_names_every_problem_once() -> None:
    told = as_text(unknown(problems=("first thing", "second thing")))
    assert told.count("first thing") == told.count("second thing") == 1


# -- JSON -----------------------------------------------------------------------------------------------------------


def test_json_holds_everything() -> None:
    tree = json.loads(as_json(verdict()))
    assert (tree["format"], tree["status"], tree["exit_code"], tree["fail_on"]) == (FORMAT, "regression", 1, "warning")
    assert (tree["global_step"], tree["baseline_step"]) == (100, 0)
    assert (tree["evaluation"], tree["baseline"]) == ("run/step.safetensors", "b.safetensors")
    assert [Finding.from_json(row) for row in tree["findings"]] == [DROP, FINE, SKIPPED]
    assert tree["pairs"] == {k: list(v) for k, v in (verdict().pairs or {}).items()}
    assert list(tree["pairs"]) == ["pair 3", "pair 1"]  # worst first


@pytest.mark.parametrize(("status", "code"), [("pass", 0), ("regression", 1), ("not comparable", 3)])
def test_json_has_the_exit_code(status: str, code: int) -> None:
    assert json.loads(as_json(verdict(status, problems=("x",))))["exit_code"] == code


def test_json_of_what_could_not_be_compared() -> None:
    tree = json.loads(as_json(unknown(evaluation=None, evaluation_file=None)))
    assert tree["problems"] == ["there is no baseline"]
    assert tree["global_step"] is tree["baseline_step"] is tree["evaluation"] is None


# -- JUnit -----------------------------------------------------------------------------------------------------------


def suites(given: Verdict) -> dict[str, ElementTree.Element]:
    root = ElementTree.fromstring(as_junit(given).encode())
    assert root.tag == "testsuites"
    return {str(suite.get("name")): suite for suite in root}


def outcomes(suite: ElementTree.Element) -> list[tuple[str | None, list[str]]]:
    return [(case.get("name"), [child.tag for child in case]) for case in suite]


def test_junit_has_a_case_for_every_rule_and_every_pair() -> None:
    found = suites(verdict(findings=(DROP, FINE, SKIPPED, LOST)))
    assert outcomes(found["i2am rules"]) == [
        ("gap-drop [reference_gap]", ["failure"]),
        ("r-drop [imacs_r]", []),
        ("mass-drop [reference_mass]", ["skipped"]),
        ("undefined [loss]", ["error"]),
    ]
    assert outcomes(found["i2am pairs"]) == [(f"pair {i}", ["failure"] if i in (1, 3) else []) for i in range(COUNT)]


def test_junit_counts_are_right() -> None:
    for suite in suites(verdict(findings=(DROP, FINE, SKIPPED, LOST, DROP))).values():
        assert suite.get("tests") == str(len(suite))
        for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert suite.get(attribute) == str(sum(1 for case in suite for child in case if child.tag == tag))


def test_junit_says_what_is_wrong() -> None:
    failure = next(suites(verdict())["i2am rules"].iter("failure"))
    assert failure.get("message") == failure.text == str(DROP)
    of_pair = next(suites(verdict())["i2am pairs"].iter("failure"))
    assert of_pair.text == "reference_gap: 0.06 → 0.002"


def test_junit_of_what_could_not_be_compared_is_an_error() -> None:
    found = suites(unknown(problems=("one", "two")))
    assert outcomes(found["i2am rules"]) == [("comparable", ["error"])]
    assert next(found["i2am rules"].iter("error")).text == "one; two"
    assert len(found["i2am pairs"]) == 0


def test_junit_of_a_finding_below_fail_on_has_no_failure() -> None:
    found = suites(verdict("pass", fail_on="critical", pairs={}))
    assert not list(found["i2am rules"].iter("failure"))


# -- Markdown --------------------------------------------------------------------------------------------------------


def table(markdown: str) -> list[list[str]]:
    """The cells of the table's rows, split at pipes that no backslash precedes."""
    rows = [line for line in re.split(r"\r\n|\r|\n", markdown) if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def test_markdown_has_a_row_for_every_rule_that_was_judged() -> None:
    told = as_markdown(verdict())
    header, line, *rows = table(told)
    assert len(header) == len(line) == 9 and all(len(row) == 9 for row in rows)
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("**FAILED**", "`reference_gap`", "`gap-drop`"),
        ("ok", "`imacs_r`", "`r-drop`"),
    ]
    assert told.startswith("## I2AM: regression\n")
    assert "- pair 3: reference_gap: 0.06 → 0.001\n- pair 1: " in told
    assert "- mass-drop: not \\| in &lt;this> family" in told


def test_markdown_lists_what_is_not_comparable() -> None:
    told = as_markdown(unknown(problems=("one", "two")))
    assert "**Not comparable**\n\n- one\n- two\n" in told and not table(told)


def test_markdown_links_pictures_with_quoted_paths() -> None:
    told = as_markdown(verdict(), {"pair 3": "my pictures/pair (03).png"})
    assert "](my%20pictures/pair%20%2803%29.png)" in told


# -- GitHub's annotation ----------------------------------------------------------------------------------------------


def decoded(line: str) -> str:
    """As GitHub's runner reads the data of a workflow command."""
    assert line.count("\n") == line.count("\r") == 0
    data = line.split("::", 2)[2]
    return data.replace("%0D", "\r").replace("%0A", "\n").replace("%25", "%")


def test_a_pass_has_no_annotation() -> None:
    assert as_github_annotation(verdict("pass", findings=(FINE,), pairs={})) == ""


def test_an_annotation_is_one_line_that_says_what_regressed() -> None:
    line = as_github_annotation(verdict())
    assert line.startswith("::error title=I2AM regression::")
    assert decoded(line) == f"{verdict().headline}\n{DROP}\nLook first at: {look_first([DROP])}"


def test_an_annotation_of_what_could_not_be_compared_says_why() -> None:
    line = as_github_annotation(unknown(problems=("50% of it\nis gone",)))
    assert line.startswith("::error title=I2AM not comparable::")
    assert "50% of it is gone" in decoded(line)


# -- hostile names ----------------------------------------------------------------------------------------------------

# What JUnit, Markdown and a log hold depends on how many things there are, never on how they are called.
PLAIN = nasty("x")


def breaks(text: str) -> list[str]:
    """Lines as a log viewer and Markdown cut them."""
    return re.split(r"\r\n|\r|\n", text)


@pytest.mark.parametrize("name", NASTY)
def test_no_name_breaks_junit(name: str) -> None:
    found, plain = suites(nasty(name)), suites(PLAIN)
    for key, suite in found.items():
        assert [tags for _, tags in outcomes(suite)] == [tags for _, tags in outcomes(plain[key])]


@given(st.text(max_size=12))
@settings(max_examples=60, deadline=None)
def test_no_text_breaks_junit(name: str) -> None:
    found = suites(nasty(name))
    assert [tags for _, tags in outcomes(found["i2am rules"])] == [["failure"], ["failure"], ["skipped"]]


@pytest.mark.parametrize("name", NASTY)
def test_no_name_breaks_markdown(name: str) -> None:
    told, plain = as_markdown(nasty(name), {name: "p.png"}), as_markdown(PLAIN, {"x": "p.png"})
    assert len(breaks(told)) == len(breaks(plain))
    assert [len(row) for row in table(told)] == [len(row) for row in table(plain)]
    assert re.findall(r"<\w+", re.sub(r"`[^`\n]*`", "", told)) == re.findall(r"<\w+", plain)  # in code it is text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", told)


def test_no_name_ends_a_code_span_of_markdown() -> None:
    row = table(as_markdown(nasty("a`b")))[2]
    assert [row[1].count("`"), row[-1].count("`")] != [3, 3]  # without, or within a longer fence


def test_no_name_ends_a_picture_of_markdown() -> None:
    told = as_markdown(verdict(), {"x](http://example.invalid)": "p.png"})
    assert "](http://example.invalid)" not in told.replace("\\]", "")


@pytest.mark.parametrize("name", NASTY)
def test_no_name_breaks_the_annotation(name: str) -> None:
    line = as_github_annotation(nasty(name))
    assert line.startswith("::error title=I2AM regression::") and len(breaks(line)) == 1
    if name.isprintable():
        assert name in decoded(line)


@pytest.mark.parametrize("name", NASTY)
def test_no_name_breaks_the_text_or_commands_a_terminal(name: str) -> None:
    told = as_text(nasty(name))
    assert len(breaks(told)) == len(breaks(as_text(PLAIN)))  # GitHub takes a line that starts with :: for a command
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", told)


@pytest.mark.parametrize("name", NASTY)
def test_every_report_can_be_written_as_utf_8(name: str) -> None:
    for text in (as_text(nasty(name)), as_json(nasty(name)), as_junit(nasty(name)), as_markdown(nasty(name))):
        assert text.encode()
    assert as_github_annotation(nasty(name)).encode()


@pytest.mark.parametrize("name", NASTY)
def test_json_keeps_every_name_as_it_is(name: str) -> None:
    tree = json.loads(as_json(nasty(name)))
    assert list(tree["pairs"]) == [name] and tree["findings"][0]["rule"] == name
