"""The kinds of files that are damaged: how, who reads them, and what an accepted one must say."""

from __future__ import annotations

import contextlib
import io
import json
import math
import shutil
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from i2am_debug import cli
from i2am_debug.alerts.rules import Rules
from i2am_debug.figures.record import Evaluation
from i2am_debug.figures.values import Undefined
from i2am_debug.gate.baseline import describe, set_margins
from i2am_debug.gate.check import check
from i2am_debug.gate.verdict_reports import as_github_annotation, as_json, as_junit, as_markdown, as_text
from i2am_debug.pairs.collection import ValidationPairs
from i2am_debug.store.evaluation_file import read_evaluation, read_figures
from i2am_debug.store.find_run import find_evaluation, find_store
from i2am_debug.store.run_store import RunStore
from i2am_debug.tab import evaluation_file, index_file
from i2am_debug.tab.regions import regions
from i2am_debug.tab.stored_arrays import ArrayFile

from . import mutators
from .valid_files import SIZE


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of file."""

    file: str
    """Below the folder; "*" in it: one of several, each in its turn."""
    mutate: mutators.Mutate
    readers: Mapping[str, Callable[[Path, Path], Any]]
    """Name → `read(folder, file)`; what one returns that is no None says what the file says wrongly."""


class Contradiction(Exception):
    """A file was accepted, and what was read is not what stands in it."""


_LAST = "run/plugins/i2am_debug/step_00000100.safetensors"


# -- who reads -------------------------------------------------------------------------------------------------------


def _figures(folder: Path, file: Path) -> None:
    found = read_figures(file)
    raw = file.read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    says_the_same(found, json.loads(header["__metadata__"]["evaluation"]))


def says_the_same(found: Evaluation, row: Mapping[str, Any]) -> None:
    """Raises:
    Contradiction: a figure, a pair or the step is not what stands in the file.
    """
    if (found.global_step, list(found.pairs), list(found.layers)) != (row["global_step"], row["pairs"], row["layers"]):
        raise Contradiction("step, pairs or layers")
    if found.figures.keys() != row["figures"].keys():
        raise Contradiction("the figures' tags")
    for tag, values in found.figures.items():
        for value, stands in zip(values, row["figures"][tag], strict=True):
            is_number = type(stands) in (int, float) and abs(stands) <= 1.7976931348623157e308
            if isinstance(value, Undefined) == is_number or (is_number and value != stands):
                raise Contradiction(f"{tag}: {value!r} for {stands!r}")
        mean = found.mean(tag)
        numbers = [v for v in values if not isinstance(v, Undefined)]
        if numbers and not isinstance(mean, Undefined):
            expected, most = math.fsum(v / len(numbers) for v in numbers), max(map(abs, numbers))
            if abs(mean - expected) > 1e-9 * most:
                raise Contradiction(f"the mean of {tag}: {mean} for {expected}")


def _judge(
    target: str, baseline: str = "baseline.safetensors", rules: str | None = None
) -> Callable[[Path, Path], None]:
    def judge(folder: Path, file: Path) -> None:
        own = None if rules is None else Rules.from_toml(folder / rules)
        verdict = check(folder / target, folder / baseline, rules=own)
        for write in (as_text, as_json, as_junit, as_markdown, as_github_annotation):
            write(verdict).encode("utf-8", "replace")
        if verdict.status == "pass" and target == "run" and rules is None:
            _refuse_a_pass_of_a_fall(verdict.evaluation, verdict.baseline)

    return judge


def _refuse_a_pass_of_a_fall(run: Evaluation, baseline: Evaluation) -> None:
    """The valid run's gap has fallen to a tenth."""
    now, before = (one.values("reference_gap") for one in (run, baseline))
    drowned = np.nanmax(np.abs(before)) > 1e9 * np.nanmedian(np.abs(before))  # no sum knows of the other pairs any more
    if not drowned and np.nanmean(now) < 0.3 * np.nanmean(before):
        raise Contradiction(f"a pass, though the gap fell from {np.nanmean(before):.3g} to {np.nanmean(now):.3g}")


