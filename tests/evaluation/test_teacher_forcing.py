"""Teacher forcing through the scheduler: against the hand-written loss, over every scheduler, and what it must not change."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image

from i2am_debug import ValidationPairs
from i2am_debug.demo.demo_model import demo_model
from i2am_debug.errors import CannotForce
from i2am_debug.evaluation.evaluator import Evaluator
from i2am_debug.evaluation.forced_scheduler import Finished, ForcedDiffusion, forced_scheduler
from i2am_debug.evaluation.noise_times import noise_times, times_of_a_gap, weights
from i2am_debug.evaluation.references import blank_colour, blank_reference, with_reference, wrong_references
from i2am_debug.families.flux_kontext import FluxKontext
from i2am_debug.families.ip_adapter import IPAdapter
from i2am_debug.families.unet_cross_attention import UNetCrossAttention
from i2am_debug.figures.values import Undefined

PAIRS = 16


def looked_at(pipeline, pairs, **settings):
    evaluator = Evaluator(pairs=pairs, pictures=0, **settings)
    evaluator.check(pipeline)
    evaluator.prepare(pipeline)
    observations = [one for batch in evaluator.batches for one in evaluator.observe(pipeline, batch)]
    return evaluator, evaluator.score(observations, global_step=0, pipeline=pipeline, baseline=None)


@pytest.fixture(scope="module")
def pairs() -> ValidationPairs:
    return demo_model("inpainting").validation_pairs()[:PAIRS]


@pytest.fixture(scope="module")
def by_hand(tiny_pipeline, pairs):
    return looked_at(tiny_pipeline, pairs, loss_fn=demo_model("inpainting").loss_fn(tiny_pipeline), batch_size=PAIRS)[1]


def test_a_bare_pipeline_measures_what_a_hand_written_loss_measures(tiny_pipeline, pairs, by_hand):
    evaluator, bare = looked_at(tiny_pipeline, pairs, batch_size=PAIRS)
    assert evaluator.chosen.name == "teacher_forcing" and not evaluator.chosen.instead
    ours, theirs = (one.values("reference_gap") for one in (bare, by_hand))
    assert np.corrcoef(ours, theirs)[0, 1] >= 0.98
    assert ours.mean() == pytest.approx(theirs.mean(), rel=0.1)
    assert bare.mean("loss") == pytest.approx(by_hand.mean("loss"), rel=0.05)
    ours, theirs = (one.values("blank_gap") for one in (bare, by_hand))
    assert np.isnan(ours[1::2]).all() and ours[::2].mean() == pytest.approx(theirs[::2].mean(), rel=0.1)
    assert bare.copying_layer == by_hand.copying_layer
    assert bare.mean("attention_information") == pytest.approx(by_hand.mean("attention_information"), rel=0.01)


def test_a_pair_is_seen_alike_alone_and_in_a_batch(tiny_pipeline, pairs):
    (_, alone), (_, together) = (looked_at(tiny_pipeline, pairs[:3], batch_size=n) for n in (1, 3))
    for tag in ("loss", "reference_gap", "blank_gap", "imacs_g", "attention_information"):
        np.testing.assert_allclose(alone.values(tag), together.values(tag), rtol=2e-4, atol=1e-6)


def test_the_scheduler_and_its_configuration_are_back_even_if_the_call_raises(tiny_pipeline, pairs, monkeypatch):
    own, config = tiny_pipeline.scheduler, dict(tiny_pipeline.config)
    looked_at(tiny_pipeline, pairs[:2])
    assert tiny_pipeline.scheduler is own and dict(tiny_pipeline.config) == config
    monkeypatch.setattr(tiny_pipeline.unet, "forward", lambda *a, **k: 1 / 0)
    evaluator = Evaluator(pairs=pairs[:2], way="teacher_forcing")
    with pytest.raises(ZeroDivisionError):
        evaluator.check(tiny_pipeline)
    assert tiny_pipeline.scheduler is own and dict(tiny_pipeline.config) == config


def test_what_cannot_be_forced_is_sampled_and_says_why(tiny_pipeline, pairs, monkeypatch):
    monkeypatch.setitem(tiny_pipeline.__dict__, "scheduler", diffusers.EDMEulerScheduler())
    evaluator = Evaluator(pairs=pairs[:2], num_inference_steps=2)
    evaluator.check(tiny_pipeline)
    assert evaluator.chosen.name == "sampling"
    assert "its scheduler is a EDMEulerScheduler, whose noise table is neither" in evaluator.chosen.instead
    with pytest.raises(CannotForce, match="EDMEulerScheduler"):
        Evaluator(pairs=pairs[:2], way="teacher_forcing").check(tiny_pipeline)


def test_sampling_measures_the_gap_in_pixels_of_the_hole(tiny_pipeline, pairs):
    evaluator, sampled = looked_at(tiny_pipeline, pairs[:3], way="sampling", num_inference_steps=3)
    own = [evaluator.sample(tiny_pipeline, i) for i in range(3)]
    expected = [
        np.abs(np.asarray(made, float) - np.asarray(pair.target, float))[pair.mask].mean() / 255
        for made, pair in zip(own, pairs[:3], strict=True)
    ]
    np.testing.assert_allclose(sampled.values("loss"), expected, rtol=1e-5)
    assert sampled.mean("reference_gap") > 0
    assert sampled.fingerprint["way"] == "sampling" and sampled.fingerprint["num_inference_steps"] == 3


# -- noise times and references ----------------------------------------------------------------------------------------


def test_noise_times_begin_at_pure_noise_and_their_weights_are_the_times_nearest_to_each():
    assert noise_times(1) == (1.0,) and noise_times(4) == (1.0, 0.625, 0.375, 0.125)
    for count in (1, 2, 3, 5, 10):
        times = noise_times(count)
        every = (np.arange(100_000) + 0.5) / 100_000  # each time stands for those that are nearest to it
        nearest = np.abs(every[:, None] - np.array(times)).argmin(1)
        np.testing.assert_allclose(weights(times), np.bincount(nearest, minlength=count) / 100_000, atol=1e-4)
    assert times_of_a_gap(noise_times(1)) == [0] and times_of_a_gap(noise_times(4)) == [0, 2]


def test_the_wrong_reference_is_another_one_of_the_same_size_if_there_is_any(pairs):
    a, b, c = (with_reference(pairs[0], Image.new("RGB", size, colour)) for size, colour in
               (((8, 8), "red"), ((6, 8), "green"), ((8, 8), "blue")))  # fmt: skip
    found = wrong_references(ValidationPairs([a, b, c]), [0, 1])
    assert found[0].getpixel((0, 0)) == (0, 0, 255) and found[1].size == (6, 8)
    assert wrong_references(ValidationPairs([a]), [0]) == [Undefined("one pair")]
    assert wrong_references(ValidationPairs([a, a, a]), [0]) == [Undefined("all pairs have the same reference")]


def test_no_reference_is_what_becomes_zeros_where_the_model_takes_it_in(tiny_pipeline):
    clip = SimpleNamespace(feature_extractor=SimpleNamespace(image_mean=[0.48145466, 0.4578275, 0.40821073]))
    assert blank_colour(clip, UNetCrossAttention()) == blank_colour(clip, IPAdapter()) == (123, 117, 104)
    assert blank_colour(clip, FluxKontext()) == blank_colour(tiny_pipeline, UNetCrossAttention()) == (127, 127, 127)
    grey = blank_reference(demo_model("inpainting").validation_pairs()[0], (1, 2, 3))
    assert grey.size == (32, 32) and grey.getcolors() == [(32 * 32, (1, 2, 3))]


# -- every scheduler ---------------------------------------------------------------------------------------------------

DIFFUSION = (
    *("DDIM", "DDPM", "PNDM", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete", "LCM"),
    *("DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep", "KDPM2Discrete", "TCD"),
)
FLOW = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "FlowMatchLCM")
TIMES = noise_times(5)


def walked(scheduler, predict=None) -> tuple[list[float], list[torch.Tensor], torch.Tensor]:
    """Spread of the input at each noise time, the inputs, and the losses, of a pipeline's loop on known latents."""
    clean = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(1)) * 0.7
    noise = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(2))
    forced = forced_scheduler(scheduler)
    forced.force(TIMES, lambda sample: clean, None)
    forced.set_timesteps(20)
    inputs, sample = [], noise * getattr(forced, "init_noise_sigma", 1.0)
    try:
        for t in forced.timesteps:
            inputs.append(forced.scale_model_input(sample, t))
            output = predict(clean, noise, t, inputs[-1]) if predict else torch.tanh(inputs[-1])
            sample = forced.step(output, t, sample).prev_sample
    except Finished:
        pass
    return [float(x.std()) for x in inputs], inputs, torch.stack(forced.losses)


