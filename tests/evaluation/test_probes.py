"""Probes and the loss by place say what a loss computed by hand says, whatever the way; and when they are tried."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from training import Run

from i2am_debug import CapturePlan
from i2am_debug.demo.demo_model import demo_model
from i2am_debug.evaluation import evaluator as evaluator_module
from i2am_debug.evaluation import probes
from i2am_debug.evaluation.evaluator import Evaluator
from i2am_debug.evaluation.forced_scheduler import Finished, forced_scheduler
from i2am_debug.evaluation.loss_function import _noise_times
from i2am_debug.evaluation.noise_times import times_of_a_gap, weights
from i2am_debug.evaluation.sampling import distance
from i2am_debug.figures.declared import PROBES as DECLARED
from i2am_debug.figures.pair_view import PairView
from i2am_debug.figures.scores import IMACSSettings
from i2am_debug.figures.values import Undefined
from i2am_debug.grids import region_weight
from i2am_debug.pairs.collection import ValidationPairs
from i2am_debug.pairs.pair import ValidationPair

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


def test_every_probe_is_declared():
    assert {figure.tag.removeprefix("probe/") for figure in DECLARED} == {
        *probes.PROBES,
        *(f"as_{kind}" for kind in probes.PREDICTIONS),
    }


def test_a_probe_changes_what_it_says_and_nothing_else():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    reference, target = map(Image.fromarray, pictures)
    hole = np.zeros((16, 24), dtype=bool)
    hole[4:8, 2:20] = True
    pair = ValidationPair(name="a", reference=reference, target=target, mask=hole, prompt="red")
    pairs = ValidationPairs([pair, dataclasses.replace(pair, name="b", prompt="blue")])
    grown = np.ones_like(hole)
    grown[:2, :3] = False
    values = pictures[0] / 127.5 - 1.0  # as most models take it
    expected = {
        "mirrored": values[:, ::-1],
        "colours": values[..., ::-1],
        "lighter": (values + 1) / 2,
        "faded": 0.3 * values,
        "contrasted": np.clip(3 * values, -1, 1),
        "hole_inverted": ~hole,
        "hole_grown": grown,
        "hole_moved": hole[:, np.arange(-6, 18)],
        "target_moved": pictures[1][:, np.arange(-6, 18)] / 127.5 - 1,
        "another_prompt": "blue",
    }
    part = {"reference": "reference", "hole": "mask", "target": "target", "prompt": "prompt"}
    for name, probe in probes.PROBES.items():
        changed = probe.change(pair, pairs)
        own = None if probe.of == "nothing" else part[probe.of]
        for other in part.values():
            same = np.array_equal(np.asarray(getattr(changed, other)), np.asarray(getattr(pair, other)))
            assert same == (other != own), (name, other)
        if name not in expected:
            continue
        found = getattr(changed, own)
        if isinstance(found, Image.Image):
            assert np.abs(np.asarray(found) / 127.5 - 1 - expected[name]).max() <= 1 / 127.5 + 1e-9, name
        else:
            assert np.array_equal(found, expected[name]), name


def test_what_a_pair_lacks_can_not_be_changed():
    """By a probe that can change none of the pairs no forward is made; one that can change some is tried with all of them."""
    pair = demo_model("inpainting").validation_pairs()[0]
    without = dataclasses.replace(pair, name="no hole", mask=None)
    asked = []

    def losses(changed, what):
        asked.append((what, len(changed)))
        return [0.5] * len(changed)

    none, some = (
        probes.probe(ValidationPairs(pairs), [0, 1], losses)
        for pairs in ([without, dataclasses.replace(without, name="b")], [pair, without])
    )
    assert asked.count(("hole", 2)) == 3 and not any(what == "prompt" for what, _ in asked)
    assert "hole_moved" not in none[0] and "another_prompt" not in none[0]
    assert (some[0]["hole_moved"], some[1]["hole_moved"]) == (0.5, Undefined("no hole"))


def test_a_probe_by_loss_fn_is_the_loss_with_that_reference():
    evaluator, pipeline = evaluator_of("inpainting", "loss_fn", batch_size=3)
    found = evaluator.probe(pipeline, [0, 1, 2])
    times = _noise_times(4, pipeline)
    few = times_of_a_gap([t / times[0] for t in times])
    share = weights([times[n] / times[0] for n in few])
    assert {f"as_{kind}" for kind in probes.PREDICTIONS}.isdisjoint(found[0]), "what is compared is its own affair"
    for name, probe in probes.PROBES.items():
        if name == "another_prompt":
            continue
        pairs = [probe.change(evaluator.pairs[i], evaluator.pairs) for i in range(3)]
        by_hand = np.zeros(3)
        for weight, number in zip(share, few, strict=True):
            with torch.no_grad():
                losses = evaluator.loss_fn(
                    pairs,
                    torch.full((3,), times[number]),
                    torch.Generator().manual_seed(7919 * number),
                    reference=[pair.reference for pair in pairs],
                )
            by_hand += weight * losses.numpy()
        assert [found[i][name] for i in range(3)] == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("name", ["inpainting", "edit"])
def test_a_probe_by_teacher_forcing_is_the_loss_of_the_changed_pair(name, monkeypatch):
    """A blank reference belongs to every look, at the same noise times: tried as a probe it must be worth the same."""
    evaluator, pipeline = evaluator_of(name, "teacher_forcing", batch_size=2)
    blank = probes._reference(lambda picture: Image.new("RGB", picture.size, GREY))
    monkeypatch.setitem(probes.PROBES, "blank", blank)
    probed = evaluator.probe(pipeline, [0, 1])
    seen = evaluator.observe(pipeline, [0, 1])[0]
    own = probed[0]["unchanged"]
    assert probed[0]["blank"] - own == pytest.approx(seen.no_reference_loss - seen.loss, rel=1e-4)


@pytest.mark.parametrize("name", ["inpainting", "edit"])
def test_a_changed_target_is_another_truth(name):
    """As with pairs that are so from the start, and twice as blurred is another one."""
    evaluator, pipeline = evaluator_of(name, "teacher_forcing", batch_size=2)
    probed = evaluator.probe(pipeline, [0, 1])
    change = probes.PROBES["target_moved"].change
    evaluator.pairs = ValidationPairs([change(pair, evaluator.pairs) for pair in evaluator.pairs])
    moved = evaluator.probe(pipeline, [0, 1])
    for row in (0, 1):
        assert moved[row]["unchanged"] == pytest.approx(probed[row]["target_moved"], rel=1e-4)
        assert moved[row]["unchanged"] != pytest.approx(probed[row]["unchanged"], rel=0.2)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_a_prediction_taken_for_something_else_is_compared_with_that(kind):
    """By hand, from the formulas of each kind: with ᾱ of the table, v = √ᾱ ε − √(1 − ᾱ) x."""
    draws = torch.Generator().manual_seed(0)
    clean, noise, *predicted = (torch.randn(2, 4, 8, 8, generator=draws) for _ in range(4))
    table = DDIMScheduler(num_train_timesteps=100, prediction_type=kind)
    forced = forced_scheduler(table)
    forced.force([1.0, 0.5], lambda sample: clean, None)
    forced.step(predicted[0], forced.timesteps[0], noise)
    handed = forced._expected
    with pytest.raises(Finished):
        forced.step(predicted[1], forced.timesteps[1], handed)
    kept = table.alphas_cumprod[50]
    by_hand = {
        "noise": [noise, noise],
        "sample": [clean, clean],
        "velocity": [-clean, kept.sqrt() * noise - (1 - kept).sqrt() * clean],
    }
    own = {"epsilon": "noise", "sample": "sample", "v_prediction": "velocity"}[kind]
    found = dict(forced.losses_if_it_predicts(probes.PREDICTIONS))
    assert set(found) == set(by_hand) - {own}
    for name, losses in {**found, own: torch.stack(forced.losses)}.items():
        expected = [((p - t) ** 2).mean((1, 2, 3)) for p, t in zip(predicted, by_hand[name], strict=True)]
        assert torch.allclose(losses, torch.stack(expected), rtol=1e-5), name


def test_a_probe_by_sampling_is_how_far_the_picture_is_from_the_truth():
    evaluator, pipeline = evaluator_of("inpainting", "sampling")
    found = evaluator.probe(pipeline, [1])[1]
    pair = evaluator.pairs[1]
    mirrored = probes.PROBES["mirrored"].change(pair, evaluator.pairs)
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


def test_probes_are_tried_at_the_baseline_and_when_something_fires(tmp_path, monkeypatch):
    """The weights never change here, so that the second evaluation fires, and the third, which says nothing new, does not."""
    monkeypatch.setattr(probes, "PAIRS", 4)
    monkeypatch.setattr(evaluator_module, "PROBED_PAIRS", 4)
    run = Run(tmp_path)
    callback = run.callback(pairs=demo_model("inpainting").validation_pairs()[:5], every_n_steps=1)
    for step in (0, 1, 2):
        callback.on_step_end(step)
    baseline, fired, quiet = callback.history()
    for figure in DECLARED:
        if figure.tag == "probe/another_prompt" or figure.tag.startswith("probe/as_"):  # no prompts, and a loss_fn
            assert all(isinstance(v, Undefined) for e in (baseline, fired) for v in e.figures[figure.tag])
            continue
        known = [[not isinstance(v, Undefined) for v in e.figures[figure.tag]] for e in (baseline, fired, quiet)]
        assert known == [[True] * 4 + [False], [True] * 4 + [False], [False] * 5]
        assert baseline.figures[figure.tag][:4] == fired.figures[figure.tag][:4]
        assert all(math.isfinite(v) for v in fired.figures[figure.tag][:4])
    assert callback.monitor.reporter.baseline == baseline  # with its probes
