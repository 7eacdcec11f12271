"""How soon the alerts notice that a fine-tune goes wrong, how often they cry for nothing, and what a loss would have seen.

`python -m benchmarks.alerts --json F` fine-tunes the tiny model with the callback, healthy and with every fault of
`demo.sabotage`, from two seeds (--long: from ten), and judges what the callback stored by several sets of rules. A run that
is in --folder already is not made again, so a benchmark that was cut off goes on. `benchmarks/alert_runs.py` makes the runs.

"Detected" means an alert at one of the two evaluations after the fault. "Cost" is how much worse the pictures are than those of
the healthy run of the same seed at the second of them: peak signal-to-noise ratio in the hole, dB.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.alert_runs import EVALUATIONS_AFTER, GROWING, Plan, kinds, make_runs, wrong_share
from i2am_debug.alerts.alert_state import AlertState
from i2am_debug.alerts.rule import Rule, Severity, at_least
from i2am_debug.alerts.rules import Rules
from i2am_debug.figures.record import Evaluation
from i2am_debug.store.run_store import RunStore

SHORT, LONG = range(2), range(10)
COSTLY = 1.0  # dB; a fault that costs less need not be noticed


def _drops(*figures: str) -> Rules:
    return Rules(
        rules=tuple(Rule(name=f"{f} {k}", kind=k, figure=f) for f in figures for k in ("drop", "drop_from_best"))
    )


@dataclass(frozen=True, kw_only=True)
class Detector:
    """Rules, and which validation pairs they see."""

    name: str
    rules: Rules
    pairs: str
    """"clean"; "spoilt": with the training data's fault from the start of the run; "joined": from the fault's start on."""
    severity: Severity = "warning"
    """What counts as an alert."""


def _without(*figures: str) -> Rules:
    return Rules(rules=tuple(rule for rule in Rules().rules if rule.figure not in figures))


DETECTORS = (
    Detector(name="default rules", rules=Rules(), pairs="clean"),
    Detector(name="default, critical", rules=Rules(), pairs="clean", severity="critical"),
    Detector(name="without the loss", rules=_without("loss"), pairs="clean"),
    Detector(name="attention alone", rules=_without("loss", "reference_gap"), pairs="clean"),
    Detector(name="IMACS as in the paper", rules=_drops("imacs_g", "imacs_r"), pairs="clean"),
    Detector(name="clean loss", rules=_drops("loss"), pairs="clean"),
    Detector(name="loss, bug enters both", rules=_drops("loss"), pairs="joined"),
    Detector(name="loss, bug from the start", rules=_drops("loss"), pairs="spoilt"),
    Detector(name="default rules, bug from the start", rules=Rules(), pairs="spoilt"),
)


def judge_run(plan: Plan, folder: Path, healthy_psnr: dict[int, float]) -> dict[str, Any]:
    """What each detector made of one run."""
    run = folder / plan.name
    clean = _evaluations(run)
    spoilt = _evaluations(run / "spoilt") or clean
    psnr = {int(step): value for step, value in json.loads((run / "done.json").read_text())["psnr"].items()}
    series = {
        "clean": clean,
        "spoilt": spoilt,
        "joined": [_joined(plan, a, b) for a, b in zip(clean, spoilt, strict=True)],
    }
    broken_at = plan.sabotage_step
    after = [e.global_step for e in clean if broken_at is not None and e.global_step > broken_at]
    deadline = after[1] if after else None
    return {
        "kind": plan.kind,
        "seed": plan.seed,
        "sabotage_step": broken_at,
        "evaluations": len(clean) - 1,
        "healthy_evaluations": len(clean) - 1 - len(after),
        "cost_db": None if deadline is None else healthy_psnr[deadline] - psnr[deadline],
        "psnr": psnr,
        "detectors": {d.name: _detected(d, series[d.pairs], after) for d in DETECTORS},
    }


def _detected(detector: Detector, evaluations: Sequence[Evaluation], after: Sequence[int]) -> dict[str, Any]:
    watch, told = AlertState(detector.rules), []
    for count in range(1, len(evaluations) + 1):
        alert = watch.judge(evaluations[0], evaluations[:count])
        if alert is not None and at_least(alert.severity, detector.severity):
            told.append((alert.global_step, sorted({f.rule for f in alert.findings})))
    late = [(step, rules) for step, rules in told if step in after]
    delay = after.index(late[0][0]) + 1 if late else None
    return {
        "false_alarms": [step for step, _ in told if step not in after],
        "delay": delay,
        "rules": late[0][1] if late else [],
    }


def _joined(plan: Plan, clean: Evaluation, spoilt: Evaluation) -> Evaluation:
    """Losses of validation pairs that get the training data's fault when the training data does."""
    share = wrong_share(plan, clean.global_step)
    wrong = round(share * len(clean.pairs))
    losses = (*spoilt.figures["loss"][:wrong], *clean.figures["loss"][wrong:])
    return replace(clean, figures={**clean.figures, "loss": losses})


