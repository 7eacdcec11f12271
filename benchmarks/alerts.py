"""How soon the alerts notice that a fine-tune goes wrong, how often they cry for nothing, and what a loss would have seen.

`python -m benchmarks.alerts --json F` fine-tunes the tiny models with the callback, healthy and with every fault that they
can have, from two seeds (--long: from six), and judges what the callbacks stored by several sets of rules. A run that is in
--folder already is not made again, so a benchmark that was cut off goes on. `benchmarks/alert_runs.py` makes the runs. With
--every-way a callback with the model's own loss function looks too, and one whose pairs share the training data's fault.

"Detected" means an alert at one of the two evaluations after the fault. "Cost" is how much worse the pictures are than those of
the healthy run of the same seed at the second of them: peak signal-to-noise ratio, dB, in the hole where the pairs have one.
Shares have Wilson's 95 % interval; it takes runs for independent, and evaluations too, which those of one run are not quite.
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
from scipy.stats import binomtest

from benchmarks.alert_runs import EVALUATIONS_AFTER, GROWING, Plan, kinds, make_runs, wrong_share
from i2am_debug.alerts.alert_state import AlertState
from i2am_debug.alerts.rule import Rule, Severity, at_least
from i2am_debug.alerts.rules import Rules
from i2am_debug.demo.demo_model import MODELS
from i2am_debug.figures.record import Evaluation
from i2am_debug.store.run_store import RunStore

SHORT, LONG = range(2), range(6)
COSTLY = 1.0  # dB; a fault that costs less need not be noticed
CHEAP = 0.3  # dB; one that costs less should wake nobody

PUBLISHED = ("inpainting", "edit")
"""The models that the published tables are of."""


def _drops(*figures: str) -> Rules:
    return Rules(
        rules=tuple(Rule(name=f"{f} {k}", kind=k, figure=f) for f in figures for k in ("drop", "drop_from_best"))
    )


@dataclass(frozen=True, kw_only=True)
class Detector:
    """Rules, and what they see."""

    name: str
    rules: Rules
    sees: str = "bare"
    """"bare": the validation pairs by a callback that got no loss; "loss_fn": through the model's own; "spoilt": pairs with the
    training data's fault from the start of the run; "joined": from the fault's start on."""
    severity: Severity = "warning"
    """What counts as an alert."""


def _without(*figures: str) -> Rules:
    return Rules(rules=tuple(rule for rule in Rules().rules if rule.figure not in figures))


_ATTENTION = _without("loss", "reference_gap")
_IMACS = _drops("imacs_g", "imacs_r")

DETECTORS = (
    Detector(name="default rules", rules=Rules()),
    Detector(name="critical alone", rules=Rules(), severity="critical"),
    Detector(name="without the loss", rules=_without("loss")),
    Detector(name="attention alone", rules=_ATTENTION),
    Detector(name="IMACS as in the paper", rules=_IMACS),
    Detector(name="clean loss", rules=_drops("loss")),
    Detector(name="default rules, loss_fn", rules=Rules(), sees="loss_fn"),
    Detector(name="loss, bug enters both", rules=_drops("loss"), sees="joined"),
    Detector(name="loss, bug from the start", rules=_drops("loss"), sees="spoilt"),
    Detector(name="default rules, bug from the start", rules=Rules(), sees="spoilt"),
)
"""Those that see what was not made (--every-way) are left out."""


def judge_run(plan: Plan, folder: Path, healthy_psnr: dict[int, float]) -> dict[str, Any]:
    """What each detector made of one run."""
    run = plan.run(folder)
    series = {"bare": _evaluations(run)}
    if (run / "loss_fn").is_dir():
        series["loss_fn"] = _evaluations(run / "loss_fn")
        series["spoilt"] = _evaluations(run / "spoilt") or series["loss_fn"]
        both = zip(series["loss_fn"], series["spoilt"], strict=True)
        series["joined"] = [_joined(plan, clean, spoilt) for clean, spoilt in both]
    psnr = {int(step): value for step, value in json.loads((run / "done.json").read_text())["psnr"].items()}
    broken_at, seen = plan.sabotage_step, series["bare"]
    after = [e.global_step for e in seen if broken_at is not None and e.global_step > broken_at]
    deadline = after[1] if after else None
    return {
        "model": plan.model,
        "kind": plan.kind,
        "seed": plan.seed,
        "sabotage_step": broken_at,
        "evaluations": len(seen) - 1,
        "healthy_evaluations": len(seen) - 1 - len(after),
        "cost_db": None if deadline is None else healthy_psnr[deadline] - psnr[deadline],
        "psnr": psnr,
        "detectors": {d.name: _detected(d, series[d.sees], after) for d in DETECTORS if d.sees in series},
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


def _healthy_psnr(plan: Plan, folder: Path) -> dict[int, float]:
    """Picture quality by step of the healthy run of the same model and seed."""
    done = replace(plan, kind="healthy").run(folder) / "done.json"
    return {int(step): value for step, value in json.loads(done.read_text())["psnr"].items()}


def _evaluations(run: Path) -> list[Evaluation]:
    return [stored.evaluation for stored in RunStore(run).evaluations()]


# -- the table -------------------------------------------------------------------------------------------------------


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of one model's runs, by detector: all abrupt faults that cost something, all healthy evaluations, and each kind."""
    broken = [r for r in runs if r["sabotage_step"] is not None and r["kind"] not in (*GROWING, "stale")]
    costly, cheap = (
        [r for r in broken if r["cost_db"] >= COSTLY],
        [r for r in broken if r["cost_db"] < CHEAP],
    )
    healthy = sum(r["healthy_evaluations"] for r in runs)
    out = {}
    for name in runs[0]["detectors"]:
        false = sum(len(r["detectors"][name]["false_alarms"]) for r in runs)
        found = sum((r["detectors"][name]["delay"] or 99) <= 2 for r in costly)
        by_kind = {}
        for kind in dict.fromkeys(r["kind"] for r in runs if r["sabotage_step"] is not None):
            own = [r for r in runs if r["kind"] == kind]
            delays = [r["detectors"][name]["delay"] for r in own]
            within_two = sum(d is not None and d <= 2 for d in delays)
            by_kind[kind] = {
                "runs": len(own),
                "detected_within_two": within_two,
                "interval": wilson(within_two, len(own)),
                "delays": delays,
                "cost_db": [r["cost_db"] for r in own],
            }
        out[name] = {
            "costly_abrupt_runs": len(costly),
            "detected_within_two": found,
            "detected_interval": wilson(found, len(costly)),
            "missed": [f"{r['kind']} seed {r['seed']}" for r in costly if (r["detectors"][name]["delay"] or 99) > 2],
            "cheap_runs": len(cheap),
            "cried_over_cheap": [f"{r['kind']} seed {r['seed']}" for r in cheap if r["detectors"][name]["delay"]],
            "false": [
                f"{r['kind']} seed {r['seed']} step {step}"
                for r in runs
                for step in r["detectors"][name]["false_alarms"]
            ],
            "healthy_evaluations": healthy,
            "false_alarms": false,
            "false_alarms_interval": wilson(false, healthy),
            "by_kind": by_kind,
        }
    return out


