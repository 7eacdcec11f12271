"""Every pipeline's call is teacher-forced through its scheduler, or says why not: the truth is the one that the pipeline's own
methods make, a denoiser that knows it has no loss, and each input is the noised truth."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from i2am_debug.callbacks import I2AMCallback
from training import new_accelerator

from i2am_debug import CapturePlan, ValidationPair, ValidationPairs
from i2am_debug.errors import CannotForce
from i2am_debug.evaluation import teacher_forcing
from i2am_debug.evaluation.calls import _REPEATS_ITS_REFERENCE, _TAKES_BATCHES, picture_of, takes_batches
from i2am_debug.evaluation.evaluator import Evaluator
from i2am_debug.evaluation.ways import Way, choose_way
from i2am_debug.figures.values import Undefined
from pipelines.__main__ import BEGIN, END, TITLES, row
from pipelines.case import PipelineCase, pair
from pipelines.classes import CASES
from pipelines.planted import NoiseTable, planted

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
FORCED = {name: case for name, case in CASES.items() if not case.falls_back}
NOT_FORCED = {name: case for name, case in CASES.items() if case.falls_back}
TIMES = 3
NO_LOSS = 1e-10
"""Mean square of what float32 leaves of a prediction that is right, guidance with a scale of 4 included."""
DRAWN = 1e-3
"""Inpainting blends in latents that were drawn from the autoencoder's distribution, whose spread is 2e-4."""


@pytest.fixture(params=FORCED.values(), ids=FORCED)
def case(request) -> Iterator[PipelineCase]:
    with request.param.around(), torch.no_grad():
        yield request.param


def evaluator(case: PipelineCase, pairs: Sequence[ValidationPair], **changes: Any) -> Evaluator:
    settings = dict(
        pairs=ValidationPairs(pairs),
        plan=CapturePlan(sampler_steps=TIMES, heads=None),
        family=case.asked_for,
        call=case.call() if case.call else None,
        way="teacher_forcing",
        pictures=0,
    )
    return Evaluator(**{**settings, **changes})


