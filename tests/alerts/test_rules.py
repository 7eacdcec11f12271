"""What counts as an alert, in Python and in TOML: what is read is what was written, and what is wrong is named."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2am_debug.alerts.default_rules import default_rules
from i2am_debug.alerts.rule import ANY_FIGURE, KINDS, SEVERITIES, Rule, at_least
from i2am_debug.alerts.rules import Rules
from i2am_debug.figures.declaration import COPYING_LAYER
from i2am_debug.figures.margin import Margin
from i2am_debug.figures.registry import all_figures

DEFAULT_RULES = default_rules()
DEFAULT_MARGINS = {f.tag: Margin.parse(f.margin) for f in all_figures() if f.margin is not None}

steady = settings(max_examples=150, deadline=None, derandomize=True)
positive = st.floats(1e-6, 1e6)
HUGE = 10**400  # a whole number beyond what a float holds


def rule(**changes: Any) -> Rule:
    return Rule(**{"name": "mine", "kind": "drop", "figure": "imacs_r", **changes})


def by_name(rules: Rules) -> dict[str, Rule]:
    return {r.name: r for r in rules.rules}


def from_toml(folder: Path, text: str) -> Rules:
    path = folder / "i2am.toml"
    path.write_text(text, encoding="utf-8")
    return Rules.from_toml(path)


def refusal_of_toml(folder: Path, text: str) -> str:
    """The text of the ValueError without the file's path, which it must begin with."""
    with pytest.raises(ValueError) as refused:
        from_toml(folder, text)
    path, message = str(folder / "i2am.toml"), str(refused.value)
    assert message.startswith(path)
    assert "\n" not in message
    return message.removeprefix(path)


def refusal(make: Any, *args: Any, **given: Any) -> str:
    with pytest.raises(ValueError) as refused:
        make(*args, **given)
    return str(refused.value)


# Margins


@pytest.mark.parametrize(
    "given_, value, relative",
    [
        (0.03, 0.03, False),
        (2, 2, False),
        ("0.03", 0.03, False),
        (" 3e-2 ", 0.03, False),
        ("10%", 0.1, True),
        (" 12.5 % ", 0.125, True),
        ("150%", 1.5, True),
    ],
)
def test_a_margin_is_a_number_or_a_percentage(given_: Any, value: float, relative: bool) -> None:
    assert Margin.parse(given_) == Margin(value=value, relative=relative)


def test_a_margin_is_its_own_parse() -> None:
    assert Margin.parse(Margin(value=0.2, relative=True)) == Margin(value=0.2, relative=True)


NO_MARGIN = ["-1", "0", "0%", "-3%", "abc", "", " ", "%", "%10", "10 percent", "1,5", "5%5", "nan", "inf", "nan%"]
NO_NUMBER = [0, -0.1, math.nan, math.inf, -math.inf, True, False, None, [], [0.1], {}, {"value": 0.1}, (0.1,), b"10%"]


@pytest.mark.parametrize("given_", [*NO_MARGIN, "1e9999", "1e9999%"])
def test_a_text_that_is_no_margin_is_refused_with_an_example(given_: str) -> None:
    assert refusal(Margin.parse, given_) == f'margin {given_!r}: expected a number above 0, as in 0.03 or "10%"'


@pytest.mark.parametrize("given_", NO_NUMBER, ids=repr)
def test_what_is_no_number_above_zero_is_no_margin(given_: Any) -> None:
    for make in (Margin.parse, lambda v: Margin(value=v)):
        text = refusal(make, given_)
        assert text.startswith(f"margin {given_!r}: expected a number above 0")


def test_a_margins_value_is_not_a_text() -> None:  # that is what parse is for
    assert refusal(Margin, value="0.1") == "margin '0.1': expected a number above 0"


@given(positive, st.floats(-1e6, 1e6))
@steady
def test_a_relative_margin_is_a_share_of_the_size_of_the_level(value: float, level: float) -> None:
    assert Margin(value=value).of(level) == value
    relative = Margin(value=value, relative=True)
    assert relative.of(level) == relative.of(-level) == pytest.approx(value * math.fabs(level), rel=1e-12)