def wilson(found: int, of: int) -> tuple[float, float] | None:
    """Wilson's 95 % interval of a share; none of nothing."""
    if of == 0:
        return None
    low, high = binomtest(found, of).proportion_ci(confidence_level=0.95, method="wilson")
    return float(low), float(high)


def as_markdown(found: dict[str, Any]) -> str:
    """A row a detector: what it found and its false alarms, then each kind of fault: detected of all runs, median delay."""
    (first, *_) = found.values()
    by_kind = {kind: f"{kind} ({np.median(one['cost_db']):.1f} dB)" for kind, one in first["by_kind"].items()}
    titles = ["", f"abrupt faults costing ≥ {COSTLY:g} dB, detected", "false alarms per healthy evaluation"]
    titles.append(f"alerts for faults costing < {CHEAP:g} dB")
    titles += by_kind.values()
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, one in found.items():
        cells = [
            name,
            f"{one['detected_within_two']} of {one['costly_abrupt_runs']} {_percent(one['detected_interval'])}",
            f"{one['false_alarms']} of {one['healthy_evaluations']} {_percent(one['false_alarms_interval'])}",
            f"{len(one['cried_over_cheap'])} of {one['cheap_runs']}",
        ]
        for kind in by_kind:
            own = one["by_kind"][kind]
            seen = [d for d in own["delays"] if d is not None]
            median = f"{np.median(seen):g}" if seen else "never"
            cells.append(f"{own['detected_within_two']} of {own['runs']}, {median}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"[{100 * interval[0]:.0f}, {100 * interval[1]:.0f}] %"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alerts", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="where to write all figures")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/alerts"), help="where the runs are kept (runs/alerts)"
    )
    parser.add_argument(
        "--model", nargs="+", choices=MODELS, default=list(PUBLISHED), help="of these models (default: the first two)"
    )
    parser.add_argument("--long", action="store_true", help=f"{len(LONG)} seeds a kind instead of {len(SHORT)}")
    parser.add_argument("--seeds", type=int, nargs="+", help="these seeds")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at once, one thread each")
    parser.add_argument("--every-way", action="store_true", help="look with a loss function, and at spoilt pairs, too")
    args = parser.parse_args(argv)
    seeds = args.seeds or list(LONG if args.long else SHORT)
    plans = [Plan(model=model, kind=kind, seed=s) for s in seeds for model in args.model for kind in kinds(model)]
    started = time.monotonic()
    for number, plan in enumerate(make_runs(plans, args.folder, args.workers, every_way=args.every_way), start=1):
        print(
            f"{number} of {len(plans)} runs, {time.monotonic() - started:.0f} s: {plan.model} {plan.name}", flush=True
        )
    written: dict[str, Any] = {"seeds": seeds, "models": {}}
    for model in args.model:
        runs = [judge_run(p, args.folder, _healthy_psnr(p, args.folder)) for p in plans if p.model == model]
        written["models"][model] = {"summary": summary(runs), "runs": runs}
    args.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    for model, one in written["models"].items():
        print(f"\n## {model}\n\n{as_markdown(one['summary'])}")
        for name, found in one["summary"].items():
            for what in ("missed", "false", "cried_over_cheap"):
                if found[what]:
                    print(f"{name}, {what.replace('_', ' ')}: {', '.join(found[what])}")
    print(f"\nseeds {seeds}; a cell: detected within two evaluations, and the median delay in evaluations of those detected "
          f"(an abrupt fault's run ends {EVALUATIONS_AFTER} evaluations after it); 95 % intervals by Wilson")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
