"""The pilot: what it measures, chooses and says of other heads, against a planted clock and real looks at other heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from i2am_debug import CapturePlan, Evaluation, Undefined
from i2am_debug.capture.costs import Clock
from i2am_debug.capture.plan import drawn_anew
from i2am_debug.capture.redrawn import with_heads
from i2am_debug.capture.trace import Trace
from i2am_debug.demo.inpainting.model import ReferenceEncoder, new_scheduler, new_unet
from i2am_debug.demo.inpainting.pairs import validation_pairs
from i2am_debug.demo.inpainting.pipeline import TinyExamplePipeline
from i2am_debug.errors import UnsupportedModel
from i2am_debug.evaluation import pilot
from i2am_debug.evaluation.evaluator import Evaluator
from i2am_debug.evaluation.pilot import Choice, choose
from i2am_debug.figures.pilot_spread import figures_of_heads
from i2am_debug.figures.record import differences
from i2am_debug.figures.sampling_error import NO_PILOT, SamplingError

pytestmark = pytest.mark.usefixtures("few_probes")

PAIRS, HEADS = 3, 8


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """The tiny model with random weights and 8 heads in each of its 6 layers, whose heads differ much."""
    torch.manual_seed(0)
    config = {**new_unet().config, "attention_head_dim": (HEADS, HEADS)}
    made = TinyExamplePipeline(
        UNet2DConditionModel.from_config(config).eval(), ReferenceEncoder().eval(), new_scheduler()
    )
    made.set_progress_bar_config(disable=True)
    for name, weights in made.unet.named_parameters():
        if name.endswith("attn2.to_q.weight"):
            factors = torch.linspace(0.5, 6, HEADS)[torch.randperm(HEADS)]
            weights.data *= factors.repeat_interleave(len(weights) // HEADS)[:, None]
    return made


def evaluator(pipeline: Any, **plan: Any) -> Evaluator:
    made = Evaluator(pairs=validation_pairs(PAIRS, seed=11), plan=CapturePlan(**plan), batch_size=PAIRS, pictures=0)
    made.check(pipeline)
    return made


def evaluated(own: Evaluator, pipeline: Any) -> Evaluation:
    own.prepare(pipeline)
    observations = [one for batch in own.batches for one in own.observe(pipeline, batch)]
    return own.score(observations, global_step=0, pipeline=pipeline, baseline=None)


class Planted(Clock):
    """Goes on with the model's forwards and with what is looked at, and with nothing else."""

    FORWARD, LAYER, HEAD = 1.0, 0.004, 0.001

    def __init__(self) -> None:
        super().__init__()
        self.now, self.forwards, self.looked = 0.0, 0, 0.0

    def mark(self) -> float:
        return self.now


@pytest.fixture
def planted(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Planted]:
    clock, observe = Planted(), Trace._observe

    def forward(*_: Any) -> None:
        clock.now, clock.forwards = clock.now + clock.FORWARD, clock.forwards + 1

    def looking(self: Trace, run: Any, seen: Any, layout: Any) -> None:
        if layout is not None:
            took = clock.LAYER + clock.HEAD * len(self._weights(run.name, seen.query.shape[1]))
            clock.now, clock.looked = clock.now + took, clock.looked + took
        observe(self, run, seen, layout)

    monkeypatch.setattr(Trace, "_observe", looking)
    monkeypatch.setattr(pilot, "Clock", lambda device=None: clock)
    hook = pipeline.unet.register_forward_hook(forward)
    yield clock
    hook.remove()


def counted(choice: Choice, pipeline: Any, own: Evaluator, clock: Planted) -> float:
    """Share of looking in one real evaluation."""
    own.choice, clock.forwards, clock.looked = choice, 0, 0.0
    evaluated(own, pipeline)
    return clock.looked / clock.forwards / clock.FORWARD