@given(positive, st.booleans())
@steady
def test_a_margin_survives_being_stored(value: float, relative: bool) -> None:
    margin = Margin(value=value, relative=relative)
    again = Margin.parse(margin.to_json())
    assert again.relative is relative
    assert again.value == pytest.approx(value, rel=1e-5) if relative else again.value == value


@given(st.text(alphabet="0123456789.eE+-% _naif", max_size=8))
@steady
def test_any_text_is_a_margin_above_zero_or_a_value_error(text: str) -> None:
    try:
        margin = Margin.parse(text)
    except ValueError as error:
        assert str(error).startswith(f"margin {text!r}")
    else:
        assert 0 < margin.value < math.inf
        assert margin.relative is ("%" in text)


@given(positive, st.booleans())
@steady
def test_a_margin_reads_as_it_would_be_written(value: float, relative: bool) -> None:
    read = Margin.parse(str(Margin(value=value, relative=relative)))
    assert read.relative is relative
    assert read.value == pytest.approx(value, rel=0.01)


# Rules, one by one


@pytest.mark.parametrize(
    "figure, direction",
    [("imacs_r", "down"), ("reference_gap", "down"), ("loss", "up"), ("drift/js_r2g", "up"), ("drift/js_g2r", "up")],
)
def test_losses_and_distances_are_worse_when_they_rise(figure: str, direction: str) -> None:
    assert rule(figure=figure).higher_is_worse() is (direction == "up")


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_direction_that_was_given_stays(direction: str) -> None:
    assert rule(figure="loss", direction=direction).direction == direction
    assert rule(figure="imacs_r", direction=direction).direction == direction


def test_a_rules_margin_is_parsed() -> None:
    assert rule(margin="10%").margin == Margin(value=0.1, relative=True)
    assert rule(margin=0.03).margin == Margin(value=0.03)
    assert rule().margin is None


WRONG: list[tuple[dict[str, Any], str]] = [
    (
        {"kind": "fall"},
        "kind='fall': expected one of 'floor', 'ceiling', 'drop', 'drop_from_best', 'collapse', 'undefined'",
    ),
    ({"severity": "fatal"}, "severity='fatal': expected one of 'info', 'warning', 'critical'"),
    ({"severity": None}, "severity=None: expected one of 'info', 'warning', 'critical'"),
    ({"direction": "sideways"}, "direction='sideways': expected one of 'down', 'up'"),
    ({"figure": ""}, "figure='': expected a figure's tag, such as 'imacs_r'"),
    ({"figure": "*"}, "figure='*' is for kind='undefined' and 'unchanged' only; name one figure"),
    ({"patience": 0}, "patience=0: expected a whole number of at least 1"),
    ({"margins": 0}, "margins=0: expected a number above 0"),
    ({"kind": "collapse", "margins": 2.0}, "margins=2.0 is for drop and drop_from_best, not for collapse"),
    ({"nothing": math.nan}, "nothing=nan: expected a number"),
    ({"margin": "abc"}, "margin 'abc': expected a number above 0, as in 0.03 or \"10%\""),
    ({"kind": "floor"}, "a floor needs limit=, a number such as 0.1; got None"),
    ({"kind": "ceiling"}, "a ceiling needs limit=, a number such as 0.1; got None"),
    ({"kind": "ceiling", "limit": math.inf}, "a ceiling needs limit=, a number such as 0.1; got inf"),
    ({"kind": "undefined", "limit": 1}, "limit=1: expected a share of the pairs, 0 to below 1"),
]


@pytest.mark.parametrize("changes, expected", WRONG, ids=lambda v: repr(v)[:30])
def test_a_wrong_rule_is_refused_by_its_name_with_what_was_expected(changes: dict[str, Any], expected: str) -> None:
    assert refusal(rule, **changes).startswith(f"rule 'mine': {expected}")