def _evaluations(run: Path) -> list[Evaluation]:
    return [stored.evaluation for stored in RunStore(run).evaluations()]


# -- the table -------------------------------------------------------------------------------------------------------


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By detector: over all abrupt faults that cost something, over all healthy evaluations, and by kind."""
    broken = [r for r in runs if r["sabotage_step"] is not None and r["kind"] not in GROWING]
    costly = [r for r in broken if r["cost_db"] >= COSTLY]
    healthy = sum(r["healthy_evaluations"] for r in runs)
    out = {}
    for detector in DETECTORS:
        name = detector.name
        false = sum(len(r["detectors"][name]["false_alarms"]) for r in runs)
        by_kind = {}
        for kind in dict.fromkeys(r["kind"] for r in runs if r["sabotage_step"] is not None):
            own = [r for r in runs if r["kind"] == kind]
            delays = [r["detectors"][name]["delay"] for r in own]
            by_kind[kind] = {
                "runs": len(own),
                "detected_within_two": sum(d is not None and d <= 2 for d in delays),
                "delays": delays,
                "cost_db": [r["cost_db"] for r in own],
            }
        out[name] = {
            "costly_abrupt_runs": len(costly),
            "detected_within_two": sum((r["detectors"][name]["delay"] or 99) <= 2 for r in costly),
            "missed": [f"{r['kind']} seed {r['seed']}" for r in costly if (r["detectors"][name]["delay"] or 99) > 2],
            "healthy_evaluations": healthy,
            "false_alarms": false,
            "by_kind": by_kind,
        }
    return out


def as_markdown(found: dict[str, Any]) -> str:
    """One row a detector, then one row a kind: detected within two evaluations of all runs, and the median delay."""
    names = list(found)
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    first = found[names[0]]
    abrupt = [f"{found[n]['detected_within_two']} of {found[n]['costly_abrupt_runs']}" for n in names]
    alarms = [f"{found[n]['false_alarms']} of {found[n]['healthy_evaluations']}" for n in names]
    lines.append(f"| abrupt faults costing ≥ {COSTLY:g} dB, detected within two evaluations | {' | '.join(abrupt)} |")
    lines.append(f"| false alarms per healthy evaluation | {' | '.join(alarms)} |")
    for kind, one in first["by_kind"].items():
        cells = []
        for name in names:
            own = found[name]["by_kind"][kind]
            seen = [d for d in own["delays"] if d is not None]
            median = f"{np.median(seen):g}" if seen else "never"
            cells.append(f"{own['detected_within_two']} of {own['runs']}, {median}")
        lines.append(f"| {kind} ({np.median(one['cost_db']):.1f} dB) | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alerts", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="where to write all figures")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/alerts"), help="where the runs are kept (runs/alerts)"
    )
    parser.add_argument("--long", action="store_true", help=f"{len(LONG)} seeds a kind instead of {len(SHORT)}")
    parser.add_argument("--seeds", type=int, nargs="+", help="these seeds")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at once, one thread each")
    args = parser.parse_args(argv)
    seeds = args.seeds or list(LONG if args.long else SHORT)
    plans = [Plan(kind=kind, seed=seed) for seed in seeds for kind in kinds()]
    started = time.monotonic()
    for number, plan in enumerate(make_runs(plans, args.folder, args.workers), start=1):
        print(f"{number} of {len(plans)} runs, {time.monotonic() - started:.0f} s: {plan.name}", flush=True)
    runs = []
    for plan in plans:
        healthy = json.loads((args.folder / f"healthy_{plan.seed}" / "done.json").read_text())["psnr"]
        runs.append(judge_run(plan, args.folder, {int(step): value for step, value in healthy.items()}))
    found = summary(runs)
    args.json.write_text(
        json.dumps({"seeds": seeds, "summary": found, "runs": runs}, indent=1) + "\n", encoding="utf-8"
    )
    print(as_markdown(found))
    print(f"\nseeds {seeds}; a cell: detected within two evaluations, and the median delay in evaluations of those detected "
          f"(an abrupt fault's run ends {EVALUATIONS_AFTER} evaluations after it)")  # fmt: skip
    for name, one in found.items():
        if one["missed"]:
            print(f"{name} missed: {', '.join(one['missed'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