def of_kind(name: str, **config):
    return getattr(diffusers, f"{name}Scheduler")(**config)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", DIFFUSION)
def test_every_diffusion_scheduler_gives_the_inputs_and_losses_of_its_noise_table(name, prediction):
    table = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    scheduler = of_kind(name, prediction_type=prediction, **table)
    spreads, inputs, losses = walked(scheduler)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)[[999, 700, 500, 300, 100]]
    kept[0] = 0  # pure noise
    expected = (kept * 0.7**2 + 1 - kept).sqrt()
    np.testing.assert_allclose(spreads, expected, rtol=0.02)
    _, same_inputs, same_losses = walked(of_kind("DDIM", prediction_type=prediction, **table))
    for ours, theirs in zip(inputs, same_inputs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses, same_losses, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "config"),
    [(name, config) for name in FLOW for config in ({}, {"shift": 3.0})]
    + [("FlowMatchEulerDiscrete", config) for config in ({"use_dynamic_shifting": True}, {"invert_sigmas": True})],
)
def test_every_flow_scheduler_gives_straight_lines(name, config):
    scheduler = of_kind(name, **config)
    spreads, _, losses = walked(scheduler)
    np.testing.assert_allclose(spreads, [((1 - s) ** 2 * 0.7**2 + s**2) ** 0.5 for s in TIMES], rtol=0.02)
    direction = -1 if config.get("invert_sigmas") else 1
    _, _, exact = walked(scheduler, lambda clean, noise, t, x: direction * (noise - clean))
    assert (exact == 0).all() and (losses > 0.1).all()