ODD = [3, -1, 0.5, True, False, math.nan, math.inf, "", "x", [], [1], {}, {"a": 1}, (1,), object]
FIT: dict[str, list[Any]] = {
    "kind": [],
    "figure": ["x"],
    "severity": [],
    "direction": [],
    "margin": [3, 0.5],
    "margins": [3, 0.5],
    "nothing": [3, -1, 0.5],
    "patience": [3],
}


@pytest.mark.parametrize("field", FIT)
def test_a_value_of_the_wrong_type_is_refused_by_field(field: str) -> None:
    for value in ODD:
        if any(type(value) is type(fit) and value == fit for fit in FIT[field]):
            assert getattr(rule(**{field: value}), field) is not None
            continue
        text = refusal(rule, **{field: value})
        assert text.startswith("rule 'mine': ")
        assert field in text


@pytest.mark.parametrize("limit", ["half", "", [], [1], {}, {"a": 1}, True, False, math.nan, math.inf], ids=repr)
def test_the_limit_of_any_kind_of_rule_is_a_number(limit: Any) -> None:
    for kind in KINDS:
        text = refusal(rule, kind=kind, limit=limit)
        assert text.startswith("rule 'mine': ")
        assert "limit" in text


@pytest.mark.parametrize("field", ["limit", "nothing", "margin"])
def test_a_whole_number_that_no_float_holds_is_refused(field: str) -> None:
    assert field in refusal(rule, **{"kind": "floor", "limit": 0, field: HUGE})


@pytest.mark.parametrize("limit", [0, 0.0, 0.5, 0.999, None])
def test_the_limit_of_an_undefined_rule_is_a_share(limit: float | None) -> None:
    assert rule(kind="undefined", figure=ANY_FIGURE, limit=limit).limit == limit


@pytest.mark.parametrize("limit", [-0.01, 1, 1.5, 50])
def test_a_share_is_neither_negative_nor_all(limit: float) -> None:
    assert f"limit={limit!r}: expected a share of the pairs" in refusal(rule, kind="undefined", limit=limit)


@pytest.mark.parametrize("limit", [-1, 0, 0.3, 2.5])
@pytest.mark.parametrize("kind", ["floor", "ceiling"])
def test_a_floor_may_be_any_number(kind: str, limit: float) -> None:
    assert rule(kind=kind, limit=limit).limit == limit


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("undefined", "unchanged")])
def test_only_an_undefined_or_unchanged_rule_looks_at_any_figure(kind: str) -> None:
    text = refusal(rule, kind=kind, figure=ANY_FIGURE, limit=0.1)
    assert "figure='*' is for kind='undefined' and 'unchanged' only" in text


def test_an_unchanged_rule_is_of_all_figures() -> None:
    assert "figure='*'" in refusal(rule, kind="unchanged", figure="imacs_r")


@pytest.mark.parametrize("name", ["", 3, None, True, ["a"]], ids=repr)
def test_a_rules_name_is_a_text(name: Any) -> None:
    assert "name" in refusal(rule, name=name)


def test_a_rules_margin_comes_before_the_calibrated_before_the_default() -> None:
    calibrated = {"imacs_r": "7%"}
    assert rule(margin=0.5).margin_for(calibrated) == Margin(value=0.5)
    assert rule().margin_for(calibrated) == Margin(value=0.07, relative=True)
    assert rule().margin_for({"imacs_g": 0.9}) == DEFAULT_MARGINS["imacs_r"]
    assert rule(figure="unheard_of").margin_for({}) is None


def test_a_calibrated_margin_may_be_all_that_to_json_gives() -> None:
    for margin in (Margin(value=0.25), Margin(value=0.25, relative=True)):
        assert rule().margin_for({"imacs_r": margin.to_json()}) == margin


# All rules together


def test_the_default_rules_are_those_of_an_empty_table(tmp_path: Path) -> None:
    assert Rules().rules == DEFAULT_RULES
    assert (Rules().alpha, Rules().min_pairs) == (0.05, 8)
    assert Rules.from_table({}) == Rules() == from_toml(tmp_path, "[i2am.rules]")


