"""When findings are an alert, and what the alert tells a person who was woken by it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2am_debug.alerts.alert import Alert, can_be_diagnosed, headline, look_first, make_alert, what_broke
from i2am_debug.alerts.alert_state import AlertState
from i2am_debug.alerts.causes import CAUSES, UNKNOWN
from i2am_debug.alerts.diagnosis import Diagnosis
from i2am_debug.alerts.judge import Finding
from i2am_debug.alerts.rule import Rule
from i2am_debug.alerts.rules import Rules
from i2am_debug.figures.record import Evaluation
from i2am_debug.figures.values import Undefined

pytestmark = pytest.mark.filterwarnings("error")

COPYING = "layer/up/imacs_r_hole"
BROKEN = Undefined("not a finite number")
HIGH, LOW = (0.9,) * 8, (0.1,) * 8
ALTERNATING = (0.1, -0.1) * 4
FALLS = Rules(rules=(Rule(name="x falls", kind="drop", figure="x", margin=0.3),))
TWO_FLOORS = Rules(
    rules=(
        Rule(name="low", kind="floor", figure="x", limit=0.5),
        Rule(name="very low", kind="floor", figure="x", limit=0.2, severity="critical"),
    )
)


def evaluation(figures: dict[str, Sequence[Any]], step: int = 0) -> Evaluation:
    columns = {tag: tuple(v if isinstance(v, Undefined) else float(v) for v in vs) for tag, vs in figures.items()}
    return Evaluation(
        global_step=step,
        pairs=tuple(f"pair {i}" for i in range(len(next(iter(columns.values()))))),
        figures=columns,
        errors={},
        layers=("down", "up"),
        copying_layer="up",
        reference_lines={},
        fingerprint={},
    )


def watched(
    rules: Rules, *seen: dict[str, Sequence[Any]] | Sequence[Any], outside: bool = False, resumed: bool = False
) -> list[Alert | None]:
    """The answer to each evaluation (columns of x, or figures), at steps 0, 100, …; the first is the baseline.

    If `outside`, the baseline is another run's and not judged. If `resumed`, the run is stopped and resumed before each.
    """
    every = [evaluation(s if isinstance(s, dict) else {"x": s}, 100 * i) for i, s in enumerate(seen)]
    history = every[1:] if outside else every
    watch, out = AlertState(rules), []
    for i in range(len(history)):
        if resumed:
            known = {figure: list(state) for figure, state in watch.alerting.items()}
            watch = AlertState(rules, json.loads(json.dumps(known)))
        out.append(watch.judge(every[0], history[: i + 1]))
    return out


def steps(alerts: list[Alert | None]) -> list[int]:
    return [alert.global_step for alert in alerts if alert is not None]


def finding(figure: str = "x", kind: str = "drop", **changes: Any) -> Finding:
    known = {"rule": "a rule", "severity": "warning", "fired": True, **changes}
    return Finding(kind=kind, figure=figure, **known)


# -- when ----------------------------------------------------------------------------------------------------------------


def test_nothing_is_said_of_a_healthy_run() -> None:
    assert watched(FALLS, HIGH, HIGH, (0.8,) * 8, (1.5,) * 8) == [None] * 4
    assert watched(Rules(rules=()), HIGH, LOW) == [None] * 2


def test_a_figure_that_stays_fallen_alerts_once() -> None:
    assert steps(watched(FALLS, HIGH, HIGH, LOW, LOW, LOW, LOW, LOW, LOW)) == [200]


def test_it_alerts_again_after_three_quiet_evaluations_and_not_after_two() -> None:
    assert steps(watched(FALLS, HIGH, LOW, HIGH, HIGH, HIGH, LOW)) == [100, 500]
    assert steps(watched(FALLS, HIGH, LOW, HIGH, HIGH, LOW, HIGH, HIGH, LOW)) == [100]


@pytest.mark.parametrize("resumed", [False, True])
@settings(max_examples=50, deadline=None, derandomize=True)
@given(fallen=st.lists(st.booleans(), max_size=14))
def test_a_fall_is_news_if_the_three_evaluations_before_it_were_quiet(resumed: bool, fallen: list[bool]) -> None:
    alerts = watched(FALLS, HIGH, *(LOW if low else HIGH for low in fallen), resumed=resumed)
    news = [100 * i for i, low in enumerate([False, *fallen]) if low and not any([False, *fallen][max(0, i - 3) : i])]
    assert steps(alerts) == news


def test_it_alerts_again_when_it_gets_more_severe_and_not_when_less() -> None:
    alerts = watched(TWO_FLOORS, HIGH, (0.4,) * 8, (0.4,) * 8, LOW, LOW, (0.4,) * 8)
    assert steps(alerts) == [100, 300]
    assert [alert.severity for alert in alerts if alert] == ["warning", "critical"]


def test_a_figure_that_was_critical_is_not_news_when_it_is_critical_again_soon() -> None:
    # A collapse whose p comes and goes around 0.05 on a figure that stays fallen must not wake a person each time.
    between = (0.4,) * 8
    assert steps(watched(TWO_FLOORS, HIGH, LOW, between, LOW, between, between, LOW)) == [100]


def test_another_figure_that_falls_is_news_and_is_told_with_the_first() -> None:
    rules = FALLS.with_rule(Rule(name="y falls", kind="drop", figure="y", margin=0.3))
    good, one, both = ({"x": x, "y": y} for x, y in ((HIGH, HIGH), (LOW, HIGH), (LOW, LOW)))
    alerts = watched(rules, good, one, one, both, both)
    assert steps(alerts) == [100, 300]
    assert [[f.figure for f in alert.findings] for alert in alerts if alert] == [["x"], ["x", "y"]]


def test_a_fall_is_news_although_one_pair_has_been_undefined_for_long() -> None:
    rules = FALLS.with_rule(Rule(name="undefined", kind="undefined", figure="*"))
    nine, one_lost, fallen = (0.9,) * 9, (*HIGH, BROKEN), (*LOW, BROKEN)
    alerts = watched(rules, nine, one_lost, one_lost, fallen)
    assert steps(alerts) == [100, 300]


def test_several_rules_of_one_evaluation_are_one_alert() -> None:
    alerts = watched(TWO_FLOORS.with_rule(FALLS.rules[0]), HIGH, LOW)
    (alert,) = (a for a in alerts if a)
    assert [f.rule for f in alert.findings] == ["low", "very low", "x falls"]
    assert alert.severity == "critical"
    lines = [line for line in alert.text.splitlines() if line.startswith("- x")]
    assert len(lines) == 1 and lines[0].endswith("[rules x falls, low, very low]")  # the most telling first


def test_what_is_remembered_is_plain_and_taken_up_again() -> None:
    watch = AlertState(TWO_FLOORS)
    seen = [evaluation({"x": column}, 100 * i) for i, column in enumerate((HIGH, LOW, HIGH, HIGH, HIGH))]
    known = []
    for i in range(5):
        watch.judge(seen[0], seen[: i + 1])
        known.append(dict(watch.alerting))
    assert known == [{}, {"x": ("critical", 0)}, {"x": ("critical", 1)}, {"x": ("critical", 2)}, {}]
    for state in known:
        assert AlertState(TWO_FLOORS, json.loads(json.dumps(state))).alerting == state


def test_a_resumed_watch_does_not_change_the_state_it_was_given() -> None:
    state = {"x": ["warning", 1]}
    AlertState(FALLS, state).judge(evaluation({"x": HIGH}), [evaluation({"x": HIGH})])
    assert state == {"x": ["warning", 1]}


def test_an_unjudged_rule_does_not_alert() -> None:
    assert watched(FALLS, [BROKEN] * 8, LOW, LOW) == [None] * 3


# -- since when ----------------------------------------------------------------------------------------------------------


def first(alerts: list[Alert | None]) -> Alert:
    return next(alert for alert in alerts if alert is not None)


@pytest.mark.parametrize("outside", [False, True])
def test_fine_is_the_last_evaluation_before_the_fall(outside: bool) -> None:
    assert first(watched(FALLS, HIGH, HIGH, HIGH, LOW, outside=outside)).fine_at == 200
    at_once = first(watched(FALLS, HIGH, LOW, outside=outside))
    assert (at_once.global_step, at_once.baseline_step, at_once.fine_at) == (100, 0, 0)


def test_a_patient_rule_tells_when_it_began() -> None:
    patient = Rules(rules=(Rule(name="x falls", kind="drop", figure="x", margin=0.3, patience=3),))
    alert = first(watched(patient, HIGH, HIGH, LOW, HIGH, LOW, LOW, LOW))
    assert (alert.global_step, alert.fine_at) == (600, 300)


@pytest.mark.parametrize("outside", [False, True])
def test_a_baseline_that_was_beyond_the_limit_itself_was_not_fine(outside: bool) -> None:
    alert = first(watched(TWO_FLOORS, LOW, LOW, LOW, outside=outside))
    assert alert.fine_at is None
    assert "fine at" not in alert.text


@pytest.mark.parametrize("outside", [False, True])
def test_a_baseline_that_never_had_anything_was_not_fine(outside: bool) -> None:
    rules = Rules(rules=(Rule(name="gone", kind="collapse", figure="x", severity="critical"),))
    alert = first(watched(rules, ALTERNATING, ALTERNATING, outside=outside))
    assert "neither at the baseline nor now" in alert.text
    assert alert.fine_at is None


@pytest.mark.parametrize("kind", ["floor", "collapse", "undefined"])
def test_an_evaluation_at_which_a_rule_held_already_was_not_fine(kind: str) -> None:
    other = Rule(name="other", kind=kind, figure="y", limit=0.5 if kind == "floor" else None)  # type: ignore[arg-type]
    bad = {"floor": LOW, "collapse": ALTERNATING, "undefined": [BROKEN] * 8}[kind]
    good, one, both = ({"x": x, "y": y} for x, y in ((HIGH, HIGH), (HIGH, bad), (LOW, bad)))
    alerts = watched(FALLS.with_rule(other), good, good, one, one, both)
    assert steps(alerts) == [200, 400]
    assert alerts[2] and alerts[2].fine_at == 100
    assert alerts[4] and alerts[4].fine_at == 100  # at 200 and 300 y was gone


def test_a_patient_collapse_tells_when_it_began() -> None:
    rules = Rules(rules=(Rule(name="gone", kind="collapse", figure="x", patience=2),))
    alert = first(watched(rules, HIGH, HIGH, ALTERNATING, ALTERNATING))
    assert (alert.global_step, alert.fine_at) == (300, 100)


# -- what it says --------------------------------------------------------------------------------------------------------


def test_an_alert_says_what_happened_since_when_how_sure_for_whom_and_why() -> None:
    rules = Rules(
        rules=(
            Rule(name="copying-layer-drop", kind="drop", figure="copying_layer/imacs_r_hole"),
            Rule(name="gap-drop", kind="drop", figure="reference_gap", severity="critical"),
        )
    )
    good = {COPYING: (0.75,) * 8, "reference_gap": (0.5,) * 8}
    bad = {COPYING: (0.5, 0.0, 0.25, *[0.375] * 5), "reference_gap": (0.25, 0.125, *[0.25] * 6)}
    text = first(watched(rules, good, good, bad)).text
    head, _, causes, _, copying, gap, _, pairs = text.splitlines()
    assert head == "critical: the model draws less on its reference at step 200 (baseline: step 0; fine at step 100)"
    assert copying.startswith("- layer/up/imacs_r_hole: 0.750 [0.750, 0.750] → 0.328 [")
    assert "worse by 0.422 (56%), allowed 0.15 (20%); p = 0.0039, 8 pairs; against the baseline, step 0" in copying
    assert copying.endswith(" [rule copying-layer-drop]") and gap.endswith(" [rule gap-drop]")
    assert "- reference_gap: 0.500 [0.500, 0.500] → 0.234 [" in gap and "allowed 0.1 (20%)" in gap
    # The gap fell most in pairs 1, 0, 2 and the other in 1, 2, 3: two are named twice.
    assert pairs == "Validation pairs that show it most: pair 1, pair 2, pair 3"
    assert causes == f"- Look first at: {look_first([])}"


def test_pairs_named_by_more_findings_come_first_and_at_most_three_are_named() -> None:
    found = (finding(pairs=("a", "b", "c")), finding(pairs=("d", "b", "c")), finding(pairs=("c",)))
    alert = Alert(global_step=1, baseline_step=0, fine_at=None, findings=found)
    assert alert.pairs == ("c", "b", "a")
    assert "Validation pairs that show it most: c, b, a" in alert.text


def test_without_pairs_or_a_fine_evaluation_there_is_no_word_of_them() -> None:
    alert = Alert(global_step=7, baseline_step=7, fine_at=None, findings=(finding(words="is gone"),))
    assert alert.pairs == ()
    assert "Pairs" not in alert.text and "fine at" not in alert.text and "None" not in alert.text


def test_few_pairs_are_told() -> None:
    text = first(watched(FALLS, (0.9,) * 3, (0.1,) * 3)).text
    assert "too few pairs for a test, 3 pairs" in text


def test_a_loss_of_values_is_told_with_its_reason() -> None:
    rules = FALLS.with_rule(Rule(name="undefined", kind="undefined", figure="*"))
    text = first(watched(rules, HIGH, [BROKEN] * 8)).text
    assert text.startswith("warning: figures have no value any more for some pairs at step 100")
    assert "- x is undefined for 8 of 8 pairs that had it: not a finite number [rule undefined]" in text
    assert "Look first at: weights that are not finite" in text


def test_what_was_learned_after_a_baseline_of_nothing_and_is_lost_again_is_told_as_lost() -> None:
    rules = Rules(
        rules=(
            Rule(name="gone", kind="collapse", figure="x", severity="critical"),
            Rule(name="below best", kind="drop_from_best", figure="x", margin=0.3),
        )
    )
    last = watched(rules, ALTERNATING, *[HIGH] * 5, ALTERNATING)[-1]
    assert last is not None and last.fine_at == 500
    assert "0.900" in last.text  # not only that there is nothing now, as there was at the baseline


GONE, LESS = "the model no longer uses its reference", "the model draws less on its reference"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([finding("reference_gap", "collapse", severity="critical")], GONE),
        ([finding("reference_gap", "collapse", severity="critical"), finding("imacs_r")], GONE),
        ([finding("reference_gap", "collapse")], "the model does not use its reference"),
        ([finding("reference_gap")], LESS),
        ([finding("loss"), finding(COPYING, "drop_from_best")], LESS),
        ([finding("imacs_g_centred", "undefined"), finding("reference_gap")], LESS),
        ([finding("imacs_g_centred", "floor")], "imacs_g_centred is beyond its limit"),
        ([finding("imacs_g_centred", "floor"), finding("imacs_r")], LESS),
        ([finding("loss")], "the figures are worse than allowed"),
        ([finding("imacs_r", "undefined")], "figures have no value any more for some pairs"),
        (
            [finding("imacs_r", "undefined"), finding("loss", "undefined", severity="critical")],
            "figures have no value any more",
        ),
    ],
)
def test_the_headline_is_of_the_gravest_finding(found: list[Finding], expected: str) -> None:
    assert headline(found) == expected
    assert headline(found[::-1]) == expected


@pytest.mark.parametrize(
    "found",
    [
        [finding("imacs_r", "undefined"), finding("loss")],  # what has no value did not fall
        [finding("reference_mass", "ceiling")],  # that is more, not less
    ],
)
def test_the_headline_claims_no_fall_that_was_not_seen(found: list[Finding]) -> None:
    assert headline(found) != LESS


@pytest.mark.parametrize(
    ("found", "present"),
    [
        ([finding("reference_gap", "collapse")], "encoder"),
        ([finding("x", "undefined"), finding("reference_gap", "collapse")], "not finite"),
        ([finding("imacs_r")], "panels"),
    ],
)
def test_where_to_look_first_when_nothing_was_diagnosed(found: list, present: str) -> None:
    assert present in look_first(found)
    assert what_broke(found, None) == [f"Look first at: {look_first(found)}"]


DIAGNOSIS = Diagnosis(
    global_step=7,
    likelihoods=(("mask", 0.8), ("target", 0.15), (UNKNOWN, 0.05)),
    changes={
        "loss": math.log(2.5),
        "IMACS_g": -0.1,
        "kept place": -0.01,  # nothing
        "harm of the reference mirrored, beside the gap": 0.2,
        "harm of the hole inverted, beside the gap": -0.5,
        "harm of a blank reference, beside the gap": -0.1,
    },
)


def test_a_diagnosis_gives_the_headline_the_causes_and_what_to_look_at() -> None:
    fallen = (finding("reference_gap", severity="critical"),)
    alert = Alert(global_step=7, baseline_step=0, fine_at=0, findings=fallen, diagnosis=DIAGNOSIS)
    assert alert.headline == CAUSES["mask"].headline
    assert alert.text.startswith(f"critical: {CAUSES['mask'].headline} at step 7")
    assert "What broke, by likelihood, as of step 7: mask 80%, target 15%, none of these 5%" in alert.text
    assert f"- Look first at: {CAUSES['mask'].first}\n- Then at: {CAUSES['target'].first}" in alert.text
    less = "the hole inverted -50%, a blank reference -10%"
    told = f"loss +150%; these harm less than they did, beyond the fall of the gap: {less}"
    assert f"It rests on: {told}" in alert.text
    assert "docs/what-broke.md#mask\n" in alert.text
    unclear = replace(alert, diagnosis=replace(DIAGNOSIS, likelihoods=((UNKNOWN, 0.8), ("mask", 0.2))))
    assert (
        "How each kind shows itself: docs/what-broke.md\n" in unclear.text
        and "Look first at: the masks" in unclear.text
    )


def test_a_diagnosis_that_is_unsure_makes_no_headline() -> None:
    unsure = replace(DIAGNOSIS, likelihoods=(("mask", 0.45), ("range", 0.4), (UNKNOWN, 0.15)))
    unknown = replace(DIAGNOSIS, likelihoods=((UNKNOWN, 0.9), ("mask", 0.1)))
    for diagnosis in (unsure, unknown):
        assert headline([finding("reference_gap")], diagnosis) == LESS
    of_a_group = replace(DIAGNOSIS, likelihoods=(("mask", 0.45), ("target", 0.4), (UNKNOWN, 0.15)))
    assert headline([finding("reference_gap")], of_a_group) == "something beside the reference broke"
    told = "".join(what_broke([finding("reference_gap")], unknown))
    assert (
        "docs/what-broke.md#" not in told and "What broke is not known, as of step 7" in told and "%" not in told[:150]
    )
    assert "What broke, by likelihood" in what_broke([finding("reference_gap")], unsure)[0]


def test_what_changed_nothing_that_the_model_achieves_is_told_so_whatever_it_looks_like() -> None:
    found = [finding("imacs_r", severity="info")]
    assert headline(found, DIAGNOSIS) == "where it looks has changed, what it achieves has not"


def test_weights_that_stay_the_same_are_told_in_front() -> None:
    found = [finding("*", "unchanged", words="is what it was"), finding("imacs_r")]
    assert headline(found, DIAGNOSIS) == "the weights that are evaluated are not those that are trained"
    assert "EMA" in what_broke(found, DIAGNOSIS)[0]


@pytest.mark.parametrize(
    ("found", "can"),
    [
        ([finding("imacs_r")], True),
        ([finding("imacs_r", "drop_from_best")], True),
        ([finding("reference_gap", "collapse", severity="critical")], True),
        ([finding("reference_gap", "collapse")], False),  # never was
        ([finding("imacs_r", "floor")], False),
        ([finding("imacs_r", "undefined")], False),
    ],
)
def test_only_what_got_worse_is_diagnosed(found: list, can: bool) -> None:
    assert can_be_diagnosed(found) == can


# -- kept ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "seen"),
    [
        (TWO_FLOORS.with_rule(FALLS.rules[0]), [HIGH, HIGH, (0.1, *[0.2] * 7)]),
        (FALLS, [(0.9, 0.9, BROKEN), (0.1, 0.1, BROKEN)]),
        (Rules(), [{"reference_gap": HIGH, "loss": HIGH}, {"reference_gap": ALTERNATING, "loss": HIGH}]),
        (Rules(), [{"loss": HIGH}, {"loss": [BROKEN] * 8}]),
    ],
    ids=["several rules", "few pairs", "collapse", "undefined"],
)
def test_an_alert_survives_json(rules: Rules, seen: list) -> None:
    alert = replace(first(watched(rules, *seen)), panels={"pair 1": "alerts/step_00000100/pair_01.png"})
    row = json.loads(json.dumps(alert.to_json(), allow_nan=False))
    back = Alert.from_json(row)
    assert back == alert
    told = replace(alert, diagnosis=DIAGNOSIS)
    assert Alert.from_json(json.loads(json.dumps(told.to_json()))) == told
    assert (row["text"], row["severity"]) == (back.text, back.severity) == (alert.text, alert.severity)


def test_an_alert_is_of_the_last_evaluation() -> None:
    history = [evaluation({"x": HIGH}, step) for step in (10, 20, 30)]
    alert = make_alert(history[0], history, iter([finding(since=30), finding(since=20)]))
    assert (alert.global_step, alert.baseline_step, alert.fine_at, len(alert.findings)) == (30, 10, 10, 2)


@pytest.mark.parametrize("severities", [("info",), ("info", "critical", "warning"), ("warning", "info")])
def test_an_alert_is_as_severe_as_its_gravest_finding(severities: tuple[str, ...]) -> None:
    alert = Alert(global_step=1, baseline_step=0, fine_at=None, findings=tuple(finding(severity=s) for s in severities))
    order = ["info", "warning", "critical"]
    assert alert.severity == order[max(map(order.index, severities))]


def test_the_default_rules_wake_nobody_for_noise_and_once_for_a_collapse() -> None:
    rng = np.random.default_rng(5)
    levels = {COPYING: 0.8, "imacs_g_centred": 0.3, "attention_information": 2.0, "reference_gap": 0.1, "loss": 0.5}
    own = {tag: level * rng.uniform(0.7, 1.3, 12) for tag, level in levels.items()}

    def seen(share: float) -> dict[str, np.ndarray]:
        noise = {tag: 0.02 * level * rng.standard_normal(12) for tag, level in levels.items()}
        return {tag: v * (share if tag != "loss" else 1) + noise[tag] for tag, v in own.items()}

    alerts = watched(Rules(), *(seen(1.0) for _ in range(8)), *(seen(0.0) for _ in range(5)))
    assert steps(alerts) == [800]
    alert = first(alerts)
    assert (alert.severity, alert.fine_at) == ("critical", 700)
    assert alert.text.startswith(f"critical: {GONE} at step 800 (baseline: step 0; fine at step 700)")
