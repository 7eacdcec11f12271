"""Each pipeline runs as its users run it, and is looked at while it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from i2am_debug import trace
from i2am_debug.evaluation.calls import picture_of
from pipelines.case import PipelineCase
from pipelines.classes import CASES


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request) -> Iterator[PipelineCase]:
    with request.param.around():
        yield request.param


def test_a_pipeline_makes_its_picture_and_is_looked_at(case: PipelineCase) -> None:
    pipeline, pairs = case.build(), case.pairs()
    for pair in pairs:
        plain = picture_of(case.run(pipeline, pair))
        with trace(pipeline, family=case.asked_for) as looked:
            seen = picture_of(case.run(pipeline, pair))
        assert np.array_equal(plain, seen)
        assert plain.getextrema() != ((0, 0),) * 3, "a black picture: the latents are not finite"
        assert looked.family.name == case.family and looked.maps().layers
        if pair is pairs[0] and case.size is not None:
            assert plain.size == case.size


def test_a_pipeline_reads_its_reference(case: PipelineCase) -> None:
    """With another pair's reference it makes another picture: what is looked at matters."""
    pipeline, (first, second, *_) = case.build(), case.pairs()
    other = replace(first, reference=second.reference)
    pictures = [picture_of(case.run(pipeline, pair)) for pair in (first, other)]
    assert not np.array_equal(*pictures)
