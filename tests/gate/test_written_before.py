"""A run and a baseline that version 0.1.0 wrote, before figures were declared and folders drawn: still read, judged, kept."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from i2am_debug import cli
from i2am_debug.alerts.default_rules import default_rules
from i2am_debug.alerts.rules import Rules
from i2am_debug.figures.record import differences
from i2am_debug.figures.values import Undefined
from i2am_debug.gate.check import check
from i2am_debug.store.evaluation_file import read_arrays, read_evaluation
from i2am_debug.store.run_store import RunStore
from i2am_debug.tab import evaluation_file, index_file
from i2am_debug.tab.stored_arrays import ArrayFile

HERE = Path(__file__).parents[1] / "fixtures" / "written_by_0.1.0"
BASELINE = HERE / "baseline.safetensors"
STEPS = [0, 8, 16, 24]
LATER = ("stale-weights", "gap-slips", "gap-slips-from-best")
RULES = Rules(rules=tuple(replace(rule, margins=1.0) for rule in default_rules() if rule.name not in LATER))
"""The default ones of that version."""


def test_its_evaluations_alerts_and_pictures_are_read() -> None:
    run = RunStore(HERE / "run")
    stored = run.evaluations()
    assert [one.global_step for one in stored] == STEPS
    for one in stored:
        for tag in one.means:
            mean = one.mean(tag)
            again = one.evaluation.mean(tag)
            assert mean == again if isinstance(mean, Undefined) else mean == pytest.approx(again, abs=1e-12), tag
    (alert,) = run.alerts()
    assert alert.global_step == 16 and alert.severity == "critical" and "loss" in alert.text
    assert all((run.folder / panel).is_file() for panel in alert.panels.values())
    assert "0/reference" in read_arrays(run.pairs_file(stored[0].evaluation), ["0/reference"])


@pytest.mark.parametrize("step", [8, 24])
def test_it_is_judged_as_it_was(step: int) -> None:
    was = json.loads((HERE / f"check_step_{step}.json").read_text())
    now = check(HERE / "run", BASELINE, step=step, rules=RULES)
    assert (now.status, int(now.exit_code), now.headline) == (was["status"], was["exit_code"], was["headline"])
    assert list(now.pairs or {}) == list(was["pairs"])
    found = {finding.rule + finding.figure: json.loads(json.dumps(finding.to_json())) for finding in now.findings}
    assert set(found) == {one["rule"] + one["figure"] for one in was["findings"]}
    for one in was["findings"]:
        other = found[one["rule"] + one["figure"]]
        same = ("kind", "severity", "fired", "unjudged", "against", "pairs", "since", "allowed")
        assert {key: other[key] for key in same} == {key: one[key] for key in same}
        for key in ("before", "now", "change"):
            assert (other[key] is None) == (one[key] is None)
            if one[key] is not None:
                assert (
                    other[key]["mean"] == pytest.approx(one[key]["mean"]) and other[key]["pairs"] == one[key]["pairs"]
                )
        assert (other["p"] is None) == (one["p"] is None)
        assert one["p"] is None or other["p"] == pytest.approx(one["p"], abs=0.01)


def test_its_baseline_says_the_same_means(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["baseline", "show", str(BASELINE)]) == 0
    was, now = (HERE / "baseline_show.txt").read_text().splitlines(), capsys.readouterr().out.splitlines()
    assert [line.split("[")[0] for line in now] == [line.split("[")[0] for line in was]


def test_it_is_comparable_with_itself_and_its_maps_are_there() -> None:
    base, maps = read_evaluation(BASELINE)
    last, _ = read_evaluation(HERE / "run" / "plugins" / "i2am_debug" / "step_00000024.safetensors")
    assert differences(last, base) == {} and base.comparable_id == last.comparable_id
    assert all(maps[f"{i}/g2r"].sum() == pytest.approx(1, abs=1e-5) for i in range(len(base.pairs)))


def test_its_baseline_can_be_kept_and_calibrated_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(HERE, tmp_path / "old")
    run, out = str(tmp_path / "old" / "run"), str(tmp_path / "b.safetensors")
    assert cli.main(["baseline", "save", run, "--step", "8", "-o", out]) == 0
    assert cli.main(["check", run, "--step", "8", "--baseline", out]) == 0
    assert cli.main(["baseline", "update", out, run]) == 0
    assert "step 8 → step 24" in capsys.readouterr().out


def test_the_tab_reads_it() -> None:
    run = RunStore(HERE / "run")
    with open(run.index, "rb") as file:
        timeline = index_file.timeline(file, "index.jsonl", None)
    assert timeline["steps"] == STEPS and timeline["baseline_step"] == 0
    assert np.isfinite(timeline["figures"]["copying_layer/imacs_r_hole"]["mean"]).all()
    assert timeline["declared"]["reference_gap"]["title"]
    path = run.folder / "step_00000016.safetensors"
    with open(path, "rb") as file, ArrayFile(file, path.name) as arrays:
        described = evaluation_file.describe(arrays)
        assert described["step"] == 16 and len(described["pairs"]) == 8
        scale, values, grid = evaluation_file.read_rows(arrays, 0, "copying_layer", None)
        assert values.shape == (grid[0] * grid[1], grid[2] * grid[3]) and (scale > 0).all()
