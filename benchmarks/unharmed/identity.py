"""Training with the callback against the same training without it: weights, optimizer, losses, random states, bit for bit.

Every set-up of `training_setups`, each way of looking at pairs, with evaluations that succeed and that raise in the middle of
a forward. The short form takes one way and outcome a set-up, in turn; of `torch.compile` with a real backend, which takes
minutes, the long form takes one way.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch
from training import Run

from i2am_debug import CapturePlan
from i2am_debug.demo.inpainting.pairs import validation_pairs
from i2am_debug.demo.inpainting.training import teacher_forced

from .found import Found
from .training_setups import SET_UPS, SetUp, new_run

STEPS, FEW_STEPS, EVERY = 5, 3, 2  # the short form trains few
WAYS = ("teacher_forcing", "sampling", "loss_fn")
OUTCOMES = ("succeeds", "raises")
_FORWARD_THAT_RAISES = 2


class Planted(Exception):
    """What the evaluations raise that are to raise."""


class Fault:
    """Raises in the middle of a forward of the denoiser, while it is armed."""

    def __init__(self, unet: torch.nn.Module) -> None:
        self.armed, self.fired, self._forwards = False, 0, 0
        unet.up_blocks[0].register_forward_pre_hook(torch._dynamo.disable(self._count))

    def _count(self, module: Any, inputs: Any) -> None:
        if self.armed:
            self._forwards += 1
            if self._forwards % _FORWARD_THAT_RAISES == 0:
                self.fired += 1
                raise Planted("in the middle of a forward")


def measure(*, long: bool) -> Found:
    """`Found` with a row a case; a case that did not fire, as an evaluation that should have raised, is a harm too."""
    rows, harm, steps = [], [], STEPS if long else FEW_STEPS
    with tempfile.TemporaryDirectory() as folder:
        for set_up, cases in _cases(long):
            reason = set_up.unavailable()
            alone = None if reason else _trained(set_up, Path(folder), None, None, steps)
            for way, outcome in cases:
                row = {"set-up": set_up.name, "way": way, "evaluation": outcome}
                if alone is None:
                    rows.append({**row, "result": f"not run: {reason}"})
                    continue
                wrong = _compared(alone, set_up, Path(folder), way, outcome, steps)
                rows.append({**row, "result": "; ".join(wrong) or "identical"})
                harm += [f"{set_up.name}, {way}, evaluation {outcome}: {one}" for one in wrong]
    ran = [row for row in rows if not row["result"].startswith("not run")]
    identical = sum(row["result"] == "identical" for row in ran)
    return Found(
        rows=rows, harm=harm, counted={"identical": identical, "of": len(ran), "not run": len(rows) - len(ran)}
    )


def _cases(long: bool) -> Iterator[tuple[SetUp, list[tuple[str, str]]]]:
    every = list(product(WAYS, OUTCOMES))
    for number, set_up in enumerate(SET_UPS):
        if long:
            way = WAYS[number % len(WAYS)]
            yield set_up, [case for case in every if case[0] == way or not set_up.is_slow]
        elif set_up.in_short_form:
            yield set_up, [every[number % len(every)]]


def _compared(
    alone: dict[str, Any], set_up: SetUp, folder: Path, way: str, outcome: str, steps: int = STEPS
) -> list[str]:
    """What is wrong with this case; nothing where training is identical and the evaluations went as they should."""
    try:
        watched = _trained(set_up, folder, way, outcome, steps)
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    evaluated, fired = watched.pop("evaluated"), watched.pop("fired")
    looked_at = list(range(EVERY, steps + 1, EVERY))
    wrong = [f"not the same: {path}" for path in _differing(alone, watched)][:3]
    if evaluated != (looked_at if outcome == "succeeds" else []):
        wrong.append(f"evaluated at {evaluated}")
    if fired != (0 if outcome == "succeeds" else len(looked_at)):
        wrong.append(f"{fired} evaluations raised")
    return wrong


def _trained(set_up: SetUp, folder: Path, way: str | None, outcome: str | None, steps: int = STEPS) -> dict[str, Any]:
    """What a run leaves; alone, or with a callback that looks this way."""
    run = new_run(set_up, folder)
    fault = Fault(run.accelerator.unwrap_model(run.unet, keep_torch_compile=False))
    if way is None:
        return _left(run, set_up.train(run, steps, lambda number: None))
    loss_fn = _of_the_pipeline_looked_at(run, set_up) if way == "loss_fn" else None
    pipeline = run.built if loss_fn is not None else set_up.pipeline(run)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        callback = run.callback(
            validation_pairs(2, seed=11),
            pipeline=pipeline,
            way=way,
            with_loss=False,
            **({} if loss_fn is None else {"loss_fn": loss_fn}),
            every_n_steps=EVERY,
            plan=CapturePlan(sampler_steps=2),
            pictures=0,
            on_error="warn",
            synchronous=False,
            logdir=own,
        )

        def look(number: int) -> None:
            fault.armed = outcome == "raises"
            callback.on_step_end(number)
            fault.armed = False

        with _silent():  # an untrained model alerts at every step, and the planted faults are told of
            losses = set_up.train(run, steps, look)
        evaluated = [evaluation.global_step for evaluation in callback.history()]
    return {**_left(run, losses), "evaluated": evaluated, "fired": fault.fired}


@contextmanager
def _silent() -> Iterator[None]:
    logger = logging.getLogger("i2am_debug")
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = False


def _of_the_pipeline_looked_at(run: Run, set_up: SetUp) -> Any:
    """A loss function of whichever pipeline is built for this evaluation."""
    given = set_up.pipeline(run)
    looked_at = [run.pipeline]

    def build() -> Any:
        looked_at[0] = given() if callable(given) and not hasattr(given, "unet") else given
        return looked_at[0]

    run.built = build
    return lambda *args, **named: teacher_forced(looked_at[0])(*args, **named)


def _left(run: Run, losses: list[torch.Tensor]) -> dict[str, Any]:
    gradients = [p.grad for module in (run.unet, run.encoder) for p in module.parameters()]
    return {**run.state(), "losses": losses, "gradients": gradients, "next": torch.rand(3)}


def _differing(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in {**ours, **theirs}:
            yield from _differing(ours.get(key), theirs.get(key), f"{path}/{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from _differing(*pair, f"{path}/{number}")
    elif isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        if ours.dtype != theirs.dtype or not torch.equal(ours, theirs):
            yield path
    elif ours != theirs:
        yield path
