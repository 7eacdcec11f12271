"""Which sampler step a forward call belongs to."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from i2am_debug import CapturePlan
from i2am_debug.capture.sampler_steps import StepCounter
from i2am_debug.errors import NothingCaptured


def steps_seen(scheduler, times, plan=None) -> tuple[list[int], StepCounter]:
    counter = StepCounter(plan or CapturePlan.full(), scheduler)
    return [counter.step for t in times if counter.advance({"timestep": t})], counter


def test_two_forwards_at_one_noise_time_are_one_step():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(3)
    twice = [t for t in scheduler.timesteps for _ in range(2)]
    seen, counter = steps_seen(scheduler, twice)
    assert seen == [0, 0, 1, 1, 2, 2] and counter.total == 3 and counter.forward == 1


def test_a_call_with_a_strength_has_the_remaining_steps():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    seen, counter = steps_seen(scheduler, scheduler.timesteps[6:])
    assert counter.total == 4 and seen == [0, 1, 2, 3]


def test_a_strength_is_seen_where_the_denoiser_gets_a_scaled_time():
    """Flux and Qwen pipelines pass t / 1000, which is none of the scheduler's times, and set its begin index."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    scheduler.set_begin_index(6)
    plan = CapturePlan(sampler_steps=2)
    seen, counter = steps_seen(scheduler, scheduler.timesteps[6:] / 1000, plan)
    assert counter.total == 4 and tuple(seen) == counter.chosen and len(seen) == 2


@pytest.mark.parametrize("name", ["timestep", "timesteps", "t"])
def test_the_noise_time_is_found_under_its_usual_names(name):
    counter = StepCounter(CapturePlan.full(), None)
    for time in (900, 900, 100):
        counter.advance({name: torch.tensor([time, time])})
    assert counter.step == 1


def test_more_steps_than_the_scheduler_has_are_two_calls_in_one_trace():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(2)
    with pytest.raises(NothingCaptured, match="more than the sampler's 2 steps.*new `with trace"):
        steps_seen(scheduler, [*scheduler.timesteps, *scheduler.timesteps])