@pytest.mark.parametrize("default", DEFAULT_RULES, ids=lambda r: r.name)
def test_a_default_rule_is_valid_and_has_a_known_margin(default: Rule) -> None:
    again = Rule(**{field.name: getattr(default, field.name) for field in fields(Rule)})
    assert again == default
    assert default.figure == ANY_FIGURE or default.figure in DEFAULT_MARGINS
    if default.kind in ("drop", "drop_from_best"):
        assert isinstance(default.margin_for({}), Margin)
    grave = default.name.endswith(("collapse", "for-most", "halved"))
    assert default.severity == ("critical" if grave else "warning")


def test_every_figure_with_a_drop_rule_is_held_against_the_best_too() -> None:
    figures = {kind: {r.figure for r in DEFAULT_RULES if r.kind == kind} for kind in KINDS}
    assert figures["drop"] == figures["drop_from_best"]
    assert figures["collapse"] <= figures["drop"]
    assert f"{COPYING_LAYER}imacs_r_hole" in figures["drop"]
    assert figures["undefined"] == {ANY_FIGURE}


@pytest.mark.parametrize("figure, margin", DEFAULT_MARGINS.items(), ids=list(DEFAULT_MARGINS))
def test_a_default_margin_can_be_written_and_read(figure: str, margin: Margin) -> None:
    again = Margin.parse(margin.to_json())
    assert (again.relative, again.value) == (margin.relative, pytest.approx(margin.value, rel=1e-12))
    assert 0 < margin.value < 1


def test_two_rules_of_one_name_are_refused() -> None:
    twins = (rule(), rule(figure="imacs_g"), rule(name="other"))
    assert refusal(Rules, rules=twins) == "two rules are named 'mine'; give each a name of its own"


@pytest.mark.parametrize("given_", [["gap-drop"], [None], [rule(), {"kind": "drop"}], "gap-drop"], ids=repr)
def test_rules_are_rule_objects(given_: Any) -> None:
    assert refusal(Rules, rules=given_).startswith("Rules(rules=…): expected Rule objects, got a ")


@pytest.mark.parametrize("given_", [rule(), 3, None, True], ids=lambda v: type(v).__name__)
def test_rules_are_several(given_: Any) -> None:
    assert refusal(Rules, rules=given_).startswith("Rules(rules=…): expected")


@pytest.mark.parametrize(
    "alpha", [0, 1, -0.1, 5, True, False, math.nan, math.inf, "0.05", None, [0.05], HUGE], ids=lambda v: repr(v)[:9]
)
def test_alpha_is_a_probability(alpha: Any) -> None:
    assert refusal(Rules, alpha=alpha) == f"alpha={alpha!r}: expected a number between 0 and 1, such as 0.05"


@pytest.mark.parametrize("min_pairs", [1, 0, -8, 8.0, True, math.nan, "8", None, [8]], ids=str)
def test_min_pairs_is_a_whole_number_of_at_least_two(min_pairs: Any) -> None:
    assert refusal(Rules, min_pairs=min_pairs) == f"min_pairs={min_pairs!r}: expected a whole number of at least 2"


def test_the_ends_of_what_is_allowed() -> None:
    assert Rules(min_pairs=2, alpha=1e-9).min_pairs == 2
    assert Rules(rules=()).rules == ()


def test_nothing_can_be_changed_afterwards() -> None:
    given_ = [rule()]
    rules = Rules(rules=given_)  # type: ignore[arg-type]
    given_.append(rule(name="later"))
    assert [r.name for r in rules.rules] == ["mine"]
    for thing in (rules, rules.rules[0], Margin(value=0.1)):
        for field in fields(thing):
            with pytest.raises(FrozenInstanceError):
                setattr(thing, field.name, None)
    assert isinstance(DEFAULT_RULES, tuple)
    assert hash(rules) == hash(Rules(rules=(rule(),)))


def test_with_a_rule_more() -> None:
    more = Rules(alpha=0.01, min_pairs=4).with_rule(rule())
    assert by_name(more) == {**by_name(Rules()), "mine": rule()}
    assert (more.alpha, more.min_pairs) == (0.01, 4)
    assert Rules().rules == DEFAULT_RULES


