"""What is looked at stays within the budget, keeps the copying layer, tells most for its cost, and says what it is."""

from __future__ import annotations

import itertools
import random

import pytest

from i2am_debug.capture.plan import CapturePlan, drawn_anew
from i2am_debug.capture.within_budget import Chosen, Costs, choose_within, in_words

Information = dict[str, list[float]]


def model(seed: int, layers: int = 5, most: int = 8) -> tuple[Information, Costs]:
    """Layers of some heads, of which few tell much, and what they cost; the forwards take a second."""
    rng = random.Random(seed)
    information = {f"layer {n}": [rng.random() ** 4 for _ in range(rng.randint(1, most))] for n in range(layers)}

    def each(most: float) -> dict[str, float]:
        return {la: rng.uniform(0, most) for la in information}

    return information, Costs(forwards=1.0, layer=each(2e-3), head=each(1e-3), reading=each(1e-3), each_time=1e-4)


def cost(chosen: Chosen, costs: Costs) -> float:
    """Added up one by one."""
    seconds = 0.0
    for _ in chosen.times:
        seconds += costs.each_time
        for layer, heads in chosen.heads.items():
            seconds += costs.layer[layer]
            for _ in heads:
                seconds += costs.head[layer]
    for layer in chosen.heads:
        seconds += costs.reading[layer]
    return seconds / costs.forwards


def choice(information: Information, costs: Costs, budget: float, *, copying: str = "layer 0", seed: int = 0) -> Chosen:
    return choose_within(budget, information, costs, copying=copying, times=4, seed=seed)


@pytest.mark.parametrize("budget", [0.005, 0.01, 0.02, 0.05])
@pytest.mark.parametrize("seed", range(12))
def test_the_budget_is_kept_and_the_copying_layer_stays(seed: int, budget: float) -> None:
    information, costs = model(seed)
    copying = f"layer {seed % 5}"
    chosen = choice(information, costs, budget, copying=copying)
    assert chosen.share == pytest.approx(cost(chosen, costs))
    assert copying in chosen.heads and all(chosen.heads.values()) and chosen.times
    least = choice(information, costs, 0.0, copying=copying)
    assert chosen.share <= max(budget, least.share)
    assert set(chosen.times) <= set(range(4))


@pytest.mark.parametrize("seed", range(12))
def test_it_tells_nearly_as_much_as_the_best_of_all_choices(seed: int) -> None:
    information, costs = model(seed, layers=3, most=4)
    ranked = {la: sorted(bits, reverse=True) for la, bits in information.items()}
    best = 0.0
    for times in range(1, 5):
        for counts in itertools.product(*(range(len(bits) + 1) for bits in ranked.values())):
            some = {la: n for la, n in zip(ranked, counts, strict=True) if n}
            if "layer 0" in some and costs.share(some, times) <= 0.02:
                best = max(best, times * sum(sum(ranked[la][:n]) for la, n in some.items()))
    chosen = choice(information, costs, 0.02)
    told = len(chosen.times) * sum(sum(ranked[la][: len(each)]) for la, each in chosen.heads.items())
    assert chosen.share <= 0.02 and told >= 0.75 * best


def test_everything_is_looked_at_where_that_is_cheap_enough() -> None:
    information, costs = model(1)
    chosen = choice(information, costs, 1.0)
    assert chosen.heads == {la: dict.fromkeys(range(len(bits)), 1.0) for la, bits in information.items()}
    assert chosen.times == (0, 1, 2, 3)


def test_where_nothing_fits_the_least_is_looked_at() -> None:
    information, costs = model(2)
    chosen = choice(information, costs, 1e-9, copying="layer 3")
    assert list(chosen.heads) == ["layer 3"] and len(chosen.times) == 1
    assert len(chosen.heads["layer 3"]) == min(2, len(information["layer 3"]))


def test_a_dear_layer_is_left_out_and_what_tells_nothing_is_worth_nothing() -> None:
    information = {"copying": [3.0, 1.0], "dear": [2.0, 2.0], "cheap": [0.5, 0.5], "idle": [float("nan")] * 2}
    flat = dict.fromkeys(information, 1e-4)
    costs = Costs(forwards=1.0, layer={**flat, "dear": 0.1}, head=flat, reading=dict.fromkeys(flat, 0.0))
    chosen = choice(information, costs, 0.003, copying="copying")
    assert list(chosen.heads) == ["copying", "cheap"] or list(chosen.heads) == ["copying", "cheap", "idle"]
    assert chosen.bits == pytest.approx(5.0)