def _stored(folder: Path, file: Path) -> None:
    store = find_store(folder / "run")
    lines: dict[Any, list[Any]] = {}
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("means"), dict):
                lines.setdefault(json.dumps(row.get("global_step")), []).append(row["means"])
    for stored in store.evaluations():
        for tag in stored.means:
            mean = stored.mean(tag)
            stands = [means.get(tag) for means in lines[json.dumps(stored.global_step)]]
            if not isinstance(mean, Undefined) and mean not in [one[0] for one in stands if isinstance(one, list)]:
                raise Contradiction(f"the mean of {tag}: {mean} for {stands}")
        _ = stored.evaluation
    find_evaluation(store, None)
    store.resume(10**9)


def _going_on(folder: Path, file: Path) -> None:
    """What a training reads, which goes on whatever stands there."""
    store = RunStore(folder / "run")
    if any(type(one.global_step) is not int for one in store.readable_evaluations()):
        raise Contradiction("a step that is none")
    store.alerted_steps()


def _alerts(folder: Path, file: Path) -> None:
    for alert in RunStore(folder / "run").alerts():
        json.dumps([alert.text, alert.severity, alert.pairs, alert.to_json()])


def _baseline(folder: Path, file: Path) -> None:
    describe(read_figures(file), layers=True)
    shutil.copy(file, folder / "copy.safetensors")
    set_margins(folder / "copy.safetensors", {"imacs_g": 0.1})
    if dict(read_figures(folder / "copy.safetensors").margins) != {"imacs_g": 0.1}:
        raise Contradiction("the margins that were set")


def _rules(folder: Path, file: Path) -> None:
    for rule in Rules.from_toml(file).rules:
        rule.higher_is_worse()
        rule.margin_for({"imacs_g": 0.1})


def _pairs(folder: Path, file: Path) -> None:
    pairs = ValidationPairs.from_folder(folder / "val")
    for pair in pairs:
        pair.content_hash()
        for picture in (pair.target, pair.reference):
            if picture.mode != "RGB" or not picture.width:
                raise Contradiction(f"a picture of mode {picture.mode}")
        if pair.mask is not None and pair.mask.shape != (pair.target.height, pair.target.width):
            raise Contradiction("a mask of another size")


def _picture(folder: Path, file: Path) -> None:
    from i2am_debug.pairs.pictures import to_rgb

    found = np.asarray(to_rgb(file, "pair", "target"))
    with Image.open(file) as image:
        if image.mode in ("L", "RGB", "I;16"):
            raw = np.asarray(image, dtype=float) / (257 if image.mode == "I;16" else 1)
            raw = raw[..., None] if raw.ndim == 2 else raw
            if found.shape[:2] == raw.shape[:2] and np.abs(found - raw).max() > 0.5:
                raise Contradiction("other pixels than Pillow's")


def _mask(folder: Path, file: Path) -> None:
    from i2am_debug.pairs.pictures import to_mask

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = to_mask(file, Image.new("RGB", SIZE), "pair", "mask")
    if found.dtype != bool or found.all() or not found.any():
        raise Contradiction("a mask that is none")


def _tab(folder: Path, file: Path) -> None:
    with ArrayFile(open(file, "rb", buffering=0), file.name) as opened:
        evaluation_file.check_version(opened)
        json.dumps(evaluation_file.describe(opened), allow_nan=False)
        for read in (
            lambda: evaluation_file.read_map(opened, 0, "r2g/unified", None),
            lambda: evaluation_file.read_picture(opened, 0, "generated"),
            lambda: evaluation_file.information(opened),
            lambda: evaluation_file.pairs_file_of(opened),
        ):
            with contextlib.suppress(index_file.Refusal):
                read()


def _tab_lines(read: Callable[..., Any]) -> Callable[[Path, Path], None]:
    def lines(folder: Path, file: Path) -> None:
        with open(file, "rb", buffering=0) as opened:
            json.dumps(read(opened, file.name), allow_nan=False)

    return lines


def _tab_regions(folder: Path, file: Path) -> None:
    with ArrayFile(open(file, "rb", buffering=0), file.name) as opened:
        evaluation_file.read_picture(opened, 0, "reference")
        json.dumps(regions(opened, 0), allow_nan=False)