def test_with_a_rule_in_place_of_the_one_of_its_name() -> None:
    own = rule(name="gap-drop", figure="reference_gap", margin=0.5)
    changed = Rules().with_rule(own)
    assert by_name(changed) == {**by_name(Rules()), "gap-drop": own}
    assert len(changed.rules) == len(DEFAULT_RULES)


@pytest.mark.parametrize("given_", ["gap-drop", None, {"name": "x"}], ids=repr)
def test_with_rule_takes_a_rule(given_: Any) -> None:
    assert "expected" in refusal(Rules().with_rule, given_)


def test_asking_for_a_largest_drop_takes_the_place_of_the_drop_rules_of_that_figure() -> None:
    rules, names = Rules(alpha=0.01, min_pairs=4).asking_for(
        max_drop={"reference_gap": "5%", "loss": 0.1}, fail_under={"imacs_r": 0.2}
    )
    gap, loss, floor = (by_name(rules)[name] for name in names)
    assert (gap.kind, gap.figure, gap.margin) == ("drop", "reference_gap", Margin(value=0.05, relative=True))
    assert (loss.kind, loss.higher_is_worse(), loss.margin) == ("drop", True, Margin(value=0.1))
    assert (floor.kind, floor.figure, floor.limit) == ("floor", "imacs_r", 0.2)
    kept = tuple(r for r in DEFAULT_RULES if r.figure not in ("reference_gap", "loss") or r.kind == "collapse")
    assert rules == Rules(rules=(*kept, gap, loss, floor), alpha=0.01, min_pairs=4)


def test_asking_for_nothing_changes_nothing() -> None:
    assert Rules().asking_for(max_drop={}, fail_under={}) == (Rules(), [])


@pytest.mark.parametrize("value", ["abc", True, [1], {}, math.nan], ids=repr)
def test_asking_for_a_wrong_floor_or_drop_names_the_figure(value: Any) -> None:
    assert "imacs_r" in refusal(Rules().asking_for, max_drop={}, fail_under={"imacs_r": value})
    assert "imacs_r" in refusal(Rules().asking_for, max_drop={"imacs_r": value}, fail_under={})


def test_at_least_orders_the_severities() -> None:
    assert SEVERITIES == ("info", "warning", "critical")
    for a, b in itertools.product(range(3), repeat=2):
        assert at_least(SEVERITIES[a], SEVERITIES[b]) is (a >= b)


@pytest.mark.parametrize("pair", [("error", "info"), ("info", "error")])
def test_at_least_names_what_is_no_severity(pair: tuple[Any, Any]) -> None:
    text = refusal(at_least, *pair)
    assert "'error'" in text
    assert all(severity in text for severity in SEVERITIES)


# TOML


def test_a_new_rule_from_toml(tmp_path: Path) -> None:
    rules = from_toml(
        tmp_path,
        """
        [i2am.rules]
        alpha = 0.01
        min_pairs = 4
        [i2am.rules.my-floor]
        kind = "floor"
        figure = "copying_layer/imacs_r"
        limit = 0.1
        severity = "critical"
        patience = 2
        [i2am.rules.my-drop]
        kind = "drop"
        figure = "loss"
        margin = "20%"
        """,
    )
    floor = Rule(
        name="my-floor", kind="floor", figure="copying_layer/imacs_r", limit=0.1, severity="critical", patience=2
    )
    drop = Rule(name="my-drop", kind="drop", figure="loss", margin="20%")
    assert rules == Rules(rules=(*DEFAULT_RULES, floor, drop), alpha=0.01, min_pairs=4)


def test_a_default_rule_is_changed_in_its_place_and_keeps_the_rest(tmp_path: Path) -> None:
    rules = from_toml(tmp_path, '[i2am.rules.information-collapse]\nseverity = "warning"\npatience = 3')
    old = by_name(Rules())["information-collapse"]
    assert by_name(rules)["information-collapse"] == replace(old, severity="warning", patience=3)
    assert by_name(rules)["information-collapse"].nothing == 0.1
    assert list(by_name(rules)) == [r.name for r in DEFAULT_RULES]
    assert [r for r in rules.rules if r.name != old.name] == [r for r in DEFAULT_RULES if r.name != old.name]


