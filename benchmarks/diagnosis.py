"""How often the diagnosis is right, and the signatures that it rests on: of the runs that `benchmarks.alerts` makes.

`python -m benchmarks.diagnosis --json F` fits the signatures to the runs of some seeds (--fit) and tries them on those of
others (--try), at the evaluation at which the first alert came; with --write it keeps them in i2am_debug/alerts/. Also tried:
each fault, and each whole kind, as if it had never been measured. Shares have Wilson's 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.alert_runs import HARMLESS, Plan, kinds
from benchmarks.alerts import wilson
from benchmarks.broken_at_once import broken_at_once
from i2am_debug.alerts.alert_state import AlertState
from i2am_debug.alerts.causes import CAUSES, UNKNOWN
from i2am_debug.alerts.changes import BESIDE, HARM, changes_of
from i2am_debug.alerts.diagnosis import Diagnosis, Signatures, likelihoods_of, share_of
from i2am_debug.alerts.rules import Rules
from i2am_debug.demo.demo_model import MODELS
from i2am_debug.figures.declared import PROBES
from i2am_debug.figures.record import Evaluation
from i2am_debug.store.run_store import RunStore

SIGNATURES = Path(__file__).parents[1] / "i2am_debug" / "alerts" / "signatures.json"

CAUSE_OF = {
    "shuffle": "wrong-reference",
    "shuffle-lora": "wrong-reference",
    "gradual": "wrong-reference",
    "zero": "no-reference",
    "drop": "no-reference",
    "gradual-drop": "no-reference",
    "flip": "misplaced-reference",
    "positions": "misplaced-reference",
    "encoder": "reference-weights",
    "encoder-dim": "reference-weights",
    "keys": "reference-weights",
    "queries": "reference-weights",
    "attention": "reference-weights",
    "colours": "colours",
    "range": "range",
    "dim": "range",
    "bright": "range",
    "shift-mask": "mask",
    "inverted-mask": "mask",
    "full-mask": "mask",
    "mean-target": "target",
    "shift-target": "misplaced-reference",
    "prediction": "target",
    "prompts": "prompt",
    "learning-rate": "learning-rate",
    "reordered": "reordered",
}
"""Fault of the benchmark → its kind."""

_ROUNDS = 4
_DRAWS = 6
_PER_RUN = 2
"""Evaluations from the alert on that are fitted; a gradual fault's run has many."""
_SHRUNK = 0.3
"""Share of the covariance that is its diagonal alone: there are few runs for so many changes."""
_LEAST_SPREAD = 0.03
"""Standard deviation that every change has at least."""
_FURTHEST = 0.9
_SHARPNESS = 8.0


@dataclass(frozen=True)
class Sample:
    """How the figures of one run had changed at one evaluation after its fault."""

    fault: str
    model: str
    seed: int
    number: int
    """1 for the first evaluation after the fault; 0 with no training step in between."""
    alerted: bool
    """Whether it is the first at which an alert came."""
    changes: dict[str, float]
    by_other_pairs: tuple[dict[str, float], ...] = ()
    """The same of pairs drawn from the run's with replacement: how much they depend on which pairs one has."""

    @property
    def cause(self) -> str:
        return CAUSE_OF[self.fault]

    @property
    def when(self) -> str:
        return "at once" if self.number == 0 else "at the alert" if self.alerted else "after it"


def samples_of(plan: Plan, folder: Path) -> list[Sample]:
    """Of one run: its evaluations after the fault."""
    evaluations = [stored.evaluation for stored in RunStore(plan.run(folder)).evaluations()]
    state, alerted, found = AlertState(Rules()), False, []
    for count, evaluation in enumerate(evaluations, start=1):
        alert = state.judge(evaluations[0], evaluations[:count])
        if alert is not None and alert.severity == "info" and plan.kind not in HARMLESS:
            alert = None
        if evaluation.global_step <= (plan.sabotage_step or 0):
            continue
        is_first = alert is not None and not alerted
        alerted = alerted or is_first
        changes = changes_of(evaluations[0], evaluation)
        others = _by_other_pairs(evaluations[0], evaluation)
        found.append(Sample(plan.kind, plan.model, plan.seed, len(found) + 1, is_first, changes, others))
    return found