@pytest.mark.parametrize("seed", range(6))
def test_weighted_heads_stand_for_all_and_every_other_head_has_its_chance(seed: int) -> None:
    information, costs = model(seed)
    sizes = {la: len(bits) for la, bits in information.items()}
    chosen = choice(information, costs, 0.02)
    for layer, each in chosen.heads.items():
        assert sum(each.values()) == pytest.approx(sizes[layer])
        strongest = max(range(sizes[layer]), key=lambda h: information[layer][h])
        assert each[strongest] == 1
    certain = {la: {h for h, w in each.items() if w == 1} for la, each in chosen.heads.items()}
    seen: dict[str, set[int]] = {la: set() for la in chosen.heads}
    for other in range(300):
        draw = drawn_anew(chosen.heads, sizes, other)
        assert {la: len(each) for la, each in draw.items()} == {la: len(each) for la, each in chosen.heads.items()}
        for layer, each in draw.items():
            assert certain[layer] <= each.keys() and sum(each.values()) == pytest.approx(sizes[layer])
            seen[layer] |= each.keys()
    assert seen == {la: set(range(sizes[la])) for la in chosen.heads}


def test_it_is_the_same_at_every_call_and_another_with_another_seed() -> None:
    information, costs = model(4)
    assert choice(information, costs, 0.02) == choice(information, costs, 0.02)
    assert len({str(choice(information, costs, 0.02, seed=seed)) for seed in range(20)}) > 1


def test_it_is_said() -> None:
    information = {"a": [1.0] * 4, "b": [0.5] * 4}
    chosen = Chosen(heads={"a": {0: 1.0, 2: 3.0}}, times=(1, 3), share=0.008, bits=2.0)
    assert in_words(chosen, information, times=4, budget=0.01, measured=0.009) == (
        "1 of 2 layers, 2 of 8 heads, 2 of 4 noise times: looking 0.9 % of the forwards (budget 1 %); the most information for "
        "its cost, 2 of 6 bit"
    )
    assert in_words(chosen, information, times=4, budget=0.01, measured=0.0234) == (
        "1 of 2 layers, 2 of 8 heads, 2 of 4 noise times: looking 2.3 % of the forwards, the least there is: the budget of 1 % "
        "can't be kept, budget=0.024 would be needed; the most information for its cost, 2 of 6 bit"
    )


# -- the plan -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0, -0.1, 1.01, 1.5, "1%", True, float("nan")])
def test_a_budget_that_is_no_share_is_refused(budget: object) -> None:
    with pytest.raises(ValueError, match=r"budget=.*above 0 and at most 1"):
        CapturePlan(budget=budget)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"heads": 64}, "heads=64"),
        ({"heads": None}, "heads=None"),
        ({"sampler_steps": 4}, "sampler_steps=4"),
        ({"sampler_steps": None}, "sampler_steps=None"),
        ({"layers": ("up*",)}, "layers=('up*',)"),
    ],
)
def test_a_budget_beside_what_it_chooses_is_refused_and_both_are_named(other: dict, named: str) -> None:
    with pytest.raises(ValueError) as caught:
        CapturePlan(budget=0.01, **other)
    assert f"budget=0.01, {named}" in str(caught.value) and "give one of the two" in str(caught.value)


@pytest.mark.parametrize("preset", [CapturePlan.full, CapturePlan.paper, lambda **kw: CapturePlan.pilot(8, **kw)])
def test_a_preset_says_what_is_looked_at_so_that_a_budget_contradicts_it(preset) -> None:
    with pytest.raises(ValueError, match=r"budget=0\.01"):
        preset(budget=0.01)


def test_a_plan_without_a_budget_is_stored_as_before() -> None:
    assert "budget" not in CapturePlan().to_dict() and type(CapturePlan().to_dict()["heads"]) is int
    assert CapturePlan(budget=0.01, exclude=("mid*",), seed=3).to_dict()["budget"] == 0.01
    assert CapturePlan(heads=64) == CapturePlan()
