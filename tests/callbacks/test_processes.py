"""Two processes give what one gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from several_processes import forked
from training import evaluate_and_report  # loads torch, so that this process has one thread, as the others

from i2am_debug.figures.record import Evaluation
from i2am_debug.figures.values import Undefined

SCRIPT = Path(__file__).parents[1] / "training.py"


def test_two_processes_share_the_pairs_and_agree_with_one(tmp_path):
    evaluate_and_report(tmp_path / "one", tmp_path / "one.json")
    forked(2, SCRIPT, tmp_path / "two", tmp_path / "two.json")
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "two"))
    assert len(two["forwards"]) == 2 and two["forwards"][0] == two["forwards"][1] > 0
    assert two["wrote"] == [True, False], "only the main process opens the store"
    assert two["returned"] == [0, 0], "every process gets the figures"
    assert len(two["ends"]) == 2 and two["ends"][0] == two["ends"][1], "an alert ends every process the same way"
    assert two["ends"][0] == one["ends"][0] and two["ends"][0][1] is True
    assert two["ends"][0][0].startswith("critical: loss is beyond its limit at step 20")
    evaluations = [[Evaluation.from_json(e) for e in report["evaluations"]] for report in (one, two)]
    assert [e.global_step for e in evaluations[1]] == [0, 10]
    for ours, theirs in zip(*evaluations, strict=True):
        assert ours.pairs == theirs.pairs and ours.figures.keys() == theirs.figures.keys()
        for tag, values in ours.figures.items():
            for a, b in zip(values, theirs.figures[tag], strict=True):
                assert a == b if isinstance(a, Undefined) else a == pytest.approx(b, abs=1e-6), tag