def command(*words: str) -> Callable[[Path, Path], None]:
    """The command line in this process; "{…}" in a word is a path of the folder."""

    def run(folder: Path, file: Path) -> None:
        for name in ("new.safetensors", "copy.safetensors"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "out", ignore_errors=True)
        (folder / "out").mkdir()
        told = io.StringIO()
        shutil.copy(folder / "baseline.safetensors", folder / "copy.safetensors")
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            ended = cli.main([word.format(f=folder) for word in words])
        if "Traceback" in told.getvalue():
            raise RuntimeError(f"exit {ended}, with a traceback: …{told.getvalue()[-600:]}")

    return run


_CHECK = command(
    *("check", "{f}/run", "--baseline", "{f}/baseline.safetensors", "--json", "{f}/out/v.json", "--junit-xml"),
    *("{f}/out/v.xml", "--markdown", "{f}/out/v.md", "--pictures", "{f}/out/worst"),
)
_SAVE = command("baseline", "save", "{f}/run", "-o", "{f}/new.safetensors", "--anyway")
_CALIBRATE = command("calibrate", "{f}/run", "--anyway", "--baseline", "{f}/copy.safetensors")


def _mostly(mutate: mutators.Mutate) -> mutators.Mutate:
    """Every third time bytes, whatever they mean."""
    return mutators.either(mutate, mutate, mutators.of_bytes)


_ARRAYS, _LINES = _mostly(mutators.of_safetensors), _mostly(mutators.of_json_lines)
_PICTURE = mutators.either(mutators.of_picture, mutators.of_bytes)

KINDS: Mapping[str, Kind] = {
    "evaluation": Kind(
        file=_LAST,
        mutate=_ARRAYS,
        readers={
            "read_figures": _figures,
            "read_evaluation": lambda folder, file: read_evaluation(file),
            "check RUN": _judge("run"),
            "check FILE": _judge(_LAST),
            "tab": _tab,
            "$ check": _CHECK,
            "$ baseline save": _SAVE,
        },
    ),
    "baseline": Kind(
        file="baseline.safetensors",
        mutate=_ARRAYS,
        readers={
            "read_figures": _figures,
            "show, set_margins": _baseline,
            "check": _judge("run"),
            "$ check": _CHECK,
            "$ baseline show": command("baseline", "show", "{f}/baseline.safetensors", "--layers"),
            "$ baseline update": command("baseline", "update", "{f}/copy.safetensors", "{f}/run"),
            "$ calibrate": _CALIBRATE,
        },
    ),
    "index": Kind(
        file="run/plugins/i2am_debug/index.jsonl",
        mutate=_LINES,
        readers={
            "evaluations": _stored,
            "going on": _going_on,
            "check": _judge("run"),
            "tab": _tab_lines(lambda opened, name: index_file.timeline(opened, name, None)),
            "tab, layers": _tab_lines(lambda opened, name: index_file.timeline(opened, name, "imacs_r_hole")),
            "$ check": _CHECK,
            "$ calibrate": _CALIBRATE,
        },
    ),
    "alerts": Kind(
        file="run/plugins/i2am_debug/alerts.jsonl",
        mutate=_LINES,
        readers={
            "alerts": _alerts,
            "going on": _going_on,
            "tab": _tab_lines(index_file.alerts),
            "$ baseline save": _SAVE,
        },
    ),
    "a run's pictures": Kind(
        file="run/plugins/i2am_debug/pairs_*.safetensors",
        mutate=mutators.either(mutators.of_safetensors, mutators.of_bytes),
        readers={"tab": _tab_regions, "$ check --pictures": _CHECK, "$ baseline save": _SAVE},
    ),
    "rules": Kind(
        file="rules.toml",
        mutate=_mostly(mutators.of_toml),
        readers={
            "from_toml": _rules,
            "check": _judge("run", rules="rules.toml"),
            "$ check": command(
                "check", "{f}/run", "--baseline", "{f}/baseline.safetensors", "--rules", "{f}/rules.toml", "--exit-zero"
            ),
        },
    ),
    "metadata.jsonl": Kind(
        file="val/metadata.jsonl",
        mutate=_LINES,
        readers={"from_folder": _pairs},
    ),
    "pictures": Kind(
        file="val/[!m]*.*",
        mutate=_PICTURE,
        readers={"to_rgb": _picture, "from_folder": _pairs},
    ),
    "masks": Kind(
        file="val/mask.*",
        mutate=_PICTURE,
        readers={"to_mask": _mask, "from_folder": _pairs},
    ),
}
