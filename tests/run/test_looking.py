"""An evaluation that does not fit in memory is made with fewer pairs at once, for the rest of the run, and says so."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from training import Run

from i2am_debug.demo.inpainting.pairs import validation_pairs
from i2am_debug.evaluation.memory import one_pair_at_a_time, ran_out_of_memory
from i2am_debug.figures.record import Evaluation, differences
from i2am_debug.run.looking import Looking

pytestmark = pytest.mark.usefixtures("few_probes")

PAIRS = validation_pairs(5, seed=11)
TAGS = ("loss", "reference_gap", "imacs_g", "attention_information")


class Device:
    """Has room for so many pairs in one forward of the denoiser."""

    def __init__(self, run: Run, room: float = np.inf) -> None:
        self.room, self.sizes, self.held = room, [], []
        run.pipeline.unet.register_forward_pre_hook(self._allocate)

    def _allocate(self, module: Any, given: tuple[torch.Tensor, ...]) -> None:
        self.sizes.append(len(given[0]))
        activations = torch.zeros(8)
        self.held = [ref for ref in self.held if ref() is not None]
        if len(given[0]) > self.room:
            self.held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("planted: CUDA out of memory. Tried to allocate\nsome GiB")


@pytest.fixture
def made(tmp_path, caplog) -> Callable[..., Any]:
    """A run, its device and a callback that looks at four pairs at once."""
    caplog.set_level(logging.WARNING, "i2am_debug")

    def make(name: str, **changes: Any) -> tuple[Run, Device, Any]:
        run = Run(tmp_path / name)
        settings = {"batch_size": 4, "with_loss": False, "panels": 0, **changes}
        return run, Device(run), run.callback(PAIRS, **settings)

    return make


def assert_alike(ours: Evaluation, theirs: Evaluation, rtol: float) -> None:
    for tag in TAGS:
        np.testing.assert_allclose(ours.values(tag), theirs.values(tag), rtol=rtol, atol=1e-6, err_msg=tag)


def warnings_of(caplog: Any) -> list[str]:
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    return [text for text in told if "too few" not in text and "ALERT" not in text]


def test_by_teacher_forcing_figures_stay_what_they_were(made, caplog):
    _, device, callback = made("run")
    before = callback.evaluate(0)
    assert max(device.sizes) == 4
    device.room, device.sizes[:] = 2, []
    after = callback.evaluate(10)
    assert device.sizes[0] == 4 and max(device.sizes[1:]) == 2
    assert_alike(after, before, rtol=2e-4)
    assert not differences(after, before)
    (said,) = warnings_of(caplog)
    assert said == (
        "i2am: looking at 4 pairs at once ran out of memory (planted: CUDA out of memory. Tried to allocate); in the rest of "
        "this run it is 2 at once, batch_size=2 asks for no more; each pair keeps its noise, so its figures stay comparable"
    )
    device.room, device.sizes[:] = np.inf, []
    callback.evaluate(20)
    assert max(device.sizes) == 2, "once a run"
    assert len(warnings_of(caplog)) == 1


def test_it_is_halved_until_it_fits_and_what_a_failed_forward_held_is_free(made, caplog):
    _, device, callback = made("run")
    callback.evaluate(0)
    device.room, device.sizes[:] = 1, []
    evaluation = callback.evaluate(10)
    assert len(evaluation.pairs) == 5 and device.sizes[:2] == [4, 2] and device.sizes[2] == 1
    assert not device.held, "the error that was caught keeps the forward's tensors"
    assert [said[:30] for said in warnings_of(caplog)] == [
        "i2am: looking at 4 pairs at on",
        "i2am: looking at 2 pairs at on",
    ]


def test_a_batch_size_beyond_the_pairs_is_not_halved_in_vain(made):
    _, device, callback = made("run", batch_size=64)
    callback.evaluate(0)
    device.room, device.sizes[:] = 2, []
    callback.evaluate(10)
    assert device.sizes[:2] == [5, 2]


def test_by_a_loss_the_noise_is_another_so_the_baseline_is_too(made, caplog):
    _, device, callback = made("run", with_loss=True)
    before = callback.evaluate(0)
    device.room = 2
    after = callback.evaluate(10)
    assert differences(after, before) == {"batch_size": (2, 4)}
    assert "not comparable with those before" in warnings_of(caplog)[0]
    assert warnings_of(caplog)[1] == (
        "i2am: the next evaluation is this run's baseline in place of that at step 0: what was lost before can't be seen"
    )
    assert callback.monitor.reporter.baseline.global_step == 10
    later = callback.evaluate(20)
    assert not differences(later, after) and not any("no fall is looked for" in said for said in warnings_of(caplog))
    _, _, smaller = made("smaller", with_loss=True, batch_size=2)
    expected = smaller.evaluate(0)
    assert_alike(after, expected, rtol=0)
    assert not differences(after, expected)


def test_with_a_baseline_of_somebodys_own_nothing_takes_its_place(made, caplog, tmp_path):
    _, _, first = made("first", with_loss=True)
    first.evaluate(0)
    file = next((tmp_path / "first").rglob("step_*.safetensors"))
    _, device, callback = made("run", with_loss=True, baseline=str(file))
    device.room = 2
    callback.evaluate(10)
    assert any("the baseline is not comparable: batch_size" in said for said in warnings_of(caplog))


def test_a_resumed_run_does_not_try_again(made):
    _, device, callback = made("run")
    device.room = 2
    callback.evaluate(0)
    _, other, again = made("again")
    again.load_state_dict(callback.state_dict())
    again.evaluate(10)
    assert max(other.sizes) == 2
    again.load_state_dict({})
    again.evaluate(20)
    assert max(other.sizes) == 4, "older checkpoints say nothing of it"


@pytest.mark.parametrize("batch_size", [1, 4])
def test_where_one_pair_is_too_much_the_cure_is_named_and_training_goes_on(made, caplog, batch_size):
    _, device, callback = made("run", on_error="warn", batch_size=batch_size)
    callback.on_step_end(10)
    device.room = 0
    callback.on_step_end(20)
    (said,) = [one for one in warnings_of(caplog) if "is skipped" in one]
    assert "failed while looking (pair 'demo_00') and is skipped" in said
    assert "not even one pair at a time fits in memory" in said and "size=(width, height)" in said
    device.room = np.inf
    callback.on_step_end(30)
    assert [one.global_step for one in callback.history()] == [10, 30]


def test_what_is_no_lack_of_memory_is_not_tried_again(made):
    run, device, callback = made("run")
    callback.evaluate(0)
    run.pipeline.unet.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("planted")))
    device.sizes.clear()
    with pytest.raises(RuntimeError, match="planted"):
        callback.evaluate(10)
    assert device.sizes == [4]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("anything"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (MemoryError(), False),
    ],
)
def test_devices_say_in_different_words_that_memory_is_out(error, expected):
    assert ran_out_of_memory(error) is expected
    with pytest.raises(torch.OutOfMemoryError if expected else type(error)), one_pair_at_a_time():
        raise error


def test_what_is_looked_at_is_chosen_by_the_main_process_for_all() -> None:
    evaluator = SimpleNamespace(pairs_at_once=1, choice=None, batches=[], sampled_apart=[])
    evaluator.prepare = lambda pipeline: setattr(evaluator, "choice", "what this process measured")
    gathered: list[Any] = []

    def gather(work: Callable[[], Any]) -> list[Any]:
        gathered.append(work())
        return ["what the main process measured", gathered[-1]]

    processes = SimpleNamespace(
        is_main=False, gather=gather, share=lambda work: work, in_lockstep=lambda pipeline: nullcontext()
    )
    Looking(evaluator, processes, progress_bar=False).look(None)
    assert gathered[0] == "what this process measured"
    assert evaluator.choice == "what the main process measured"
