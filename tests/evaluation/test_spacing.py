"""Where the evaluations of a run lie, by steps and by a share of the time; with a clock of the test's own."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from i2am_debug.evaluation.spacing import Budget, EveryNSteps


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def alone(work):
    return work()


def run(spacing: Budget, clock: Clock, *, steps: int, a_step, an_evaluation: float, begin: int = 0) -> list[int]:
    """Trains and evaluates by the clock; the steps that were evaluated. The first evaluation is before training."""
    evaluated = []
    if begin == 0:
        clock.now += an_evaluation
        spacing.evaluated(0, an_evaluation)
    for step in range(begin + 1, begin + steps + 1):
        clock.now += a_step(step)
        if spacing.due(step, alone):
            clock.now += an_evaluation
            spacing.evaluated(step, an_evaluation)
            evaluated.append(step)
    return evaluated


def test_every_n_steps_is_every_multiple():
    spacing = EveryNSteps(5)
    assert [step for step in range(1, 21) if spacing.due(step, alone)] == [5, 10, 15, 20]
    assert spacing.falls_on(10) and not spacing.falls_on(11) and spacing.state() == {}
    assert "every 5 steps that is 2 s a step" in spacing.in_words(10.0)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("an_evaluation", [0.5, 12.0])
def test_evaluations_take_at_most_their_share_and_not_much_less(share, an_evaluation):
    clock = Clock()
    spacing = Budget(share, clock)
    evaluated = run(spacing, clock, steps=20_000, a_step=lambda _: 0.3, an_evaluation=an_evaluation)
    spent = an_evaluation * len(evaluated)
    # The first evaluation is owed from the beginning, and none comes within 10 steps of another.
    assert spent / clock.now <= share
    least = min(share * 0.95, an_evaluation / (an_evaluation + 10 * 0.3) * 0.95)
    assert (spent + 2 * an_evaluation) / clock.now >= least


def test_steps_that_grow_slower_or_faster_are_measured_anew():
    clock = Clock()

    def slow_at_first(step: int) -> float:  # compiling, caches
        return 5.0 if step <= 10 else 0.1

    evaluated = run(Budget(0.1, clock), clock, steps=5000, a_step=slow_at_first, an_evaluation=10.0)
    between = [b - a for a, b in pairwise(evaluated[1:])]
    assert all(900 <= steps <= 902 for steps in between)  # 90 s of training at 0.1 s


def test_processes_talk_a_few_times_an_evaluation_and_are_told_the_same():
    """Another process knows no time: it is told by the main one."""
    clock, talks = Clock(), []
    main, other = Budget(0.05, clock), Budget(0.05, lambda: 0.0)
    for spacing in (main, other):
        spacing.evaluated(0, 4.0)

    def from_main(work):
        talks.append(work())
        return talks[-1]

    evaluated = 0
    for step in range(1, 3001):
        clock.now += 0.2
        due = main.due(step, from_main)
        said = iter(talks[-1:])
        assert other.due(step, lambda _, said=said: next(said)) == due
        if due:
            evaluated += 1
            main.evaluated(step, 4.0), other.evaluated(step, 3.0)
    assert evaluated >= 6 and len(talks) <= 4 * (evaluated + 1)


def test_a_resumed_run_goes_on_where_it_was():
    whole, cut = Clock(), Clock()
    expected = run(Budget(0.1, whole), whole, steps=1000, a_step=lambda _: 0.25, an_evaluation=3.0)
    first = Budget(0.1, cut)
    evaluated = run(first, cut, steps=450, a_step=lambda _: 0.25, an_evaluation=3.0)
    state = json.loads(json.dumps(first.state()))
    later = Clock()
    later.now = 1e6  # another machine's clock
    second = Budget(0.1, later)
    second.resume(state)
    evaluated += run(second, later, steps=550, a_step=lambda _: 0.25, an_evaluation=3.0, begin=450)
    assert evaluated == expected
    Budget(0.1).resume({})  # a checkpoint from before there was a budget