def watched(monkeypatch: pytest.MonkeyPatch) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(truths, losses): every truth that a forced scheduler is told, and every loss that it finds, in order."""
    truths, losses = [], []
    real = teacher_forcing.forced_scheduler

    def forced_scheduler(own):
        scheduler = real(own)
        force, step = scheduler.force, scheduler.step

        def remember(times, truth, picture_from):
            def told(sample):
                truths.append(truth(sample))
                return truths[-1]

            force(times, told, picture_from)

        def score(*args, **kwargs):
            try:
                return step(*args, **kwargs)
            finally:
                losses.extend(scheduler.losses[-1:])

        scheduler.force, scheduler.step = remember, score
        return scheduler

    monkeypatch.setattr(teacher_forcing, "forced_scheduler", forced_scheduler)
    return truths, losses


def scheduler_of(pipeline):
    return getattr(pipeline, "scheduler", None) or pipeline.decoder_scheduler


def test_the_truth_is_the_pipelines_own_and_who_knows_it_has_no_loss(case, monkeypatch) -> None:
    pipeline, pairs = case.build(), case.pairs()
    for number, one in enumerate(pairs):
        truths, losses = watched(monkeypatch)
        clean = case.encode(pipeline, one)
        looking = evaluator(case, [one, *pairs[:number], *pairs[number + 1 :]])
        looking.use(Way(name="teacher_forcing"), pipeline)  # pairs of other sizes are not tried before
        before = scheduler_of(pipeline)
        with planted(pipeline, NoiseTable(scheduler=before), clean) as record:
            (seen,) = looking.observe(pipeline, [0])
        assert scheduler_of(pipeline) is before

        assert truths
        for truth in truths:
            if case.tolerance == 0:
                assert torch.equal(truth, clean)
            else:
                torch.testing.assert_close(truth, clean, rtol=0, atol=case.tolerance)

        limit = max(NO_LOSS, case.tolerance**2)
        assert len(losses) >= TIMES and all(float(loss.max()) <= limit for loss in losses)
        assert (seen.loss, seen.no_reference_loss) == pytest.approx((0, 0), abs=limit)

        assert len({forward.time for forward in record.forwards}) >= TIMES
        for forward in record.forwards:
            assert forward.error <= DRAWN, forward
            assert forward.spread == pytest.approx(1, abs=DRAWN), forward


def test_a_denoiser_that_knows_another_truth_has_a_loss(case, monkeypatch) -> None:
    """What is planted is really scored: half the truth is not enough."""
    pipeline, pairs = case.build(), case.pairs()
    clean = case.encode(pipeline, pairs[0])
    _, losses = watched(monkeypatch)
    with planted(pipeline, NoiseTable(scheduler=scheduler_of(pipeline)), clean / 2) as record:
        evaluator(case, pairs).observe(pipeline, [0])
    table = NoiseTable(scheduler=scheduler_of(pipeline))
    if table.flows or table.scheduler.config.prediction_type != "epsilon":
        assert min(float(loss.max()) for loss in losses) > 100 * max(NO_LOSS, case.tolerance**2)
    assert max(forward.error for forward in record.forwards) > DRAWN


def test_the_picture_of_a_denoiser_that_knows_the_truth_is_the_same_whatever_the_noise(case) -> None:
    pipeline, pairs = case.build(), case.pairs()
    clean, pictures = case.encode(pipeline, pairs[0]), []
    for seed in (0, 1):
        with planted(pipeline, NoiseTable(scheduler=scheduler_of(pipeline)), clean):
            (seen,) = evaluator(case, pairs, pictures=1, seed=seed).observe(pipeline, [0])
        pictures.append(np.asarray(seen.generated, np.int16))
    assert pictures[0].shape == pictures[1].shape == (case.size[1], case.size[0], 3)
    assert np.abs(pictures[0] - pictures[1]).max() <= 2, "of 255"


def test_a_look_leaves_nothing_behind(case) -> None:
    pipeline, pairs = case.build(), case.pairs()
    before, config = picture_of(case.run(pipeline, pairs[0])), dict(pipeline.config)
    evaluator(case, pairs).observe(pipeline, [0])
    assert dict(pipeline.config) == config
    assert np.array_equal(before, picture_of(case.run(pipeline, pairs[0])))


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in FORCED
        if name.partition(",")[0] in (*_TAKES_BATCHES, *_REPEATS_ITS_REFERENCE, "TinyEditPipeline")
    ],
)
def test_pairs_of_one_call_are_seen_as_they_are_alone(name: str) -> None:
    case = FORCED[name]
    with case.around(), torch.no_grad():
        pipeline = case.build()
        assert takes_batches(pipeline)
        first = case.pairs()[0]
        pairs = [replace(pair(n, size=first.target.size), mask=first.mask, extra=first.extra) for n in range(2)]
        pairs = [replace(p, prompt=first.prompt) for p in pairs]
        looking = evaluator(case, pairs)
        alone = [looking.observe(pipeline, [n])[0] for n in range(2)]
        together = looking.observe(pipeline, [0, 1])
    for one, other in zip(alone, together, strict=True):
        for figure in ("loss", "wrong_reference_loss", "no_reference_loss"):
            ours, theirs = getattr(other, figure), getattr(one, figure)
            assert ours == (theirs if isinstance(theirs, Undefined) else pytest.approx(theirs, rel=1e-4)), figure
        for direction in ("r2g", "g2r")[: 2 if other.maps.undefined_g2r is None else 1]:
            ours, theirs = getattr(other.maps, direction), getattr(one.maps, direction)
            np.testing.assert_allclose(ours.unified, theirs.unified, rtol=2e-3)
        assert other.maps.reference_mass == pytest.approx(one.maps.reference_mass, rel=1e-3)
        assert other.maps.branch_share == pytest.approx(one.maps.branch_share, rel=1e-3)


@pytest.mark.parametrize("name", [name for name, case in NOT_FORCED.items() if case.encode])
def test_the_cure_that_a_reason_names_works(name: str) -> None:
    case = NOT_FORCED[name]
    with case.around(), torch.no_grad():
        pipeline, pairs = case.build(), case.pairs()
        clean = case.encode(pipeline, pairs[0])
        with planted(pipeline, NoiseTable(scheduler=scheduler_of(pipeline)), clean):
            (seen,) = evaluator(case, pairs, encode=case.encode).observe(pipeline, [0])
    assert (seen.loss, seen.no_reference_loss) == pytest.approx((0, 0), abs=NO_LOSS)


@pytest.mark.parametrize("name", NOT_FORCED)
def test_a_fall_back_to_sampling_has_its_reason(name: str) -> None:
    case = NOT_FORCED[name]
    with case.around():
        pipeline = case.build()
        looking = evaluator(case, case.pairs())
        looking.way = None
        way = choose_way(looking, pipeline)
    assert way.name == "sampling"
    assert case.falls_back in way.instead
    looking.way = "teacher_forcing"
    with case.around(), pytest.raises(CannotForce, match=re.escape(case.falls_back)):
        choose_way(looking, pipeline)


def test_the_log_gives_the_reason_of_a_fall_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    case = NOT_FORCED["UnCLIPImageVariationPipeline"]
    accelerator = new_accelerator(tmp_path)
    callback = I2AMCallback(
        accelerator,
        pipeline=case.build(),
        pairs=ValidationPairs(case.pairs()),
        every_n_steps=1,
        plan=CapturePlan(sampler_steps=2),
        on_error="raise",
        disable_progress_bar=True,
    )
    with caplog.at_level("INFO"):
        callback.on_train_begin(0)
        callback.evaluate(1)
        callback.on_train_end(1)
    accelerator.end_training()
    assert f"not by teacher forcing: {case.falls_back}" in caplog.text
    assert f"every pair is sampled, which is slow: {case.falls_back}" in caplog.text


def lines_of_the_docs() -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip().splitlines()


@pytest.mark.parametrize(("number", "name"), enumerate(CASES))
def test_the_docs_say_how_a_pipeline_is_looked_at(number: int, name: str) -> None:
    assert lines_of_the_docs()[2 + number] == row(CASES[name])


def test_the_docs_name_no_other_pipeline() -> None:
    lines = lines_of_the_docs()
    assert lines[0] == f"| {' | '.join(TITLES)} |" and len(lines) == 2 + len(CASES)
