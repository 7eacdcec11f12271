"""The doctor on every tiny pipeline: it finds what the pipeline's own case says, and every one can be looked at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pipelines.case import PipelineCase
from pipelines.classes import CASES

from i2am_debug import CapturePlan, ValidationPairs
from i2am_debug.capture.trace import find_denoiser
from i2am_debug.doctor import look
from i2am_debug.doctor.examination import examine_pipeline
from i2am_debug.doctor.findings import WIDTH, Diagnosis
from i2am_debug.gate.exit_codes import ExitCode
from i2am_debug.report.found import WAYS


def settings(case: PipelineCase) -> dict[str, Any]:
    """What a user of it would give the callback; few forwards."""
    pairs = [replace(pair, name=f"pair {number}") for number, pair in enumerate(case.pairs()[:2])]
    given: dict[str, Any] = {"pairs": ValidationPairs(pairs), "plan": CapturePlan(sampler_steps=2)}
    own = {"family": case.asked_for, "call": case.call() if case.call else None}
    return given | {name: value for name, value in own.items() if value is not None}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_pipeline_is_looked_at(case: PipelineCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "_LONG", 0.0)
    diagnosis = Diagnosis()
    with case.around():
        pipeline = case.build()
        examine_pipeline(diagnosis, pipeline, settings(case))
    facts, seen, costs = (diagnosis.sections[name] for name in ("pipeline", look.SECTION, look.COSTS))
    assert diagnosis.exit_code == ExitCode.FAILED and "2 pairs: a fall" in diagnosis.findings[0].what
    assert facts["family"].startswith(f"{case.family}, {'given' if case.asked_for else 'found from the model'}")
    assert facts["denoiser"].startswith(type(find_denoiser(pipeline)).__name__)
    assert seen["way"].startswith(WAYS["sampling" if case.falls_back else "teacher_forcing"])
    assert case.falls_back in seen["way"]
    assert (
        seen["tokens"].startswith("generated ")
        and "loss" in seen["figures"]
        and float(costs["operations"].split()[0]) > 0
    )
    assert max(map(len, diagnosis.as_text().splitlines())) <= WIDTH
