"""The benchmark of the alerts judges what it says it judges; a short form of it, with one real fine-tune."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stored_runs import column, evaluation, write_run

from benchmarks import alert_runs, alerts, diagnosis
from benchmarks.alert_runs import Plan
from i2am_debug.alerts.causes import CAUSES
from i2am_debug.demo.demo_model import demo_model


def made(
    folder: Path,
    plan: Plan,
    gaps: list[float],
    psnr: list[float],
    *,
    spoilt: list[float] | None = None,
    loss_fn: list[float] | None = None,
) -> None:
    """A run as the benchmark leaves it: a reference gap and a picture quality for each evaluation, every 8 steps.

    `loss_fn` are the gaps that a callback with a loss function saw, `spoilt` those of pairs with the fault; without either only
    the callback without a loss looked.
    """

    def rows(levels: list[float], loss: float) -> list:
        return [
            evaluation(8 * i, {"reference_gap": column(g), "loss": column(loss * (1 + 1e-9 * i))}, count=10)
            for i, g in enumerate(levels)
        ]

    run = plan.run(folder)
    write_run(run, rows(gaps, 0.04))
    if loss_fn is not None or spoilt is not None:
        write_run(run / "loss_fn", rows(gaps if loss_fn is None else loss_fn, 0.02))
    if spoilt is not None:
        write_run(run / "spoilt", rows(spoilt, 0.08))
    (run / "done.json").write_text(json.dumps({"psnr": {8 * i: q for i, q in enumerate(psnr)}}))


HEALTHY = {8 * i: 16.0 for i in range(10)}


def plan_that_breaks_early(kind: str) -> Plan:
    return next(p for seed in range(100) if (p := Plan(model="inpainting", kind=kind, seed=seed)).sabotage_step == 20)


def test_a_fault_is_detected_within_two_evaluations_or_late(tmp_path: Path) -> None:
    plan = plan_that_breaks_early("shuffle")  # after step 20: evaluations 24 and 32 count
    for gaps, delay in (([0.06] * 3 + [0.03] * 4, 1), ([0.06] * 4 + [0.03] * 3, 2), ([0.06] * 5 + [0.03] * 2, 3)):
        made(tmp_path, plan, gaps, [16, 16, 16, 15, 13, 12, 12], spoilt=[0.06] * 7)
        judged = alerts.judge_run(plan, tmp_path, HEALTHY)
        assert judged["detectors"]["default rules"]["delay"] == delay
        assert judged["detectors"]["attention alone"]["delay"] is None
        assert judged["cost_db"] == 3.0  # at step 32
        assert judged["healthy_evaluations"] == 2  # steps 8 and 16


def test_an_alert_before_the_fault_is_a_false_alarm(tmp_path: Path) -> None:
    plan = plan_that_breaks_early("shuffle")
    made(tmp_path, plan, [0.06, 0.03] + [0.06] * 5, [16] * 7, spoilt=[0.06] * 7)
    judged = alerts.judge_run(plan, tmp_path, HEALTHY)
    assert judged["detectors"]["default rules"] == {"false_alarms": [8], "delay": None, "rules": []}
    found = alerts.summary([judged])["default rules"]
    assert (found["false_alarms"], found["healthy_evaluations"], found["costly_abrupt_runs"]) == (1, 2, 0)


def test_a_loss_that_gets_the_bug_jumps_and_one_that_had_it_does_not(tmp_path: Path) -> None:
    plan = plan_that_breaks_early("shuffle")
    made(tmp_path, plan, [0.06] * 7, [16, 16, 16, 15, 13, 12, 12], spoilt=[0.06] * 7)
    detectors = alerts.judge_run(plan, tmp_path, HEALTHY)["detectors"]
    assert detectors["loss, bug enters both"]["delay"] == 1
    assert detectors["loss, bug from the start"]["delay"] is detectors["clean loss"]["delay"] is None


@pytest.mark.parametrize(
    ("kind", "step", "share"),
    [("healthy", 72, 0), ("drop", 20, 0), ("drop", 24, 0.9), ("learning-rate", 24, 0), ("gradual", 16, 0)],
)
def test_the_share_of_wrong_pairs(kind: str, step: int, share: float) -> None:
    plan = (
        Plan(model="inpainting", kind=kind, seed=0) if kind in ("healthy", "gradual") else plan_that_breaks_early(kind)
    )
    assert alert_runs.wrong_share(plan, step) == share


def test_a_gradual_fault_grows_by_a_twentieth_every_evaluation() -> None:
    shares = [alert_runs.wrong_share(Plan(model="inpainting", kind="gradual", seed=0), 16 + 8 * i) for i in range(5)]
    assert shares == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def test_a_cheap_fault_need_not_be_noticed_and_a_missed_one_is_named(tmp_path: Path) -> None:
    plan = plan_that_breaks_early("flip")
    runs = []
    for cost in (0.9, 1.1):
        made(tmp_path, plan, [0.06] * 7, [16, 16, 16, 16, 16 - cost, 15, 15], spoilt=[0.06] * 7)
        runs.append(alerts.judge_run(plan, tmp_path, HEALTHY))
    found = alerts.summary(runs)["default rules"]
    assert (found["costly_abrupt_runs"], found["detected_within_two"]) == (1, 0)
    assert found["missed"] == [f"flip seed {plan.seed}"]
    assert "0 of 1 [0, 79] %" in alerts.as_markdown(alerts.summary(runs))


def test_shares_have_wilsons_interval() -> None:
    assert alerts.wilson(0, 0) is None
    assert alerts.wilson(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)  # Newcombe 1998's method 3 by hand


def test_each_callback_is_judged_by_what_it_saw(tmp_path: Path) -> None:
    plan = plan_that_breaks_early("shuffle")
    fine, broken = [0.06] * 7, [0.06] * 3 + [0.03] * 4
    made(tmp_path, plan, broken, [16, 16, 16, 15, 13, 12, 12], loss_fn=fine)
    detectors = alerts.judge_run(plan, tmp_path, HEALTHY)["detectors"]
    assert detectors["default rules"]["delay"] == 1 and detectors["default rules, loss_fn"]["delay"] is None
    assert detectors["attention alone"]["delay"] is detectors["IMACS as in the paper"]["delay"] is None
    made(tmp_path / "bare alone", plan, broken, [16, 16, 16, 15, 13, 12, 12])
    alone = alerts.judge_run(plan, tmp_path / "bare alone", HEALTHY)["detectors"]
    assert set(alone) == {d.name for d in alerts.DETECTORS if d.sees == "bare"}


def test_what_costs_little_should_wake_nobody(tmp_path: Path) -> None:
    plan = plan_that_breaks_early("shuffle")
    made(tmp_path, plan, [0.06] * 3 + [0.03] * 4, [16, 16, 16, 16, 15.8, 15, 15])
    found = alerts.summary([alerts.judge_run(plan, tmp_path, HEALTHY)])["default rules"]
    assert found["cheap_runs"] == 1 and found["cried_over_cheap"] == [f"shuffle seed {plan.seed}"]


@pytest.mark.parametrize(("model", "broken_weights"), [("inpainting", "encoder"), ("edit", "attention")])
def test_every_fault_of_a_model_is_run_and_has_its_kind(model: str, broken_weights: str) -> None:
    kinds = set(alert_runs.kinds(model))
    assert kinds == {
        *alert_runs.SETTINGS,
        *("shuffle-from-0", f"{broken_weights}-from-0"),
        *demo_model(model).sabotages,
    }
    faults = {k for k in kinds if not k.startswith("healthy") and not k.endswith("-from-0") and k != "stale"}
    assert faults <= set(diagnosis.CAUSE_OF) and set(diagnosis.CAUSE_OF.values()) == set(CAUSES)


@pytest.mark.parametrize(("kind", "changed"), [("flip", "reference"), ("shift-target", "target")])
def test_pairs_get_the_fault_of_the_training_data(kind: str, changed: str) -> None:
    demo = demo_model("edit")
    pairs = demo.validation_pairs()[:3]
    for clean, wrong in zip(pairs, alert_runs.spoil_pairs(pairs, demo.sabotages[kind], seed=0), strict=True):
        same = {name for name in ("reference", "target") if getattr(clean, name) == getattr(wrong, name)}
        assert same == {"reference", "target"} - {changed}
        assert (wrong.name, wrong.prompt, wrong.mask) == (clean.name, clean.prompt, None)


def test_a_run_is_made_once_and_a_real_fault_is_found(tmp_path: Path) -> None:
    plan = Plan(model="inpainting", kind="encoder-from-0", seed=0)
    assert list(alert_runs.make_runs([plan], tmp_path, workers=1)) == [plan]
    done = plan.run(tmp_path) / "done.json"
    written = done.stat().st_mtime_ns
    assert list(alert_runs.make_runs([plan], tmp_path, workers=1)) == [plan] and done.stat().st_mtime_ns == written
    judged = alerts.judge_run(plan, tmp_path, HEALTHY)
    assert judged["detectors"]["default rules"]["delay"] == 1 and judged["cost_db"] > 3
    assert judged["detectors"]["clean loss"]["delay"] is None  # there is nothing it could have got worse than