def test_a_changed_figure_brings_its_own_direction() -> None:
    (changed,) = (r for r in Rules.from_table({"gap-drop": {"figure": "loss"}}).rules if r.name == "gap-drop")
    assert changed.higher_is_worse()  # a loss is worse when it rises, whatever the gap is
    (kept,) = (
        r for r in Rules.from_table({"gap-drop": {"figure": "loss", "direction": "down"}}).rules if r.name == "gap-drop"
    )
    assert kept.direction == "down"


def test_a_default_rule_can_be_dropped(tmp_path: Path) -> None:
    rules = from_toml(tmp_path, "[i2am.rules.gap-drop]\nenabled = false")
    assert rules.rules == tuple(r for r in DEFAULT_RULES if r.name != "gap-drop")


def test_enabled_true_changes_nothing(tmp_path: Path) -> None:
    assert from_toml(tmp_path, "[i2am.rules.gap-drop]\nenabled = true") == Rules()


def test_without_the_defaults(tmp_path: Path) -> None:
    only = from_toml(tmp_path, '[i2am.rules]\ndefaults = false\n[i2am.rules.mine]\nkind = "drop"\nfigure = "imacs_r"')
    assert only.rules == (rule(),)
    assert from_toml(tmp_path, "[i2am.rules]\ndefaults = false").rules == ()
    assert from_toml(tmp_path, "[i2am.rules]\ndefaults = true") == Rules()


@pytest.mark.parametrize(
    "text",
    [
        "[tool.i2am.rules]\nalpha = 0.2",
        "i2am = 3\n[tool.i2am.rules]\nalpha = 0.2",
        "[i2am]\n[tool.i2am.rules]\nalpha = 0.2",
    ],
)
def test_the_table_may_be_a_tools(tmp_path: Path, text: str) -> None:
    assert from_toml(tmp_path, text) == Rules(alpha=0.2)


def test_other_tables_are_not_ours(tmp_path: Path) -> None:
    assert from_toml(tmp_path, "[tool.ruff]\nalpha = 3\n[i2am]\nsteps = 8\n[i2am.rules]\nalpha = 0.2") == Rules(
        alpha=0.2
    )


def test_a_path_may_be_a_string(tmp_path: Path) -> None:
    from_toml(tmp_path, "[i2am.rules]\nalpha = 0.2")
    assert Rules.from_toml(str(tmp_path / "i2am.toml")) == Rules(alpha=0.2)


def test_a_table_is_left_as_it_was() -> None:
    table = {
        "defaults": False,
        "alpha": 0.1,
        "mine": {"kind": "drop", "figure": "loss", "enabled": True, "margin": "3%"},
    }
    kept = copy.deepcopy(table)
    Rules.from_table(table)
    assert table == kept


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert refusal(Rules.from_toml, tmp_path / "no.toml") == (
        f"the rules {tmp_path / 'no.toml'} can't be read: No such file or directory"
    )
    assert refusal(Rules.from_toml, tmp_path) == f"the rules {tmp_path} can't be read: Is a directory"


@pytest.mark.parametrize(
    "content",
    [b"[i2am.rules", b"alpha = ", b"a = 1\na = 2", b"[i2am.rules]\nalpha = 0,05", b"\xff\xfe\x00", b'{"i2am": {}}'],
    ids=repr,
)
def test_what_is_not_toml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "i2am.toml"
    path.write_bytes(content)
    assert refusal(Rules.from_toml, path).startswith(f"{path} is not TOML: ")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[i2am]\nsteps = 8",
        "i2am = 3",
        "i2am = [1]",
        "[[i2am]]\nrules = 3",
        "[i2am]\nrules = 3",
        "[i2am]\nrules = [1]",
        "[i2am]\nrules = ['gap-drop']",
        "[[i2am.rules]]\nname = 'gap-drop'",
        "tool = 3",
        "tool = [1]",
        "[[tool]]\ni2am = 3",
        "[tool]\ni2am = 3",
        "[tool.i2am]\nrules = [1]",
        "[rules]\nalpha = 0.1",
    ],
    ids=repr,
)
def test_a_file_without_the_table_says_which(tmp_path: Path, text: str) -> None:
    assert "[i2am.rules]" in refusal_of_toml(tmp_path, text)