def samples_at_once() -> list[Sample]:
    """Of weights that have just broken."""
    return [
        Sample(fault, model, -1, 0, True, changes_of(before, after), _by_other_pairs(before, after))
        for model, fault, before, after in broken_at_once()
    ]


def _by_other_pairs(baseline: Evaluation, now: Evaluation) -> tuple[dict[str, float], ...]:
    draws = np.random.default_rng(now.global_step)
    found = []
    for _ in range(_DRAWS):
        chosen = draws.integers(0, len(baseline.pairs), len(baseline.pairs))
        found.append(changes_of(_of_pairs(baseline, chosen), _of_pairs(now, chosen)))
    return tuple(found)


def _of_pairs(evaluation: Evaluation, chosen: np.ndarray) -> Evaluation:
    columns = {tag: tuple(values[i] for i in chosen) for tag, values in evaluation.figures.items()}
    return replace(evaluation, figures=columns)


def fitted(samples: Iterable[Sample]) -> dict[str, Any]:
    """The signatures of these samples, as plain values: of each fault in each model one at the alert and one after it, since
    what goes on for longer is not just more of the same, and one with no training step since, where it is of the weights."""
    rows: dict[tuple[str, str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        rows[sample.fault, sample.model, sample.when].append(sample)
    changes = sorted({name for row in rows.values() for sample in row for name in sample.changes})
    seen = {
        key: np.array([[s.changes.get(name, math.nan) for name in changes] for s in row]) for key, row in rows.items()
    }
    by_pairs = np.array(
        [
            [other.get(name, math.nan) - s.changes.get(name, math.nan) for name in changes]
            for row in rows.values()
            for s in row
            for other in s.by_other_pairs
        ]
    )
    covariance = _LEAST_SPREAD**2 * np.eye(len(changes))
    shares = {key: np.ones(len(values)) for key, values in seen.items()}
    for _ in range(_ROUNDS):  # how far each run had come, the signatures, and the spread around them, in turn
        means = {key: _mean_of(values, shares[key]) for key, values in seen.items()}
        shares = {key: _shares(values, means[key], covariance) for key, values in seen.items()}
        residuals = np.concatenate([values - shares[key][:, None] * means[key] for key, values in seen.items()])
        own = _covariance(residuals, len(residuals) / sum(len(values) - 1 for values in seen.values()))
        covariance = _positive(own + _covariance(by_pairs, 1.0))
    return {
        "changes": changes,
        "signatures": [
            {"kind": CAUSE_OF[fault], "fault": fault, "model": model, "when": when, "mean": _plain(mean)}
            for (fault, model, when), mean in means.items()
        ],
        "covariance": [_plain(row) for row in covariance],
        "furthest": _FURTHEST,
        "sharpness": _SHARPNESS,
    }


def _mean_of(values: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """(F,) the signature of which each row is its share; NaN where none has a value."""
    mean = np.full(values.shape[1], math.nan)
    known = np.isfinite(values).all(0)
    mean[known] = shares @ values[:, known] / (shares @ shares)
    return mean


def _shares(values: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """(rows,) how much of the signature each shows; the most is 1."""
    known = np.isfinite(mean)
    precision = np.linalg.inv(covariance[np.ix_(known, known)])
    shares = np.array([share_of(row[known], mean[known], precision) for row in values])
    return shares / shares.max()


def _covariance(residuals: np.ndarray, factor: float) -> np.ndarray:
    """(F, F) of residuals (rows, F), times a factor, shrunk towards its diagonal; over the rows that have both changes."""
    known = np.isfinite(residuals)
    filled = np.where(known, residuals, 0.0)
    together = np.maximum(known.T.astype(float) @ known, 1)
    full = filled.T @ filled / together * factor
    diagonal = np.diag(np.maximum(np.diag(full), _LEAST_SPREAD**2))
    return (1 - _SHRUNK) * full + _SHRUNK * diagonal


def _positive(covariance: np.ndarray) -> np.ndarray:
    """Nearest to it with a spread in every direction: of changes that few have together its entries need not fit."""
    variances, directions = np.linalg.eigh(covariance)
    return (directions * np.maximum(variances, _LEAST_SPREAD**2)) @ directions.T


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(f"{v:.4g}") if math.isfinite(v) else None for v in values]


def diagnosed(sample: Sample, signatures: Signatures) -> Diagnosis:
    """What would be said of it."""
    found = likelihoods_of(sample.changes, signatures) or ((UNKNOWN, 1.0),)
    return Diagnosis(global_step=sample.number, likelihoods=found, changes=sample.changes)


def tried(ranked: Sequence[tuple[Sample, Diagnosis]]) -> dict[str, Any]:
    """How often the right kind is first, among the first two, its group in the headline; and what was taken for what."""
    first = sum(diagnosis.kind == sample.cause for sample, diagnosis in ranked)
    two = sum(sample.cause in [name for name, _ in diagnosis.likelihoods[:2]] for sample, diagnosis in ranked)
    confusion: dict[str, Counter[str]] = defaultdict(Counter)
    for sample, diagnosis in ranked:
        confusion[sample.cause][diagnosis.kind] += 1
    return {
        "alerts": len(ranked),
        "first": first,
        "first_interval": wilson(first, len(ranked)),
        "among_two": two,
        "among_two_interval": wilson(two, len(ranked)),
        "said_right": sum(said_group(diagnosis) == CAUSES[sample.cause].group for sample, diagnosis in ranked),
        "said_nothing": sum(said_group(diagnosis) == UNKNOWN for _, diagnosis in ranked),
        "confusion": {cause: dict(row) for cause, row in confusion.items()},
        "wrong": [
            f"{s.model} {s.fault} seed {s.seed}, evaluation {s.number}: {_in_short(diagnosis)}"
            for s, diagnosis in ranked
            if diagnosis.kind != s.cause
        ],
    }


def left_out(fit: Sequence[Sample], tries: Sequence[Sample], *, whole_kind: bool) -> dict[str, Any]:
    """Each fault, or each kind with all of its faults, as if it had never been measured: how often the alert's headline then
    says nothing of what broke, or a kind of the right group."""
    right, count, wrong = 0, 0, []
    for what in sorted({s.cause if whole_kind else s.fault for s in tries}):

        def is_it(sample: Sample, what: str = what) -> bool:
            return (sample.cause if whole_kind else sample.fault) == what

        signatures = Signatures.from_json(fitted([s for s in fit if not is_it(s)]))
        for sample in filter(is_it, tries):
            diagnosis = diagnosed(sample, signatures)
            good = said_group(diagnosis) in (UNKNOWN, CAUSES[sample.cause].group)
            right, count = right + good, count + 1
            if not good:
                wrong.append(f"{sample.model} {sample.fault} seed {sample.seed}: {_in_short(diagnosis)}")
    return {"alerts": count, "right": right, "interval": wilson(right, count), "wrong": wrong}


def said_group(diagnosis: Diagnosis) -> str:
    """Of the kind, or kinds, that the headline speaks of; "none of these" where it speaks of none."""
    return diagnosis.cause.group if diagnosis.cause is not None else diagnosis.group or UNKNOWN


def _in_short(diagnosis: Diagnosis) -> str:
    return ", ".join(f"{name} {likelihood:.0%}" for name, likelihood in diagnosis.likelihoods[:2])


def as_markdown(confusion: dict[str, dict[str, int]]) -> str:
    """What was (rows), and what it was taken for."""
    names = [name for name in (*CAUSES, UNKNOWN) if any(name in row for row in confusion.values()) or name in confusion]
    lines = [f"| what broke | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for cause in filter(confusion.__contains__, CAUSES):
        lines.append(f"| {cause} | {' | '.join(str(confusion[cause].get(name, '')) for name in names)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diagnosis", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="where to write all figures")
    parser.add_argument("--folder", type=Path, default=Path("runs/alerts"), help="of benchmarks.alerts (runs/alerts)")
    parser.add_argument("--fit", type=int, nargs="+", default=[0, 1, 2], help="seeds that the signatures are of")
    parser.add_argument("--try", type=int, nargs="+", default=[3, 4, 5], dest="tries", help="seeds it is tried on")
    parser.add_argument("--write", action="store_true", help=f"keep the signatures in {SIGNATURES.name}")
    args = parser.parse_args(argv)
    if set(args.fit) & set(args.tries):
        parser.error("a seed is in --fit and in --try; what it was fitted to proves nothing")
    samples = [s for seed in (*args.fit, *args.tries) for s in _of_seed(seed, args.folder)]
    seen = _after_the_alert(samples)
    fit = [*(s for s in seen if s.seed in args.fit), *samples_at_once()]
    tries = [s for s in seen if s.seed in args.tries and s.alerted]
    tree = fitted(fit)
    if args.write:
        SIGNATURES.write_text(json.dumps(tree) + "\n", encoding="utf-8")
    signatures = Signatures.from_json(json.loads(json.dumps(tree)))

    def at_the_alert(samples: Sequence[Sample]) -> dict[str, Any]:
        return tried([(sample, diagnosed(sample, signatures)) for sample in samples])

    written = {
        "fit": args.fit,
        "tried": args.tries,
        "all": at_the_alert(tries),
        "models": {model: at_the_alert([s for s in tries if s.model == model]) for model in MODELS},
        "the_evaluation_after": tried(_renewed([s for s in seen if s.seed in args.tries], signatures)),
        "without_probes": at_the_alert([_without_probes(s) for s in tries]),
        "a_fault_left_out": left_out(fit, tries, whole_kind=False),
        "a_kind_left_out": left_out(fit, tries, whole_kind=True),
    }
    args.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    print(as_markdown(written["all"]["confusion"]))
    others = ("the_evaluation_after", "without_probes")
    for name, one in (("all", written["all"]), *written["models"].items(), *((n, written[n]) for n in others)):
        print(
            f"{name}: right first {one['first']} of {one['alerts']}, among two {one['among_two']}; the headline says the right "
            f"group for {one['said_right']}, nothing for {one['said_nothing']}"
        )
    for name in ("a_fault_left_out", "a_kind_left_out"):
        print(f"{name}: nothing, or of the right group: {written[name]['right']} of {written[name]['alerts']}")
    for line in written["all"]["wrong"]:
        print(f"wrong: {line}")
    return 0


def _of_seed(seed: int, folder: Path) -> list[Sample]:
    plans = [Plan(model=model, kind=kind, seed=seed) for model in MODELS for kind in kinds(model)]
    broken = [p for p in plans if p.kind in CAUSE_OF and (p.run(folder) / "done.json").is_file()]
    return [sample for plan in broken for sample in samples_of(plan, folder)]


def _renewed(samples: Sequence[Sample], signatures: Signatures) -> list[tuple[Sample, Diagnosis]]:
    """As the alert of each run has it after a further evaluation, where there is one at which it can be seen."""
    found: dict[tuple[str, str, int], tuple[Sample, Diagnosis]] = {}
    for sample in samples:
        run, diagnosis = (sample.fault, sample.model, sample.seed), diagnosed(sample, signatures)
        found[run] = (sample, diagnosis.after(found[run][1]) if run in found else diagnosis)
    return list(found.values())


def _without_probes(sample: Sample) -> Sample:
    """As at an evaluation at which nothing fired in its run."""
    probes = {f"{HARM}{probe.title.removeprefix('loss with ')}{BESIDE}" for probe in PROBES}
    kept = {name: value for name, value in sample.changes.items() if name not in probes}
    return replace(sample, changes=kept)


def _after_the_alert(samples: Sequence[Sample]) -> list[Sample]:
    """Those from the first alert of their run on, before which there is little to see; a few of each run."""
    found: list[Sample] = []
    alerted: Counter[tuple[str, str, int]] = Counter()
    for sample in samples:
        run = (sample.fault, sample.model, sample.seed)
        alerted += Counter([run]) if sample.alerted or alerted[run] else Counter()
        if 0 < alerted[run] <= _PER_RUN:
            found.append(sample)
    return found


if __name__ == "__main__":
    sys.exit(main())
