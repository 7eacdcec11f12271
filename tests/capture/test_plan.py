"""What an evaluation looks at: stratified, seeded, the same at every evaluation, and unbiased."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import Any

import pytest

from i2am_debug.capture.plan import CapturePlan, choose_heads


@pytest.mark.parametrize(("total", "count"), [(20, 5), (50, 7), (13, 4), (6, 5), (50, 1)])
def test_one_step_is_drawn_from_each_of_equal_stretches(total: int, count: int) -> None:
    seen = set()
    for seed in range(400):
        steps = CapturePlan(sampler_steps=count, seed=seed).draw_steps(total)
        assert len(steps) == count
        assert list(steps) == sorted(set(steps))
        for i, step in enumerate(steps):
            assert i * total // count <= step < (i + 1) * total // count
        seen.update(steps)
    assert seen == set(range(total))  # every step has its chance


def test_the_draw_is_the_same_at_every_call_and_in_every_process() -> None:
    plan = CapturePlan(seed=3)
    drawn = plan.draw_steps(50)
    random.seed(1)
    assert plan.draw_steps(50) == drawn
    assert CapturePlan(seed=3).draw_steps(50) == drawn
    code = "from i2am_debug.capture.plan import CapturePlan; print(CapturePlan(seed=3).draw_steps(50))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == str(drawn)


def test_a_draw_leaves_the_callers_random_numbers_alone() -> None:
    random.seed(5)
    expected = random.random()
    random.seed(5)
    CapturePlan().draw_steps(50)
    choose_heads({"a": [0.1] * 9}, CapturePlan(heads=4))
    assert random.random() == expected


def test_another_seed_draws_other_steps() -> None:
    assert len({CapturePlan(seed=s).draw_steps(50) for s in range(10)}) > 5


@pytest.mark.parametrize(("count", "total"), [(None, 12), (12, 12), (40, 12), (5, 1)])
def test_all_steps_when_asked_for_all_or_more(count: int | None, total: int) -> None:
    assert CapturePlan(sampler_steps=count).draw_steps(total) == tuple(range(total))


@pytest.mark.parametrize("name", ["sampler_steps", "heads", "time_groups"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "5", True])
def test_counts_below_one_and_other_types_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name}={value!r}.*whole number of at least 1") as caught:
        CapturePlan(**{name: value})
    assert ("or None for all" in str(caught.value)) == (name != "time_groups")


def test_none_means_all_for_steps_and_heads_but_not_for_groups() -> None:
    assert CapturePlan(sampler_steps=None, heads=None) == CapturePlan.full()
    with pytest.raises(ValueError, match="time_groups=None"):
        CapturePlan(time_groups=None)


@pytest.mark.parametrize("name", ["layers", "exclude"])
def test_one_string_is_not_a_tuple_of_patterns(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}=.*tuple of patterns, got one string"):
        CapturePlan(**{name: "up*"})
    assert getattr(CapturePlan(**{name: ["up*"]}), name) == ("up*",)


def test_an_unknown_weighting_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layer_weighting='finest'.*\"equal\" or \"paper\""):
        CapturePlan(layer_weighting="finest")


def test_a_plan_is_frozen_hashable_and_plain_in_json() -> None:
    plan = CapturePlan(layers=("up*", "down*"), seed=4)
    with pytest.raises(AttributeError):
        plan.seed = 5
    stored = json.loads(json.dumps(plan.to_dict()))
    assert stored["layers"] == ["up*", "down*"]
    assert CapturePlan(**stored) == plan
    assert hash(CapturePlan(**stored)) == hash(plan)


def test_layer_patterns() -> None:
    plan = CapturePlan(layers=("up_blocks.*", "mid*"), exclude=("*.2.*",))
    assert plan.looks_at("up_blocks.1.attentions.0")
    assert plan.looks_at("mid_block.attentions.0")
    assert not plan.looks_at("down_blocks.1.attentions.0")
    assert not plan.looks_at("up_blocks.2.attentions.0")
    assert CapturePlan().looks_at("anything at all")


def test_presets() -> None:
    full, paper, pilot = CapturePlan.full(seed=2), CapturePlan.paper(), CapturePlan.pilot(16)
    assert (full.sampler_steps, full.heads, full.layer_weighting, full.seed) == (None, None, "equal", 2)
    assert (paper.sampler_steps, paper.heads, paper.layer_weighting, paper.time_groups) == (None, None, "paper", 5)
    assert not paper.looks_at("mid_block.attentions.0")
    assert paper.looks_at("up_blocks.1.attentions.0")
    assert paper.draw_steps(50) == tuple(range(50))
    assert (pilot.heads, pilot.sampler_steps) == (16, CapturePlan().sampler_steps)
    assert CapturePlan.paper(sampler_steps=10).sampler_steps == 10


INFORMATION = {"a": [0.1, 2.0, 0.3, 0.2], "b": [0.0, 0.05, 0.01, 0.02, 0.03, 0.04], "c": [1.5, 1.4]}


@pytest.mark.parametrize("heads", [None, 12, 100])
def test_everything_is_looked_at_where_there_is_room(heads: int | None) -> None:
    assert choose_heads(INFORMATION, CapturePlan(heads=heads)) is None
    assert choose_heads(INFORMATION, CapturePlan(heads=11)) is not None


@pytest.mark.parametrize("heads", range(1, 12))
@pytest.mark.parametrize("seed", range(3))
def test_the_strongest_are_kept_and_each_layer_is_fully_stood_for(heads: int, seed: int) -> None:
    choice = choose_heads(INFORMATION, CapturePlan(heads=heads, seed=seed))
    strongest = sorted(((v, n, h) for n, vs in INFORMATION.items() for h, v in enumerate(vs)), reverse=True)
    strongest = {(n, h) for _, n, h in strongest[: heads // 2]}
    assert list(choice) == list(INFORMATION)
    for layer, weights in choice.items():
        kept = {h for n, h in strongest if n == layer}
        drawn = set(weights) - kept
        remainder = len(INFORMATION[layer]) - len(kept)
        assert all(weights[h] == 1 for h in kept)
        assert (len(drawn) >= 1) == (remainder > 0)
        assert all(weights[h] == pytest.approx(remainder / len(drawn)) for h in drawn)
        assert sum(weights.values()) == pytest.approx(len(INFORMATION[layer]))
        assert list(weights) == sorted(weights)
    # "about" so many: one for each layer's remainder, and the rounding of each layer's share
    assert abs(sum(map(len, choice.values())) - heads) <= len(INFORMATION)


def test_a_layer_whose_heads_are_all_strongest_has_no_remainder() -> None:
    choice = choose_heads(INFORMATION, CapturePlan(heads=6))
    assert choice["c"] == {0: 1.0, 1: 1.0}
    assert choice["a"][1] == 1.0


def test_the_choice_of_heads_is_seeded() -> None:
    assert choose_heads(INFORMATION, CapturePlan(heads=6)) == choose_heads(INFORMATION, CapturePlan(heads=6))
    choices = {str(choose_heads(INFORMATION, CapturePlan(heads=6, seed=s))) for s in range(20)}
    assert len(choices) > 5


def test_weighted_sums_are_unbiased_over_seeds() -> None:
    """The mean over 4000 draws lies within five standard errors of the sum over all heads, layer by layer."""
    values = {n: [random.Random(f"{n}{h}").random() for h in range(len(v))] for n, v in INFORMATION.items()}
    draws: dict[str, list[float]] = {n: [] for n in INFORMATION}
    for seed in range(4000):
        for layer, weights in choose_heads(INFORMATION, CapturePlan(heads=6, seed=seed)).items():
            draws[layer].append(sum(w * values[layer][h] for h, w in weights.items()))
    for layer, sums in draws.items():
        mean = sum(sums) / len(sums)
        sd = (sum((s - mean) ** 2 for s in sums) / len(sums)) ** 0.5
        assert abs(mean - sum(values[layer])) <= 5 * sd / len(sums) ** 0.5 + 1e-9, layer
    assert len(set(draws["b"])) > 3  # something was drawn at all


def test_the_plan_needs_no_torch() -> None:
    code = "import sys, i2am_debug.capture.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
