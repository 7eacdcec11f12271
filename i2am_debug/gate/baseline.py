"""Baselines: an evaluation kept in a file of its own, small enough for a repository. Imports no torch."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from ..alerts.rules import Rules
from ..errors import StoreError
from ..figures.declared import REFERENCE_GAP
from ..figures.estimates import Estimate
from ..figures.record import Evaluation, differences
from ..figures.registry import all_figures, declaration_of
from ..figures.values import Undefined, reference_tag
from ..store.evaluation_file import pairs_file_name, read_arrays, read_figures, write_evaluation
from ..store.run_store import RunStore, Stored

logger = logging.getLogger("i2am_debug")

MAPS = ("r2g/unified", "g2r/unified", "g2r_region/unified", "generated")
"""What a baseline keeps of each pair beside its figures; the rows of single patches stay with the run."""

PICTURES = ("reference", "target", "mask", "reference_mask")


def save_baseline(
    store: RunStore, stored: Stored, path: Path, *, margins: dict[str, float | str] | None = None
) -> Evaluation:
    """Writes a run's evaluation as a baseline: figures, unified maps, the pairs' pictures, and margins.

    Raises:
        StoreError: the evaluation's file is missing or broken.
    """
    evaluation = replace(stored.evaluation, margins=margins or {})
    for alert in store.alerts():
        if alert.global_step <= evaluation.global_step:
            logger.warning(
                "the run raised an alert at step %d; %s: is step %d a good baseline? (--step N)",
                alert.global_step,
                "it was never fine" if alert.fine_at is None else f"fine until step {alert.fine_at}",
                evaluation.global_step,
            )
    gap = evaluation.estimate(REFERENCE_GAP.tag)
    if isinstance(gap, Estimate) and gap.low is not None and gap.low <= 0:
        logger.warning(
            "its %s is not above 0 (%s): the model does not use its reference, so that whatever is compared with it fails "
            "(gap-collapse)",
            *(REFERENCE_GAP.title, gap),
        )
    if not Rules().can_test(len(evaluation.pairs)):
        logger.warning(
            "i2am-debug check will call whatever is compared with it not comparable: it has %s",
            Rules().too_few(len(evaluation.pairs)),
        )
    maps, pictures = _kept(evaluation)
    arrays = read_arrays(stored.path, maps)
    arrays.update(read_arrays(store.folder / pairs_file_name(evaluation), pictures))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_evaluation(path, evaluation, arrays, {})
    return evaluation


def update_baseline(path: Path, store: RunStore, stored: Stored) -> tuple[Evaluation, Evaluation]:
    """Puts a run's evaluation in place of a baseline; its margins stay when both are comparable.

    Returns:
        The old and the new one.

    Raises:
        StoreError: there is no baseline at `path`, or it can't be read.
    """
    if not path.exists():
        raise StoreError(f"there is no baseline {path}; make one with: i2am-debug baseline save RUN -o {path}")
    _refuse_a_runs_own(path)
    old = read_figures(path)
    kept = dict(old.margins) if not differences(stored.evaluation, old) else {}
    return old, save_baseline(store, stored, path, margins=kept)


def set_margins(path: Path, margins: dict[str, float | str]) -> None:
    """Stores calibrated margins in a baseline, in place of those it had.

    Raises:
        StoreError: there is no baseline at `path`, or it can't be read.
    """
    _refuse_a_runs_own(path)
    evaluation = read_figures(path)
    maps, pictures = _kept(evaluation)
    write_evaluation(path, replace(evaluation, margins=margins), read_arrays(path, [*maps, *pictures]), {})


def _kept(evaluation: Evaluation) -> tuple[list[str], list[str]]:
    """Names of the arrays that a baseline keeps: maps and generated pictures, and the pairs' own pictures."""
    further = [reference_tag(number) for number in evaluation.further_references]
    maps = [*MAPS, *(f"{one}/{way}/unified" for one in further for way in ("r2g", "g2r"))]
    count = range(len(evaluation.pairs))
    return [f"{i}/{name}" for i in count for name in maps], [
        f"{i}/{name}" for i in count for name in (*PICTURES, *further)
    ]


