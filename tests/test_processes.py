"""Two processes give what one gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from i2am_debug.record import Evaluation, Undefined

SCRIPT = Path(__file__).with_name("training.py")

pytestmark = pytest.mark.training


def test_two_processes_share_the_pairs_and_agree_with_one(tmp_path):
    from training import evaluate_and_report

    evaluate_and_report(tmp_path / "one", tmp_path / "one.json")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    done = subprocess.run(
        [
            *launch,
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            str(SCRIPT),
            str(tmp_path / "two"),
            str(tmp_path / "two.json"),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "two"))
    assert len(two["forwards"]) == 2 and two["forwards"][0] == two["forwards"][1] > 0
    assert two["wrote"] == [True, False], "only the main process opens the store"
    assert two["returned"] == [0, 0], "every process gets the figures"
    evaluations = [[Evaluation.from_json(e) for e in report["evaluations"]] for report in (one, two)]
    assert [e.global_step for e in evaluations[1]] == [0, 10]
    for ours, theirs in zip(*evaluations, strict=True):
        assert ours.pairs == theirs.pairs and ours.figures.keys() == theirs.figures.keys()
        for tag, values in ours.figures.items():
            for a, b in zip(values, theirs.figures[tag], strict=True):
                assert a == b if isinstance(a, Undefined) else a == pytest.approx(b, abs=1e-6), tag