@pytest.mark.parametrize("budget", [0.01, 0.03, 0.5])
def test_an_evaluation_costs_what_was_said_and_stays_within_the_budget(
    pipeline: Any, planted: Planted, budget: float
) -> None:
    own = evaluator(pipeline, budget=budget)
    choice = choose(own, pipeline)
    share = counted(choice, pipeline, own, planted)
    assert share <= budget
    said = float(choice.words.split("looking ")[1].split(" ")[0])
    assert said == pytest.approx(100 * share, rel=0.06) and f"(budget {100 * budget:.2g} %)" in choice.words
    layers, heads = len(choice.heads), sum(map(len, choice.heads.values()))
    times = len(choice.times or range(4))
    assert choice.words.startswith(f"{layers} of 6 layers, {heads} of 48 heads, {times} of 4 noise times")
    assert share >= 0.6 * budget or budget == 0.5


def test_a_budget_that_cannot_be_kept_is_said_with_the_one_that_can(pipeline: Any, planted: Planted) -> None:
    own = evaluator(pipeline, budget=1e-5)
    choice = choose(own, pipeline)
    share = counted(choice, pipeline, own, planted)
    assert sum(map(len, choice.heads.values())) == 2 and len(choice.times) == 1
    needed = float(choice.words.split("budget=")[1].split(" ")[0])
    assert "can't be kept" in choice.words and share <= needed < share + 0.001


def test_the_pilot_runs_the_same_forwards_whatever_it_finds(pipeline: Any, planted: Planted) -> None:
    counts = []
    for budget in (1e-5, 0.02, 1.0):
        before = planted.forwards
        choose(evaluator(pipeline, budget=budget), pipeline)
        counts.append(planted.forwards - before)
    assert counts[1] - counts[0] == counts[2] - counts[1] == 0


def test_later_looks_are_as_the_first_and_so_is_a_resumed_run(pipeline: Any, planted: Planted) -> None:
    own = evaluator(pipeline, budget=0.01)
    first = evaluated(own, pipeline)
    kept = own.choice
    assert first.chosen == kept.words and first.times == kept.times and first.spread == kept.spread
    assert set(first.layers) == set(first.heads) == set(kept.heads) and len(first.layers) < 6
    again = Evaluation.from_json(first.to_json())
    assert again == first
    resumed = evaluator(pipeline, budget=0.01)
    resumed.look_as(again)
    second = evaluated(resumed, pipeline)
    assert resumed.choice == kept and not differences(second, first)
    np.testing.assert_allclose(second.values("imacs_g"), first.values("imacs_g"), rtol=1e-5)
    other = replace(kept, times=(0,) if kept.times != (0,) else (1,))
    resumed.choice = other
    assert "times" in str(differences(evaluated(resumed, pipeline), first))


def test_heads_of_another_model_are_refused(pipeline: Any) -> None:
    own = evaluator(pipeline, budget=0.01)
    own.choice = Choice(heads={"nowhere": {0: 1.0}})
    with pytest.raises(UnsupportedModel, match="nowhere"):
        own.check(pipeline)


# -- standard errors ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(pipeline: Any) -> tuple[Evaluator, Any]:
    """A pilot that has looked at everything."""
    own = evaluator(pipeline, heads=14)
    found = pilot._Pilot(own, pipeline, Clock())
    found.look()
    return own, found


TAGS = (
    "imacs_g",
    "imacs_r",
    "imacs_r_hole",
    "imacs_g_centred",
    "imacs_g_object_mass",
    "energy_r_hole",
    "attention_information",
)


def assert_alike(told: np.ndarray, seen: np.ndarray, within: float) -> None:
    assert np.abs(told - seen).mean() <= within * seen.mean()


def test_the_maps_of_other_heads_are_those_of_a_look_at_them(pipeline: Any, seen: tuple[Evaluator, Any]) -> None:
    own, found = seen
    own.prepare(pipeline)
    for seed in range(2):
        heads = drawn_anew(own.choice.heads, dict.fromkeys(own.choice.heads, HEADS), seed)
        looked = replace(own, choice=Choice(heads=heads))
        looked.check(pipeline)
        observations = looked.observe(pipeline, looked.batches[0])
        for view, observation in zip(found.views, observations, strict=True):
            told = with_heads(view.maps, heads, own.plan)
            # Negative lobes of an enlargement are cut off at each step of a look.
            assert_alike(told.r2g.unified, observation.maps.r2g.unified, 0.01)
            assert_alike(told.g2r_region.unified, observation.maps.g2r_region.unified, 0.01)
            for layer, map in observation.maps.g2r_region.by_layer.items():
                assert_alike(told.g2r_region.by_layer[layer], map, 1e-3)  # half precision
            for layer, bits in observation.maps.layer_information.items():
                assert told.layer_information[layer] == pytest.approx(bits, rel=1e-3)