@pytest.mark.parametrize(
    "line, expected",
    [
        ("alfa = 0.1", "alfa: unknown; expected alpha, min_pairs, defaults or a table for a rule"),
        ("gap-drop = false", "gap-drop: to leave out this rule write enabled = false in a table of its name"),
        ("gap-drop = [1]", "gap-drop: to leave out this rule write enabled = false in a table of its name"),
        ("rules = []", "rules: unknown; expected alpha, min_pairs, defaults or a table for a rule"),
        ("alpha = 'x'", "alpha='x': expected a number between 0 and 1, such as 0.05"),
        ("alpha = true", "alpha=True: expected a number between 0 and 1, such as 0.05"),
        ("alpha = nan", "alpha=nan: expected a number between 0 and 1, such as 0.05"),
        ("alpha = 5", "alpha=5: expected a number between 0 and 1, such as 0.05"),
        ("alpha = 2020-01-01", "alpha=datetime.date(2020, 1, 1): expected a number between 0 and 1, such as 0.05"),
        ("min_pairs = '8'", "min_pairs='8': expected a whole number of at least 2"),
        ("min_pairs = 8.0", "min_pairs=8.0: expected a whole number of at least 2"),
        ("min_pairs = [8]", "min_pairs=[8]: expected a whole number of at least 2"),
        ("defaults = 0", "defaults=0: expected true or false"),
        ("defaults = 'false'", "defaults='false': expected true or false"),
    ],
    ids=lambda v: v[:24],
)
def test_a_wrong_option_is_named(tmp_path: Path, line: str, expected: str) -> None:
    assert refusal_of_toml(tmp_path, f"[i2am.rules]\n{line}") == f": [i2am.rules]: {expected}"


@pytest.mark.parametrize("option", ["alpha", "min_pairs", "defaults"])
def test_an_option_that_is_a_table_is_named(tmp_path: Path, option: str) -> None:
    assert option in refusal_of_toml(tmp_path, f"[i2am.rules.{option}]\nvalue = 0.1")


ODD_TOML = [
    "1",
    "0.5",
    "true",
    "false",
    "nan",
    "'x'",
    "''",
    "[]",
    "[1]",
    "{a = 1}",
    "2020-01-01",
    "12:30:00",
]
FIT_TOML = {
    "severity": [],
    "kind": [],
    "figure": ["'x'"],
    "direction": [],
    "limit": {"undefined-for-most": ["0.5"]},
    "margin": {"gap-drop": ["1", "0.5"]},
    "margins": {"gap-drop": ["1", "0.5"], "gap-collapse": ["1"], "undefined-for-most": ["1"]},
    "nothing": ["1", "0.5"],
    "patience": ["1"],
    "enabled": ["true", "false"],
}


@pytest.mark.parametrize("key", FIT_TOML)
@pytest.mark.parametrize("default", ["gap-drop", "gap-collapse", "undefined-for-most"])
def test_a_wrong_value_in_a_rule_names_rule_and_key(tmp_path: Path, default: str, key: str) -> None:
    for value in ODD_TOML:
        text = f"[i2am.rules.{default}]\n{key} = {value}"
        fit = FIT_TOML[key]
        if value in (fit.get(default, []) if isinstance(fit, dict) else fit):
            from_toml(tmp_path, text)
            continue
        told = refusal_of_toml(tmp_path, text)
        assert told.startswith(f": [i2am.rules]: rule '{default}': "), value
        assert key in told, value


