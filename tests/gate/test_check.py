"""The verdict over a run and a baseline: against plain loops and closed forms, and never a pass where nothing was judged."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_runs import COPYING, COUNT, column, evaluation, maps, sick, write_baseline, write_run

from i2am_debug.alerts.rule import Rule
from i2am_debug.alerts.rules import Rules
from i2am_debug.figures.record import Evaluation
from i2am_debug.figures.values import Undefined
from i2am_debug.gate.check import Verdict, check, in_words
from i2am_debug.gate.exit_codes import ExitCode
from i2am_debug.store.find_run import find_evaluation, find_store
from i2am_debug.store.run_store import RunStore

NAN = Undefined("not a finite number")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_baseline(tmp_path / "baseline.safetensors", evaluation())


def only(*rules: Rule, **options: Any) -> Rules:
    return Rules(rules=rules, **options)


def drop(figure: str, margin: Any = 0.1, **options: Any) -> Rule:
    return Rule(name="a rule", kind="drop", figure=figure, margin=margin, **options)


def floor(figure: str, limit: float, **options: Any) -> Rule:
    return Rule(name="a rule", kind="floor", figure=figure, limit=limit, **options)


def asking(max_drop: dict[str, Any] | None = None, fail_under: dict[str, float] | None = None) -> dict[str, Any]:
    """What --max-drop and --fail-under come to."""
    rules, names = Rules().asking_for(max_drop=max_drop or {}, fail_under=fail_under or {})
    return {"rules": rules, "asked_for": names}


def seen(verdict: Verdict) -> tuple[str, ExitCode]:
    return verdict.status, verdict.exit_code


# -- pass and regression ----------------------------------------------------------------------------------------------


def test_the_same_figures_pass(base: Path) -> None:
    verdict = check(evaluation(100), base)
    assert seen(verdict) == ("pass", ExitCode.OK)
    assert verdict.headline == "pass: step 100 against step 0: nothing is worse than allowed"
    assert (verdict.regressions, verdict.problems, verdict.pairs) == ((), (), {})


def test_a_fall_is_a_regression_of_that_figure_alone(base: Path) -> None:
    verdict = check(sick(), base)
    assert seen(verdict) == ("regression", ExitCode.FAILED)
    assert {f.figure for f in verdict.regressions} == {"reference_gap"}
    assert verdict.headline == "regression: step 100 against step 0: worse than allowed: reference_gap"


def test_a_rise_of_what_should_be_high_passes(base: Path) -> None:
    assert check(evaluation(100, {"reference_gap": column(0.6)}), base).status == "pass"


@given(
    st.lists(st.tuples(*[st.sampled_from([-0.3, -0.1, 0.0, 0.1, 0.2, 0.4])] * 2), min_size=8, max_size=8),
    st.sampled_from([0.02, 0.1, 0.2]),
    st.sampled_from([0.01, 0.05, 0.3]),
)
@settings(max_examples=40, deadline=None)
def test_max_drop_is_a_margin_and_a_sign_flip_test(
    tmp_path_factory: Any, rows: list, margin: float, alpha: float
) -> None:
    before, after = zip(*rows, strict=True)
    path = tmp_path_factory.mktemp("b") / "b.safetensors"
    write_baseline(path, evaluation(0, {"imacs_g": before}, count=8))
    now = evaluation(100, {"imacs_g": after}, count=8)
    verdict = check(now, path, rules=only(drop("imacs_g", margin), alpha=alpha))
    fell = [b - a for b, a in rows]
    patterns = itertools.product((1, -1), repeat=8)
    reached = sum(sum(s * d for s, d in zip(signs, fell, strict=True)) >= sum(fell) - 1e-9 for signs in patterns)
    beyond = sum(fell) / 8 - margin
    if abs(beyond) > 1e-9:  # at the margin itself rounding may decide
        assert (verdict.status == "regression") == (beyond > 0 and reached / 256 < alpha)


def test_a_share_is_of_the_baselines_mean(base: Path) -> None:
    now = evaluation(100, {"imacs_g": column(0.3 * 0.89)})
    assert check(now, base, rules=only(drop("imacs_g", "10%"))).status == "regression"
    assert check(now, base, rules=only(drop("imacs_g", "12%"))).status == "pass"


def test_a_loss_gets_worse_upwards(base: Path) -> None:
    rules = only(drop("loss", "10%"))
    assert check(evaluation(100, {"loss": column(0.03)}), base, rules=rules).status == "regression"
    assert check(evaluation(100, {"loss": column(0.01)}), base, rules=rules).status == "pass"


def test_the_copying_layer_is_the_baselines(base: Path) -> None:
    now = evaluation(100, {COPYING: column(0.1), "layer/down/imacs_r_hole": column(0.4)}, copying_layer="down")
    verdict = check(now, base, rules=only(drop("copying_layer/imacs_r_hole")))
    assert [f.figure for f in verdict.regressions] == [COPYING]


def test_calibrated_margins_of_the_baseline_are_used(tmp_path: Path) -> None:
    now = evaluation(100, {"imacs_g_centred": column(0.35)})  # falls by 0.05, the default margin is 0.15
    strict = write_baseline(tmp_path / "strict.safetensors", evaluation(margins={"imacs_g_centred": 0.02}))
    loose = write_baseline(tmp_path / "loose.safetensors", evaluation())
    assert [f.figure for f in check(now, strict).regressions] == ["imacs_g_centred"]
    assert check(now, loose).status == "pass"


def test_what_is_less_severe_than_fail_on_is_shown_and_passes(base: Path) -> None:
    rules = only(floor("imacs_r", 0.9, severity="info"))
    for fail_on, status in (("info", "regression"), ("warning", "pass"), ("critical", "pass")):
        verdict = check(evaluation(100), base, rules=rules, fail_on=fail_on)
        assert verdict.status == status and verdict.findings[0].fired


# -- not comparable -----------------------------------------------------------------------------------------------------


def test_without_a_baseline_it_is_not_comparable_and_says_how_to_make_one(tmp_path: Path) -> None:
    verdict = check(evaluation(), tmp_path / "none.safetensors")
    assert seen(verdict) == ("not comparable", ExitCode.NOT_COMPARABLE)
    assert f"baseline save RUN -o {tmp_path / 'none.safetensors'}" in verdict.headline


@pytest.mark.parametrize("content", [b"", b"nonsense" * 40, b"\x10\0\0\0\0\0\0\0{}              "])
def test_a_broken_baseline_is_not_comparable(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    verdict = check(evaluation(), path)
    assert seen(verdict) == ("not comparable", ExitCode.NOT_COMPARABLE)
    assert str(path) in verdict.headline


@pytest.mark.parametrize(
    ("fingerprint", "words"),
    [
        ({"pairs": [], "seed": 0, "plan": {"heads": 64}}, "pairs (0, was 10, 0 of them the same)"),
        ({"seed": 7}, "seed (7, was 0)"),
        ({"plan": {"heads": 8}}, "plan.heads (8, was 64)"),
        ({"scheduler": "DDIM"}, "scheduler ('DDIM', was None)"),
    ],
)
def test_another_fingerprint_is_not_comparable_and_says_in_what(base: Path, fingerprint: dict, words: str) -> None:
    now = evaluation(100, fingerprint={**evaluation().fingerprint, **fingerprint})
    verdict = check(now, base)
    assert seen(verdict) == ("not comparable", ExitCode.NOT_COMPARABLE)
    assert words in verdict.headline and verdict.findings == ()


def test_a_long_difference_is_shortened_and_still_shows_what_differs() -> None:
    ours, theirs = [f"{i:012x}" for i in range(16)], [f"{i:012x}" for i in range(15)] + ["another"]
    words = in_words({"pairs": (ours, theirs)})
    left, _, right = words.removeprefix("pairs (").partition(", was ")
    assert len(words) < 200
    assert left != right.removesuffix(")")  # two texts that look the same tell nobody anything


def test_too_few_pairs_are_not_comparable(tmp_path: Path) -> None:
    base = write_baseline(tmp_path / "b.safetensors", evaluation(count=7))
    verdict = check(sick(count=7), base)
    assert seen(verdict) == ("not comparable", ExitCode.NOT_COMPARABLE)
    assert "7 pairs, at least 8 are needed (--min-pairs" in verdict.headline
    assert check(sick(count=7), base, rules=Rules(min_pairs=7)).status == "regression"


@pytest.mark.parametrize("lost", [1, 5, COUNT])
def test_a_figure_that_lost_its_values_is_not_comparable(base: Path, lost: int) -> None:
    verdict = check(evaluation(100, {"imacs_g_centred": (NAN,) * lost + column(0.4)[lost:]}), base)
    assert seen(verdict) == ("not comparable", ExitCode.NOT_COMPARABLE)
    assert len(set(verdict.problems)) == len(verdict.problems)  # two rules saw it, one line tells it
    words = f"imacs_g_centred is undefined for {lost} of {COUNT} pairs that had it: not a finite number"
    assert words in verdict.problems and verdict.problems[0] in verdict.headline


def test_a_regression_counts_more_than_a_lost_figure(base: Path) -> None:
    now = evaluation(100, {"reference_gap": column(0.006), "imacs_g_centred": (NAN,) * COUNT})
    verdict = check(now, base)
    assert verdict.status == "regression" and len(verdict.problems) == 1


def test_a_figure_that_most_pairs_never_had_is_too_few_pairs(tmp_path: Path) -> None:
    few = (NAN,) * 7 + (0.4, 0.41, 0.42)
    base = write_baseline(tmp_path / "b.safetensors", evaluation(0, {"imacs_g": few}))
    verdict = check(evaluation(100, {"imacs_g": few}), base, **asking({"imacs_g": 0.03}))
    assert seen(verdict) == ("not comparable", ExitCode.NOT_COMPARABLE)
    assert "imacs_g has a value for 3 pairs, at least 8 are needed" in verdict.problems[0]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (asking({"reference_mass": 0.1}), "reference_mass could not be judged: not in this family"),
        (asking(None, {"reference_mass": 0.1}), "reference_mass could not be judged: not in this family"),
    ],
)
def test_what_was_asked_for_and_cannot_be_judged_is_a_problem(base: Path, asked: dict, words: str) -> None:
    assert check(evaluation(100), base).status == "pass"  # by default it is a remark
    verdict = check(evaluation(100), base, **asked)
    assert seen(verdict) == ("not comparable", ExitCode.NOT_COMPARABLE)
    assert words in verdict.headline


def test_a_share_of_a_figure_around_zero_was_asked_for_in_vain(tmp_path: Path) -> None:
    noise = (0.1, -0.1) * 5
    base = write_baseline(tmp_path / "b.safetensors", evaluation(0, {"imacs_g": noise}))
    verdict = check(evaluation(100, {"imacs_g": column(-0.5)}), base, **asking({"imacs_g": "10%"}))
    assert seen(verdict) == ("not comparable", ExitCode.NOT_COMPARABLE)
    assert "not above 0 at its baseline" in verdict.headline


def test_an_unknown_figure_is_named_with_those_like_it(base: Path) -> None:
    with pytest.raises(ValueError, match="no figure 'imacs_q'; did you mean .*imacs_g"):
        check(evaluation(), base, **asking(None, {"imacs_q": 0.2}))


# -- never a pass where nothing was judged -------------------------------------------------------------------------------


def never_a_pass(verdict: Verdict) -> None:
    assert verdict.exit_code != ExitCode.OK, verdict.headline


def test_no_rules_at_all_are_no_pass(base: Path) -> None:
    never_a_pass(check(sick(), base, rules=only()))


def test_a_lost_figure_is_no_pass_without_an_undefined_rule(base: Path) -> None:
    never_a_pass(check(evaluation(100, {"imacs_g": (NAN,) * COUNT}), base, rules=only(drop("imacs_g"))))


def test_a_floor_on_a_lost_figure_is_no_pass(base: Path) -> None:
    never_a_pass(check(evaluation(100, {"imacs_g": (NAN,) * COUNT}), base, rules=only(floor("imacs_g", 0.2))))


def test_a_rule_without_a_margin_is_no_pass(base: Path) -> None:
    rules = only(Rule(name="a rule", kind="drop", figure="layer/up/imacs_r_hole"))  # has no default margin
    never_a_pass(check(evaluation(100, {COPYING: column(0.01)}), base, rules=rules))


def test_a_baseline_without_any_value_is_no_pass(tmp_path: Path) -> None:
    nothing = {tag: (NAN,) * COUNT for tag in evaluation().figures}
    base = write_baseline(tmp_path / "b.safetensors", evaluation(0, nothing))
    never_a_pass(check(sick(), base))


@pytest.mark.parametrize("values", [(NAN,) * COUNT, (math.nan,) * COUNT, (0.06,) + (math.inf,) * (COUNT - 1)])
def test_a_figure_that_only_the_run_has_is_no_pass(tmp_path: Path, values: tuple) -> None:
    """A run whose gap fell to a tenth, against a baseline that never had one."""
    base = write_baseline(tmp_path / "b.safetensors", evaluation(0, {"reference_gap": values}))
    for target in (sick(), evaluation(100)):
        verdict = check(target, base)
        assert seen(verdict) == ("not comparable", ExitCode.NOT_COMPARABLE)
        (problem,) = verdict.problems
        assert problem.startswith("reference_gap can't be judged (rules gap-drop, ")
        assert "the baseline has no value of it" in problem and "not a finite number" in problem
    if values[0] != 0.06:  # one pair that both have is too few, as two are
        assert check(evaluation(100, {"reference_gap": values}), base).status == "pass"


def test_a_figure_that_the_baseline_had_of_other_pairs_is_no_pass(tmp_path: Path) -> None:
    gap = column(0.06)
    base = write_baseline(
        tmp_path / "b.safetensors", evaluation(0, {"reference_gap": (*gap[:2], *(NAN,) * (COUNT - 2))})
    )
    verdict = check(
        evaluation(100, {"reference_gap": (NAN, *column(0.006)[1:])}), base, rules=only(drop("reference_gap"))
    )
    assert verdict.status == "not comparable" and "reference_gap could not be judged" in verdict.problems[0]


def test_a_copying_layer_that_only_the_run_has_is_no_pass(tmp_path: Path) -> None:
    none = evaluation(0, {COPYING: (NAN,) * COUNT}, copying_layer=Undefined("no rows"))
    base = write_baseline(tmp_path / "b.safetensors", none)
    verdict = check(evaluation(100), base)
    assert verdict.status == "not comparable"
    assert "copying_layer/imacs_r_hole can't be judged" in verdict.problems[0] and "no rows" in verdict.problems[0]
    assert check(replace(none, global_step=100), base).status == "pass"


@pytest.mark.parametrize(
    ("count", "options"), [(8, {"alpha": 0.003}), (4, {"min_pairs": 4}), (16, {"alpha": 5e-5}), (2, {"min_pairs": 2})]
)
def test_a_test_that_can_never_be_significant_is_no_pass(tmp_path: Path, count: int, options: dict) -> None:
    # The smallest p of n pairs is 2^-n, and 1/10001 where patterns are drawn: below it no fall of whatever size counts.
    base = write_baseline(tmp_path / "b.safetensors", evaluation(count=count))
    never_a_pass(
        check(
            evaluation(100, {"imacs_g": column(-0.9, count=count)}, count=count),
            base,
            rules=only(drop("imacs_g", 0.01), **options),
        )
    )


# -- a run: its history, its best, its patience ---------------------------------------------------------------------------


def gaps(tmp_path: Path, levels: Sequence[float], **options: Any) -> Path:
    """A run whose reference gap goes so, one evaluation every 10 steps."""
    rows = [evaluation(10 * i, {"reference_gap": column(level)}, **options) for i, level in enumerate(levels)]
    return write_run(tmp_path / "run", rows)


def test_the_last_evaluation_is_judged_or_that_at_a_step(tmp_path: Path, base: Path) -> None:
    run = gaps(tmp_path, [0.06, 0.06, 0.006])
    verdict = check(run, base)
    assert verdict.status == "regression"
    assert verdict.evaluation is not None and verdict.evaluation.global_step == 20
    assert verdict.evaluation_file is not None and verdict.evaluation_file.name == "step_00000020.safetensors"
    assert check(run, base, step=10).status == "pass"


def test_step_zero_can_be_asked_for(tmp_path: Path, base: Path) -> None:
    verdict = check(gaps(tmp_path, [0.06, 0.006]), base, step=0)
    assert verdict.evaluation is not None and verdict.evaluation.global_step == 0


@pytest.mark.parametrize(
    ("levels", "fired"),
    [
        ([0.06, 0.006, 0.006], True),
        ([0.06, 0.06, 0.006], False),
        ([0.006, 0.06, 0.006], False),
        ([0.006, 0.006, 0.06], False),
    ],
)
def test_patience_counts_the_runs_evaluations_in_a_row(tmp_path: Path, base: Path, levels: list, fired: bool) -> None:
    verdict = check(gaps(tmp_path, levels), base, rules=only(drop("reference_gap", "10%", patience=2)))
    assert (verdict.status == "regression") == fired


def test_patience_counts_evaluations_up_to_the_step_only(tmp_path: Path, base: Path) -> None:
    run = gaps(tmp_path, [0.06, 0.06, 0.006, 0.006])
    rules = only(drop("reference_gap", "10%", patience=2))
    assert check(run, base, rules=rules).status == "regression"
    assert check(run, base, rules=rules, step=20).status == "pass"


def test_a_fall_from_the_runs_best_three_is_seen_though_above_the_baseline(tmp_path: Path, base: Path) -> None:
    rules = only(Rule(name="a rule", kind="drop_from_best", figure="reference_gap", margin=0.05))
    levels = [0.06, 0.2, 0.22, 0.18, 0.1]
    verdict = check(gaps(tmp_path, levels), base, rules=rules)
    assert verdict.status == "regression"
    (found,) = verdict.findings
    assert found.before is not None and found.before.mean == pytest.approx((0.2 + 0.22 + 0.18) / 3)
    assert found.against == "best so far, steps 10 to 30"


def test_the_best_is_of_what_came_before_the_step(tmp_path: Path, base: Path) -> None:
    rules = only(Rule(name="a rule", kind="drop_from_best", figure="reference_gap", margin=0.05))
    run = gaps(tmp_path, [0.06, 0.06, 0.06, 0.06, 0.3, 0.3, 0.3, 0.1])
    assert check(run, base, rules=rules).status == "regression"
    assert check(run, base, rules=rules, step=30).status == "pass"


def test_evaluations_that_are_not_comparable_with_the_baseline_are_no_history(tmp_path: Path, base: Path) -> None:
    other = {"fingerprint": {"seed": 9}}
    rows = [evaluation(10 * i, {"reference_gap": column(0.5)}, **other) for i in range(4)]
    run = write_run(tmp_path / "run", [*rows, evaluation(100), evaluation(110), evaluation(120), evaluation(130)])
    assert check(run, base).status == "pass"


def test_a_run_whose_index_another_version_wrote_is_judged_all_the_same(tmp_path: Path, base: Path) -> None:
    # Its lines hold a hash of the fingerprint as that version made it; the fingerprints themselves are equal.
    run = gaps(tmp_path, [0.06, 0.006])
    index = RunStore(run).index
    index.write_text(index.read_text().replace(evaluation().comparable_id, "0123456789ab"))
    assert check(run, base).status == "regression"


def test_a_superseded_attempt_is_no_history(tmp_path: Path, base: Path) -> None:
    run = gaps(tmp_path, [0.06, 0.5, 0.5, 0.5, 0.006])
    RunStore(run).resume(0)
    write_run(run, [evaluation(10), evaluation(20), evaluation(30), evaluation(40)])
    assert check(run, base).status == "pass"


def test_an_evaluations_file_is_judged_alone(tmp_path: Path, base: Path) -> None:
    run = gaps(tmp_path, [0.5, 0.5, 0.5, 0.06])
    assert check(run, base).status == "regression"  # below its best
    assert check(RunStore(run).folder / "step_00000030.safetensors", base).status == "pass"


def test_a_step_of_a_single_file_is_refused(tmp_path: Path, base: Path) -> None:
    with pytest.raises(ValueError, match="--step is for a run; .*baseline.safetensors is one evaluation"):
        check(base, base, step=3)


# -- distances --------------------------------------------------------------------------------------------------------


def far(limit: float, figure: str = "drift/js_r2g") -> Rules:
    return only(Rule(name="a rule", kind="ceiling", figure=figure, limit=limit))


@pytest.mark.parametrize(("peak", "distance"), [(0, 0.0), (5, 1.0)])
@pytest.mark.parametrize("figure", ["drift/js_r2g", "drift/js_g2r"])
def test_distances_are_to_the_baseline_given(
    tmp_path: Path, base: Path, figure: str, peak: int, distance: float
) -> None:
    # Disjoint maps are 1 apart, equal ones 0; what the run itself wrote, against its own baseline, says the opposite.
    row = evaluation(10, {figure: (1.0 - distance,) * COUNT})
    run = write_run(tmp_path / "run", [row], [maps(peak=peak)])
    (found,) = check(run, base, rules=far(0.5, figure)).findings
    assert found.now is not None and found.now.mean == pytest.approx(distance)
    assert found.fired == (distance > 0.5)


@pytest.mark.parametrize(("peak", "distance"), [(0, 0.0), (5, 1.0)])
def test_distances_of_a_further_reference_are_to_the_baseline_given(tmp_path: Path, peak: int, distance: float) -> None:
    figure = "reference_1/drift/js_g2r"

    def of_both(peak: int) -> dict[str, np.ndarray]:
        own = maps(peak=3)  # the first reference's, the same throughout
        return own | {name.replace("/", "/reference_1/", 1): a for name, a in maps(peak=peak).items()}

    first = evaluation(0, {figure: (Undefined("no baseline"),) * COUNT})
    base = write_baseline(tmp_path / "b.safetensors", first, of_both(0))
    row = evaluation(10, {figure: (1.0 - distance,) * COUNT})
    run = write_run(tmp_path / "run", [row], [of_both(peak)])
    (found,) = check(run, base, rules=far(0.5, figure)).findings
    assert found.now is not None and found.now.mean == pytest.approx(distance)
    assert found.fired == (distance > 0.5)


def test_distances_of_a_history_are_to_the_baseline_given_too(tmp_path: Path, base: Path) -> None:
    rows = [evaluation(i, {"drift/js_r2g": (0.0,) * COUNT}) for i in (0, 10, 20)]
    run = write_run(tmp_path / "run", rows, [maps(peak=0), maps(peak=5), maps(peak=5)])
    (found,) = check(run, base, rules=far(0.5)).findings
    assert found.fired and found.since == 10


def test_the_best_distance_so_far_is_to_the_baseline_given_too(tmp_path: Path, base: Path) -> None:
    rows = [evaluation(10 * i) for i in range(4)]  # the run itself had no distances
    run = write_run(tmp_path / "run", rows, [maps(), maps(), maps(), maps(peak=5)])
    rules = only(Rule(name="a rule", kind="drop_from_best", figure="drift/js_r2g", margin=0.5))
    (found,) = check(run, base, rules=rules).findings
    assert found.fired and found.change is not None and found.change.mean == pytest.approx(1)


def test_distances_are_by_pair(tmp_path: Path, base: Path) -> None:
    mixed = {**maps(peak=0), "3/r2g/unified": maps(peak=5)["3/r2g/unified"]}
    run = write_run(tmp_path / "run", [evaluation(10)], [mixed])
    (found,) = check(run, base, rules=far(0.05)).findings
    assert found.pairs == ("pair 3",)
    assert found.now is not None and found.now.mean == pytest.approx(1 / COUNT)


@pytest.mark.parametrize("of", ["run", "baseline"])
def test_a_missing_map_leaves_its_distance_undefined(tmp_path: Path, of: str) -> None:
    without = maps(names=("r2g",))
    base = write_baseline(tmp_path / "b.safetensors", evaluation(), without if of == "baseline" else None)
    run = write_run(tmp_path / "run", [evaluation(10)], [without if of == "run" else maps()])
    verdict = check(run, base, rules=far(0.5, "drift/js_g2r"), asked_for=["a rule"])
    assert seen(verdict) == ("not comparable", ExitCode.NOT_COMPARABLE)
    assert "no map of it is stored" in verdict.headline


def test_maps_of_another_size_leave_their_distance_undefined(tmp_path: Path, base: Path) -> None:
    small = {f"{i}/r2g/unified": np.full((2, 2), 0.25, dtype=np.float32) for i in range(COUNT)}
    run = write_run(tmp_path / "run", [evaluation(10)], [small])
    verdict = check(run, base, rules=far(0.5), asked_for=["a rule"])
    assert seen(verdict) == ("not comparable", ExitCode.NOT_COMPARABLE)
    assert "2x2" in verdict.headline and "4x4" in verdict.headline


# -- the pairs to blame -----------------------------------------------------------------------------------------------


def blamed(verdict: Verdict) -> list[str]:
    return list(verdict.pairs or {})


def test_pairs_beyond_the_margin_are_blamed_worst_first(tmp_path: Path) -> None:
    falls = [0.3, 0.0, 0.5, 0.09, -0.4, 0.2, 0.4, 0.45, 0.6, 0.11]
    base = write_baseline(tmp_path / "b.safetensors", evaluation(0, {"imacs_g": (0.5,) * COUNT}))
    now = evaluation(100, {"imacs_g": [0.5 - fall for fall in falls]})
    verdict = check(now, base, rules=only(drop("imacs_g", 0.1)))
    worst = sorted((i for i in range(COUNT) if falls[i] > 0.1), key=lambda i: -falls[i])
    assert blamed(verdict) == [f"pair {i}" for i in worst]
    assert (verdict.pairs or {})["pair 2"] == ("imacs_g: 0.5 → 0",)


def test_pairs_whose_loss_rose_are_blamed(tmp_path: Path) -> None:
    rises = [0.3, 0.0, 0.5, 0.09, -0.4, 0.2, 0.4, 0.45, 0.6, 0.11]
    base = write_baseline(tmp_path / "b.safetensors", evaluation(0, {"loss": (0.5,) * COUNT}))
    verdict = check(evaluation(100, {"loss": [0.5 + r for r in rises]}), base, rules=only(drop("loss", 0.1)))
    worst = sorted((i for i in range(COUNT) if rises[i] > 0.1), key=lambda i: -rises[i])
    assert blamed(verdict) == [f"pair {i}" for i in worst]


def test_pairs_below_a_floor_are_blamed_worst_first(tmp_path: Path) -> None:
    # Pair 7 is the lowest though it changed least.
    before, after = [0.9] * COUNT, [0.5, 0.15, 0.9, 0.9, 0.9, 0.9, 0.1, 0.05, 0.9, 0.9]
    before[7] = 0.06
    base = write_baseline(tmp_path / "b.safetensors", evaluation(0, {"imacs_r": before}))
    verdict = check(evaluation(100, {"imacs_r": after}), base, rules=only(floor("imacs_r", 0.7)))
    assert blamed(verdict)[:3] == ["pair 7", "pair 6", "pair 1"]


def test_every_pair_below_a_floor_is_blamed(base: Path) -> None:
    verdict = check(evaluation(100), base, rules=only(floor("imacs_r", 0.9)))
    assert len(blamed(verdict)) == COUNT


def test_pairs_that_went_farthest_are_blamed_worst_first(tmp_path: Path, base: Path) -> None:
    parts = [0.1, 0.7, 0.2, 0.8, 0.3, 0.9, 0.4, 0.6, 0.5, 0.05]
    found = {}
    for i, part in enumerate(parts):
        found[f"{i}/r2g/unified"] = np.array([[1 - part, part]], dtype=np.float32)
    here = {f"{i}/r2g/unified": np.array([[1.0, 0.0]], dtype=np.float32) for i in range(COUNT)}
    base = write_baseline(base, evaluation(), here)
    run = write_run(tmp_path / "run", [evaluation(10)], [found])
    verdict = check(run, base, rules=far(0.05))
    assert blamed(verdict)[:3] == ["pair 5", "pair 3", "pair 1"]


# -- where a run is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["", "plugins/i2am_debug", ".."])
def test_a_run_is_found_from_its_own_plugin_and_parent_folder(tmp_path: Path, given: str) -> None:
    run = write_run(tmp_path / "logs" / "run", [evaluation()])
    assert find_store(run / given).index.resolve() == RunStore(run).index.resolve()


@pytest.mark.parametrize(
    ("working", "given"),
    [
        ("run/plugins/i2am_debug", "."),
        ("run/plugins", "i2am_debug"),
        ("run", "."),
        ("run", "plugins/i2am_debug"),
        (".", "run"),
        (".", "."),
        ("run/plugins/i2am_debug", "../i2am_debug"),
    ],
)
def test_a_run_is_found_from_within(tmp_path: Path, monkeypatch: Any, working: str, given: str) -> None:
    run = write_run(tmp_path / "run", [evaluation()])
    monkeypatch.chdir(tmp_path / working)
    assert find_store(given).index.resolve() == RunStore(run).index


def test_several_runs_are_listed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_run(tmp_path / name, [evaluation()])
    with pytest.raises(ValueError, match="holds several runs; say which: .*one, .*two"):
        find_store(tmp_path)


def test_very_many_runs_are_counted(tmp_path: Path) -> None:
    for i in range(11):
        write_run(tmp_path / f"run_{i:02d}", [evaluation()], [{}])
    with pytest.raises(ValueError, match=r"run_07, … \(11 in all\)"):
        find_store(tmp_path)


def test_no_run_and_no_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run: there is no plugins/i2am_debug/index.jsonl in or below it"):
        find_store(tmp_path)
    with pytest.raises(ValueError, match="there is no run and no evaluation at .*nowhere"):
        find_store(tmp_path / "nowhere")


def test_a_run_without_evaluations_says_so(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    store.folder.mkdir(parents=True)
    store.index.touch()
    with pytest.raises(ValueError, match="holds no evaluation yet"):
        find_evaluation(find_store(tmp_path), None)


@pytest.mark.parametrize(
    ("count", "listed"), [(3, "it has 0, 10, 20"), (12, "it has 0, 10, 20, 30, …, 80, 90, 100, 110")]
)
def test_a_step_that_is_not_there_is_told_with_those_that_are(tmp_path: Path, count: int, listed: str) -> None:
    run = write_run(tmp_path / "run", [evaluation(10 * i) for i in range(count)], [{}] * count)
    with pytest.raises(ValueError, match="no evaluation at step 5; ") as error:
        find_evaluation(RunStore(run), 5)
    assert str(error.value).endswith(listed)


def test_a_run_whose_file_is_gone_can_not_be_judged(tmp_path: Path, base: Path) -> None:
    run = write_run(tmp_path / "run", [evaluation()])
    (RunStore(run).folder / "step_00000000.safetensors").unlink()
    verdict = check(run, base)
    assert seen(verdict) == ("not comparable", ExitCode.NOT_COMPARABLE)
    assert re.search("no evaluation at .*step_00000000", verdict.problems[0])


def test_the_baselines_margins_are_no_difference(base: Path) -> None:
    now: Evaluation = replace(evaluation(100), margins={"imacs_g": 0.5})
    assert check(now, base).status == "pass"
