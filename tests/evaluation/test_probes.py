"""Probes and the loss by place say what a loss computed by hand says, whatever the way; and when they are tried."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image
from training import Run

from i2am_debug import CapturePlan
from i2am_debug.demo.demo_model import demo_model
from i2am_debug.evaluation import probes
from i2am_debug.evaluation.evaluator import Evaluator
from i2am_debug.evaluation.loss_function import _noise_times
from i2am_debug.evaluation.noise_times import times_of_a_gap, weights
from i2am_debug.evaluation.sampling import distance
from i2am_debug.figures.declared import PROBES as DECLARED
from i2am_debug.figures.pair_view import PairView
from i2am_debug.figures.scores import IMACSSettings
from i2am_debug.figures.values import Undefined
from i2am_debug.grids import region_weight

GREY = (127, 127, 127)


def evaluator_of(name: str, way: str, **settings) -> tuple:
    model = demo_model(name)
    pipeline = model.load(device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    loss_fn = model.loss_fn(pipeline) if way == "loss_fn" else None
    pairs = model.validation_pairs()[:5]
    made = Evaluator(
        pairs=pairs, way=way, loss_fn=loss_fn, plan=CapturePlan(sampler_steps=4), num_inference_steps=2, **settings
    )
    made.check(pipeline)
    return made, pipeline


def test_every_probe_is_declared_and_keeps_a_pictures_size():
    assert {figure.tag.removeprefix("probe/") for figure in DECLARED} == set(probes.PROBES)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8))
    for name, change in probes.PROBES.items():
        changed = change(picture)
        assert (changed.size, changed.mode) == (picture.size, "RGB") and changed.tobytes() != picture.tobytes(), name
    values = np.asarray(picture, dtype=float) / 127.5 - 1  # as most models take it
    for name, expected in {
        "mirrored": values[:, ::-1],
        "colours": values[..., ::-1],
        "lighter": (values + 1) / 2,
        "faded": 0.3 * values,
        "contrasted": np.clip(3 * values, -1, 1),
    }.items():
        assert np.abs(np.asarray(probes.PROBES[name](picture)) / 127.5 - 1 - expected).max() <= 1 / 127.5 + 1e-9, name


def test_a_probe_by_loss_fn_is_the_loss_with_that_reference():
    evaluator, pipeline = evaluator_of("inpainting", "loss_fn", batch_size=3)
    found = evaluator.probe(pipeline, [0, 1, 2])
    times = _noise_times(4, pipeline)
    few = times_of_a_gap([t / times[0] for t in times])
    share = weights([times[n] / times[0] for n in few])
    pairs = [evaluator.pairs[i] for i in range(3)]
    for name, change in probes.PROBES.items():
        by_hand = np.zeros(3)
        for weight, number in zip(share, few, strict=True):
            with torch.no_grad():
                losses = evaluator.loss_fn(
                    pairs,
                    torch.full((3,), times[number]),
                    torch.Generator().manual_seed(7919 * number),
                    reference=[change(pair.reference) for pair in pairs],
                )
            by_hand += weight * losses.numpy()
        assert [found[i][name] for i in range(3)] == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("name", ["inpainting", "edit"])
def test_a_probe_by_teacher_forcing_is_the_loss_with_that_reference(name, monkeypatch):
    """A blank reference belongs to every look, at the same noise times: tried as a probe it must be worth the same."""
    evaluator, pipeline = evaluator_of(name, "teacher_forcing", batch_size=2)
    monkeypatch.setattr(probes, "PROBES", {"own": lambda r: r, "blank": lambda r: Image.new("RGB", r.size, GREY)})
    probed = evaluator.probe(pipeline, [0, 1])
    seen = evaluator.observe(pipeline, [0, 1])[0]
    assert probed[0]["blank"] - probed[0]["own"] == pytest.approx(seen.no_reference_loss - seen.loss, rel=1e-4)


def test_a_probe_by_sampling_is_how_far_the_picture_is_from_the_truth():
    evaluator, pipeline = evaluator_of("inpainting", "sampling")
    found = evaluator.probe(pipeline, [1])[1]
    pair = evaluator.pairs[1]
    mirrored = dataclasses.replace(pair, reference=probes.PROBES["mirrored"](pair.reference), reference_mask=None)
    assert found["mirrored"] == distance(evaluator.sample(pipeline, 1, mirrored), pair)
    assert found["mirrored"] != distance(evaluator.sample(pipeline, 1), pair)


def view(evaluator: Evaluator, observation) -> PairView:
    return PairView(
        observation=observation,
        pair=evaluator.pairs[observation.index],
        reference=0,
        copying_layer="any",
        settings=IMACSSettings(),
        baseline={},
    )


@pytest.mark.parametrize(("name", "way"), [("inpainting", "teacher_forcing"), ("edit", "teacher_forcing")])
def test_inside_and_outside_make_up_the_loss(name, way):
    evaluator, pipeline = evaluator_of(name, way)
    seen = evaluator.observe(pipeline, [1])[0]
    assert seen.loss_map.mean() == pytest.approx(seen.loss, rel=1e-4)
    one = view(evaluator, seen)
    inside = one.region if one.pair.mask is not None else ~one.region
    share = region_weight(torch.from_numpy(inside), seen.loss_map.shape).mean().item()
    together = share * one.loss_inside() + (1 - share) * one.loss_outside()
    assert together == pytest.approx(seen.loss, rel=1e-4) and one.loss_inside() != one.loss_outside()


def test_a_loss_fn_may_give_its_loss_by_place():
    evaluator, pipeline = evaluator_of("inpainting", "loss_fn")
    plain = evaluator.loss_fn
    number = view(evaluator, evaluator.observe(pipeline, [1])[0])
    with pytest.raises(Exception, match=r"one a place, \(B, h, w\), would tell"):
        number.loss_inside()
    ramp = torch.linspace(0, 2, 16).expand(16, 16)  # of mean 1, more to the right

    def by_place(*args, **kwargs):
        return plain(*args, **kwargs)[:, None, None] * ramp

    evaluator.loss_fn = by_place
    placed = view(evaluator, evaluator.observe(pipeline, [1])[0])
    assert placed.loss == pytest.approx(number.loss, rel=1e-5)
    assert placed.observation.no_reference_loss == pytest.approx(number.observation.no_reference_loss, rel=1e-5)
    weight = region_weight(torch.from_numpy(placed.pair.mask), (16, 16)).reshape(16, 16)
    assert placed.loss_inside() == pytest.approx(number.loss * float((ramp * weight).sum() / weight.sum()), rel=1e-4)


def test_probes_are_tried_at_the_baseline_and_when_something_fires(tmp_path):
    """The weights never change here, so that the second evaluation fires, and the third, which says nothing new, does not."""
    run = Run(tmp_path)
    callback = run.callback(pairs=demo_model("inpainting").validation_pairs()[:5], every_n_steps=1)
    for step in (0, 1, 2):
        callback.on_step_end(step)
    baseline, fired, quiet = callback.history()
    for figure in DECLARED:
        known = [[not isinstance(v, Undefined) for v in e.figures[figure.tag]] for e in (baseline, fired, quiet)]
        assert known == [[True] * 4 + [False], [True] * 4 + [False], [False] * 5]
        assert baseline.figures[figure.tag][:4] == fired.figures[figure.tag][:4]
        assert all(math.isfinite(v) for v in fired.figures[figure.tag][:4])
    assert callback.monitor.reporter.baseline == baseline  # with its probes
