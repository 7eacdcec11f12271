"""Each pipeline runs as its users run it, and is looked at while it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from i2am_debug import trace
from i2am_debug.capture.trace import find_denoiser
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
    """With another pair's reference the denoiser says something else: what is looked at matters."""
    pipeline, (first, second, *_) = case.build(), case.pairs()
    said: list[torch.Tensor] = []
    find_denoiser(pipeline).register_forward_hook(lambda module, inputs, output: said.append(output[0]))
    outputs = []
    for pair in (first, first, replace(first, reference=second.reference)):
        case.run(pipeline, pair)
        outputs.append(torch.stack(said))
        said.clear()
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