def _refuse_a_runs_own(path: Path) -> None:
    """A baseline keeps less than a run's evaluation, which must not be written over."""
    if path.resolve().with_name("index.jsonl").is_file():
        raise StoreError(
            f"{path} is a run's own evaluation; keep it and make a baseline of it: i2am-debug baseline save"
        )


def describe(evaluation: Evaluation, *, layers: bool = False) -> str:
    """A baseline as a person reads it: what it is of, its means with intervals, its margins."""
    fingerprint = evaluation.fingerprint
    copying = evaluation.copying_layer
    lines = [
        f"step {evaluation.global_step}, {len(evaluation.pairs)} pairs: {', '.join(evaluation.pairs)}",
        f"family {fingerprint.get('family')}, by {fingerprint.get('way')}, {len(evaluation.layers)} layers",
        f"copying layer {copying}",
        f"seed {fingerprint.get('seed')}, scheduler {fingerprint.get('scheduler')}, i2am-debug {fingerprint.get('version')}",
        "",
    ]
    shown = {
        t: e
        for t, e in evaluation.estimates().items()
        if layers or not t.startswith("layer/") or copying in t.split("/")
    }
    width = max(map(len, shown), default=0)
    for tag, estimate in shown.items():
        if not isinstance(estimate, Undefined):
            declared = declaration_of(tag, evaluation.declared)
            lines.append(f"  {tag:<{width}}  {estimate}{f'  {declared.unit}' if declared and declared.unit else ''}")
    undefined: dict[str, list[str]] = {}
    for tag, estimate in shown.items():
        if isinstance(estimate, Undefined):
            undefined.setdefault(estimate.reason, []).append(tag)
    lines += [f"  undefined: {reason}: {', '.join(tags)}" for reason, tags in undefined.items()]
    if evaluation.margins:
        lines += ["", "  calibrated margins: " + ", ".join(f"{figure} {m}" for figure, m in evaluation.margins.items())]
    else:
        lines += ["", "  margins: not calibrated (i2am-debug calibrate RUN … --baseline FILE)"]
    return "\n".join(lines)


def compare(old: Evaluation, new: Evaluation) -> str:
    """What an update changes: the figures that rules know a margin for, before and after."""
    unlike = differences(new, old)
    lines = [f"step {old.global_step} → step {new.global_step}"]
    if unlike:
        lines.append(
            f"not comparable with the old one, they differ in {', '.join(unlike)}; calibrated margins are dropped"
        )
    for figure in all_figures():
        before, after = old.estimate(figure.tag), new.estimate(figure.tag)
        if figure.margin is not None and not (isinstance(before, Undefined) and isinstance(after, Undefined)):
            lines.append(f"  {figure.tag}: {before} → {after}")
    return "\n".join(lines)


def require_healthy(store: RunStore, stored: Stored) -> None:
    """Refuses what a run evaluated after it had raised a critical alert: compared with it, a broken model would pass.

    Raises:
        ValueError: there was such an alert; says where it was fine.
    """
    for alert in store.alerts():
        if alert.severity == "critical" and alert.global_step <= stored.global_step:
            fine = "" if alert.fine_at is None else f"; it was fine until step {alert.fine_at}: --step {alert.fine_at}"
            raise ValueError(
                f"the run raised a critical alert at step {alert.global_step}, so step {stored.global_step} may be no good "
                f"baseline{fine}, or --anyway"
            )


def require_new(path: Path) -> None:
    """Refuses to write over a file.

    Raises:
        StoreError: it exists; says how to replace it.
    """
    if path.exists():
        raise StoreError(
            f"{path} exists; to put another evaluation in its place: i2am-debug baseline update {path} RUN"
        )