@pytest.mark.parametrize("count", [14, 26])
def test_the_errors_are_the_spread_over_draws_and_intervals_hold_what_all_heads_say(
    seen: tuple[Evaluator, Any], count: int
) -> None:
    _, found = seen
    plan = CapturePlan(heads=count)
    heads = pilot.choose_heads(found.information, plan)
    spread = pilot.pilot_spread(found.views, heads, None, plan=plan, steps=10**6)
    sizes = dict.fromkeys(heads, HEADS)
    every = {la: dict.fromkeys(range(HEADS), 1.0) for la in heads}
    draws = [drawn_anew(heads, sizes, 10_000 + n) for n in range(150)]
    apart: dict[str, list[list[float]]] = {tag: [] for tag in spread}
    for view in found.views:
        whole = figures_of_heads(view, with_heads(view.maps, every, plan))
        others = [figures_of_heads(view, with_heads(view.maps, draw, plan)) for draw in draws]
        for tag in spread:
            apart[tag].append([other[tag] - whole[tag] for other in others])
    covered = []
    for tag in TAGS:
        of_pair, of_mean = np.array(apart[tag]), np.mean(apart[tag], axis=0)
        expected, told = np.sqrt((of_mean**2).mean()), SamplingError.of(spread[tag].variance(len(found.views)))
        held = np.mean(np.abs(of_mean) <= told.reach)
        if (of_mean**2).mean() < (of_pair**2).mean() / len(of_pair):
            # The pairs' errors take each other off, which is chance: of more pairs that is not taken for granted.
            assert told.error >= 0.85 * expected and held >= 0.93
        else:  # both are known to a tenth
            assert told.error == pytest.approx(expected, rel=0.3)
            covered.append(held)
    assert len(covered) >= 5 and 0.93 <= np.mean(covered) <= 0.97


def test_an_evaluation_says_how_far_its_figures_may_lie_from_a_full_look(pipeline: Any) -> None:
    found = evaluated(evaluator(pipeline, heads=14), pipeline)
    copying = f"layer/{found.copying_layer}/imacs_r_hole"
    assert {*TAGS, copying} <= found.sampling.keys() == found.errors.keys()
    for tag in (*TAGS, copying):
        error = found.sampling[tag]
        assert isinstance(error, SamplingError) and error.error > 0
        assert found.estimate(tag).sampling == pytest.approx(error.reach)
        assert all(
            one >= 0.3 * error.error for one in found.errors[tag]
        )  # a pair is not surer than the mean, but for chance
    assert Evaluation.from_json(found.to_json()).sampling == found.sampling


def test_without_a_pilot_drawn_heads_have_no_error(pipeline: Any) -> None:
    own = evaluator(pipeline, heads=14)
    own.prepare(pipeline)
    own.choice = Choice(heads=own.choice.heads)  # of a baseline from before there were spreads
    found = evaluated(own, pipeline)
    assert found.sampling["imacs_g"] == Undefined(NO_PILOT) and found.estimate("imacs_g").sampling is None
    assert set(found.errors["imacs_g"]) == {Undefined(NO_PILOT)}


def test_with_all_heads_the_error_is_that_of_the_noise_times(pipeline: Any) -> None:
    found = evaluated(evaluator(pipeline), pipeline)
    assert found.heads is None and found.spread == {} and found.chosen == "" and found.times is None
    error = found.sampling["imacs_g"]
    assert isinstance(error, SamplingError) and error.degrees < 3


def test_large_pairs_are_scored_small() -> None:
    pair = validation_pairs(1, seed=3)[0]
    large = replace(
        pair,
        target=pair.target.resize((640, 640)),
        mask=np.kron(pair.mask, np.ones((640 // len(pair.mask),) * 2, bool)),
    )
    small = pilot._smaller(large)
    assert max(small.target.size) <= 256 and small.mask.mean() == pytest.approx(pair.mask.mean(), abs=0.02)
    assert pilot._smaller(pair).mask.tolist() == pair.mask.tolist()