@pytest.mark.parametrize("config", [{"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}])
def test_solvers_of_flow_models_are_flow_schedulers(config):
    """As Wan ships with."""
    scheduler = diffusers.UniPCMultistepScheduler(**config)
    spreads, _, _ = walked(scheduler)
    np.testing.assert_allclose(spreads, [((1 - s) ** 2 * 0.7**2 + s**2) ** 0.5 for s in TIMES], rtol=0.02)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_model_that_knows_the_answer_has_no_loss_at_any_noise_time(prediction):
    scheduler = DDIMScheduler(prediction_type=prediction, rescale_betas_zero_snr=True)
    kept = scheduler.alphas_cumprod

    def exact(clean, noise, t, x):
        a = float(kept[int(t)]) if int(t) < 999 else 0.0
        return {"epsilon": noise, "sample": clean, "v_prediction": a**0.5 * noise - (1 - a) ** 0.5 * clean}[prediction]

    _, _, losses = walked(scheduler, exact)
    assert len(losses) == 5 and losses.max() < 1e-12


def test_a_learned_variance_is_no_part_of_the_prediction():
    _, _, losses = walked(DDIMScheduler(), lambda clean, noise, t, x: torch.cat([noise, torch.full_like(noise, 9)], 1))
    assert losses.max() == 0


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        (diffusers.EDMEulerScheduler(), "neither of diffusion nor of flow matching"),
        (diffusers.EulerDiscreteScheduler(timestep_type="continuous"), "neither of diffusion nor of flow matching"),
    ],
)
def test_other_noise_tables_are_refused_by_name(scheduler, words):
    with pytest.raises(CannotForce, match=words):
        forced_scheduler(scheduler)


def test_latents_that_are_no_noise_or_of_another_shape_are_refused():
    def begin(sample, truth):
        forced = forced_scheduler(FlowMatchEulerDiscreteScheduler())
        forced.force(TIMES, lambda _: truth, None)
        forced.step(sample, forced.timesteps[0], sample)

    noise = torch.randn(1, 4, 16, 16)
    with pytest.raises(CannotForce, match=r"standard deviation of 0\.1\d, pure noise has 1"):
        begin(noise * 0.15, noise)
    with pytest.raises(CannotForce, match=r"latents are \(1, 4, 16, 16\), the truth's \(1, 4, 8, 8\); encode="):
        begin(noise, torch.randn(1, 4, 8, 8))
    with pytest.raises(CannotForce, match="came to noise time 3 of 5 after 0"):
        forced = forced_scheduler(FlowMatchEulerDiscreteScheduler())
        forced.force(TIMES, lambda _: noise, None)
        forced.step(noise, forced.timesteps[2], noise)
    with pytest.raises(CannotForce, match="changed its latents between two steps by 5"):
        forced = forced_scheduler(FlowMatchEulerDiscreteScheduler())
        forced.force(TIMES, lambda _: noise, None)
        following = forced.step(noise, forced.timesteps[0], noise).prev_sample
        forced.step(noise, forced.timesteps[1], following * 1.5)


def test_the_picture_is_the_prediction_of_one_noise_time():
    forced = forced_scheduler(DDIMScheduler(prediction_type="sample"))
    assert isinstance(forced, ForcedDiffusion)
    clean, noise = torch.zeros(1, 4, 16, 16), torch.randn(1, 4, 16, 16)
    forced.force(TIMES, lambda _: clean, 1)
    sample = noise
    for number, t in enumerate(forced.timesteps):
        sample = forced.step(torch.full_like(noise, number), t, sample, return_dict=False)[0]
    assert (sample == 1).all()


# -- what a person gets wrong ------------------------------------------------------------------------------------------


def test_an_encode_of_another_shape_is_an_error_at_once(tiny_pipeline, pairs):
    evaluator = Evaluator(pairs=pairs[:2], encode=lambda pipeline, pair: torch.zeros(1, 4, 8, 8))
    with pytest.raises(
        CannotForce, match=r"encode= gave \(1, 4, 8, 8\) for 1 pairs, the pipeline's latents are \(1, 12, 16, 16\)"
    ):
        evaluator.check(tiny_pipeline)


def test_an_encode_of_ones_own_is_what_is_scored_against(tiny_pipeline, pairs):
    def encode(pipeline, pair):
        pixels = torch.from_numpy(np.asarray(pair.target, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        return torch.nn.functional.pixel_unshuffle(pixels, 2)

    (_, given), (_, found) = (looked_at(tiny_pipeline, pairs[:2], **s) for s in ({"encode": encode}, {}))
    np.testing.assert_allclose(given.values("loss"), found.values("loss"), rtol=1e-4)


def test_a_pair_without_a_prompt_among_others_is_named(tiny_pipeline, pairs):
    named = [with_reference(pair, pair.reference) for pair in pairs[:3]]
    object.__setattr__(named[0], "prompt", "a cat")
    with pytest.warns(UserWarning, match="2 of 3 pairs have no prompt: demo_01, demo_02"):
        Evaluator(pairs=ValidationPairs(named), call=lambda *_: None, way="sampling").check(tiny_pipeline)


def test_pairs_of_one_call_have_as_many_references(tiny_pipeline, pairs):
    two = replace(pairs[1], further_references=[pairs[1].reference])
    evaluator = Evaluator(
        pairs=ValidationPairs([pairs[0], two, pairs[2]]), batch_size=3, pictures=0, loss_fn=lambda *_: None
    )
    evaluator.check(tiny_pipeline)
    assert evaluator.batches == [[0, 2], [1]]


def test_pairs_of_one_call_have_one_size(tiny_pipeline, pairs):
    wide = with_reference(pairs[1], pairs[1].reference.resize((48, 32)))
    evaluator = Evaluator(pairs=ValidationPairs([pairs[0], wide, pairs[2], pairs[3]]), batch_size=2, pictures=0)
    evaluator.check(tiny_pipeline)
    assert evaluator.batches == [[0, 2], [3], [1]]
    assert [one.index for batch in evaluator.batches for one in evaluator.observe(tiny_pipeline, batch)] == [0, 2, 3, 1]


def test_a_failing_combination_of_sizes_is_named(tiny_pipeline, pairs, monkeypatch):
    wide = with_reference(pairs[1], pairs[1].reference.resize((48, 32)))
    real = type(tiny_pipeline).prepare

    def prepare(self, image, mask_image, example_image):
        assert not isinstance(example_image, list) and example_image.size == (32, 32)
        return real(self, image, mask_image, example_image)

    monkeypatch.setattr(type(tiny_pipeline), "prepare", prepare)
    evaluator = Evaluator(pairs=ValidationPairs([pairs[0], wide]))
    evaluator.check(tiny_pipeline)
    assert (
        evaluator.chosen.name == "sampling"
        and "the teacher-forced call raised AssertionError" in evaluator.chosen.instead
    )


def test_what_runs_out_of_memory_is_not_taken_for_a_call_that_cannot_be_forced(tiny_pipeline, pairs, monkeypatch):
    def forward(*args, **kwargs):
        raise torch.OutOfMemoryError("planted")

    monkeypatch.setattr(tiny_pipeline.unet, "forward", forward)
    with pytest.raises(torch.OutOfMemoryError, match="planted"):
        Evaluator(pairs=pairs[:2]).check(tiny_pipeline)