@pytest.mark.parametrize("key", ["severty", "name", "alpha", "defaults", "rules"])
def test_an_unknown_key_of_a_rule_is_named_with_those_there_are(tmp_path: Path, key: str) -> None:
    told = refusal_of_toml(tmp_path, f"[i2am.rules.gap-drop]\n{key} = 'x'")
    assert told == (
        f": [i2am.rules]: rule 'gap-drop': {key}: unknown; "
        "expected kind, figure, severity, direction, limit, margin, margins, nothing, patience or enabled"
    )


@pytest.mark.parametrize(
    "lines, expected",
    [
        ("severity = 'info'", "not a default rule, so it needs kind and figure"),
        ("kind = 'drop'", "not a default rule, so it needs figure"),
        ("figure = 'loss'", "not a default rule, so it needs kind"),
        ("enabled = false", "enabled=false, but there is no default rule of that name"),
        ("kind = 'floor'\nfigure = 'loss'", "a floor needs limit=, a number such as 0.1; got None"),
    ],
)
def test_a_rule_that_is_new_must_be_whole(tmp_path: Path, lines: str, expected: str) -> None:
    told = refusal_of_toml(tmp_path, f"[i2am.rules.gap-dorp]\n{lines}")
    assert told.startswith(f": [i2am.rules]: rule 'gap-dorp': {expected}")


def test_a_wrong_value_in_a_tools_table_names_the_file_too(tmp_path: Path) -> None:
    assert re.search(r"i2am\.rules\]: alpha='x'", refusal_of_toml(tmp_path, "[tool.i2am.rules]\nalpha = 'x'"))


@pytest.mark.parametrize("table", [[], ["gap-drop"], 3, None, "gap-drop"], ids=repr)
def test_what_is_no_table_is_refused(table: Any) -> None:
    assert "expected" in refusal(Rules.from_table, table)


plain = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from([*KINDS, *SEVERITIES, "up", "down", "*", "imacs_r", "loss", "10%", "0.1", "x", ""]),
    st.lists(st.integers(0, 2), max_size=2),
    st.dictionaries(st.sampled_from(["a", "value"]), st.integers(), max_size=1),
)
keys = st.sampled_from([*(f.name for f in fields(Rule)), "enabled", "unheard"])
tables = st.dictionaries(
    st.sampled_from(["alpha", "min_pairs", "defaults", "gap-drop", "undefined", "gap-collapse", "new", "unheard"]),
    st.one_of(plain, st.dictionaries(keys, plain, max_size=5)),
    max_size=4,
)


@given(tables)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_any_table_gives_rules_or_a_value_error_that_names_one_of_its_keys(table: dict[str, Any]) -> None:
    try:
        rules = Rules.from_table(table)
    except ValueError as error:
        assert any(key in str(error) for key in table), str(error)
        return
    assert rules == Rules(rules=rules.rules, alpha=rules.alpha, min_pairs=rules.min_pairs)
    for name, own in table.items():
        if isinstance(own, Mapping):
            found = by_name(rules).get(name)
            assert (found is None) is (own.get("enabled", True) is False)
            for key in own.keys() - {"enabled", "margin"}:
                assert found is None or getattr(found, key) == own[key]


@given(st.sets(st.sampled_from([r.name for r in DEFAULT_RULES])))
@steady
def test_any_of_the_default_rules_can_be_dropped_together(dropped: set[str]) -> None:
    rules = Rules.from_table({name: {"enabled": False} for name in dropped})
    assert rules.rules == tuple(r for r in DEFAULT_RULES if r.name not in dropped)


def test_a_further_reference_has_the_margins_and_directions_of_the_first() -> None:
    for figure in ("reference_mass", "imacs_g", "drift/js_r2g"):
        first, second = (Rule(name="r", kind="drop", figure=f"{who}{figure}") for who in ("", "reference_12/"))
        assert second.higher_is_worse() == first.higher_is_worse() == figure.startswith("drift")
        assert second.margin_for({}) == first.margin_for({})
    calibrated = {"reference_1/imacs_g": 0.5}
    assert Rule(name="r", kind="drop", figure="reference_1/imacs_g").margin_for(calibrated) == Margin(value=0.5)
    assert Rule(name="r", kind="drop", figure="reference_x/imacs_g").margin_for({}) is None
