"""A fault at every stage, in short; `python -m benchmarks.unharmed faults` tries every fault at every stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.unharmed import faults
from benchmarks.unharmed.faults import FAULTS, Case
from i2am_debug.run.reporter import Reporter
from i2am_debug.run.stages import Stage
from i2am_debug.run.undelivered import Undelivered

pytestmark = pytest.mark.usefixtures("few_probes")


@pytest.fixture(scope="module")
def found(few_probes):
    return faults.measure(long=False)


def test_whatever_fails_wherever_it_fails_harms_nothing(found):
    print(found.table())
    assert not found.harm


def test_each_stage_and_each_fault_was_tried(found):
    assert [row["stage"] for row in found.rows] == [stage.name for stage in Stage if _could_run(found, stage)]
    assert all(row["fired"] == "yes" for row in found.rows)


def test_a_lost_alert_is_found(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Undelivered, "add", lambda self, alert: None)
    assert "alert lost" in " ".join(_harm_of("exception", Stage.FIGURES, tmp_path))


def test_a_changed_training_is_found(tmp_path: Path, monkeypatch):
    def draws(self, *given, real=Reporter.report):
        torch.rand(1)
        return real(self, *given)

    monkeypatch.setattr(Reporter, "report", draws)
    assert "the training is another" in " ".join(_harm_of("exception", Stage.STORE, tmp_path))


def _harm_of(fault: str, stage: Stage, folder: Path) -> list[str]:
    (alone := faults._Training(folder / "alone", None)).run()
    case = faults._try(Case(fault, stage), folder / "case", alone)
    assert case is not None and case.fired
    return case.harm


def _could_run(found, stage: Stage) -> bool:
    """A full disk needs a tmpfs, which not every machine lets a test mount."""
    needs_a_disk = FAULTS[list(Stage).index(stage) % len(FAULTS)] in ("full disk", "read-only folder")
    return not needs_a_disk or any(row["stage"] == stage.name for row in found.rows)
