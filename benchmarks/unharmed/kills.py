"""`kill -9` at random moments of a run with checkpoints, again and again, until the run is through.

Each child goes on from the newest checkpoint. What an index announces must be readable after every kill; a run that came
through must have the evaluations, alerts and weights of one that was never killed, and no stray file.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from training import Run

from i2am_debug import CapturePlan, Rule, Rules
from i2am_debug.demo.inpainting.pairs import validation_pairs
from i2am_debug.store.run_store import RunStore

from .found import Found

STEPS, EVERY, CHECKPOINT_EVERY = 8, 2, 3
_EAGER = Rules(rules=(Rule(name="eager", kind="drop", figure="attention_information", margin=1e-9),))


def measure(*, long: bool) -> Found:
    """200 kills, in the short form 4."""
    torch.set_num_threads(1)
    kills, runs, harm, rows, rng = (200 if long else 4), 0, [], [], random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name, "whole")
        began = time.monotonic()
        os.waitpid(_start(whole), 0)
        takes, expected = time.monotonic() - began, _left(whole)
        done = 0
        while done < kills:
            folder, here = Path(name, f"run_{runs}"), 0
            while True:
                child = _start(folder)
                if done + here < kills and _killed_within(child, rng.uniform(0.02, 1.1) * takes):
                    here += 1
                    harm += [f"run {runs}, kill {here}: {what}" for what in _unreadable(folder)]
                    continue
                if done + here >= kills:
                    os.waitpid(child, 0)
                break
            found = _left(folder)
            wrong = [what for what in expected if found.get(what) != expected[what]]
            harm += [f"run {runs}: other {what} than uninterrupted: {found.get(what)}"[:300] for what in wrong]
            rows.append(
                {"run": runs, "kills": here, "evaluations": len(found["evaluations"]), "other": wrong or "none"}
            )
            done, runs = done + here, runs + 1
            shutil.rmtree(folder)
    return Found(rows=rows, harm=harm, counted={"kills": done, "runs": runs, "seconds of a run": round(takes, 1)})


def _start(folder: Path) -> int:
    """A child that trains from the newest checkpoint to the end."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        _train(folder)
        status = 0
    finally:
        os._exit(status)


def _killed_within(child: int, seconds: float) -> bool:
    """Whether it was still at work then; it is dead in any case."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


class _Progress:
    """What the script itself keeps in a checkpoint."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._run.step, "draws": self._run.draws.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._run.step = state["step"]
        self._run.draws.set_state(state["draws"])


def _train(folder: Path) -> None:
    logging.getLogger("i2am_debug").setLevel(logging.ERROR)
    run = Run(folder)
    run.accelerator.register_for_checkpointing(_Progress(run))
    callback = run.callback(
        pairs=validation_pairs(2, seed=11),
        plan=CapturePlan(sampler_steps=1),
        every_n_steps=EVERY,
        pictures=0,
        panels=1,
        keep_matrices=1,
        rules=_EAGER,
        synchronous=False,
    )
    run.accelerator.register_for_checkpointing(callback)
    checkpoints = sorted(folder.glob("checkpoint_*"))
    if checkpoints:
        run.accelerator.load_state(str(checkpoints[-1]))
    callback.on_train_begin(run.step)
    while run.step < STEPS:
        run.train(1, callback)
        if run.step % CHECKPOINT_EVERY == 0:
            half = folder / "saving"
            shutil.rmtree(half, ignore_errors=True)
            run.accelerator.save_state(str(half))
            half.rename(folder / f"checkpoint_{run.step:03d}")
    callback.on_train_end(run.step)
    run.accelerator.end_training()
    torch.save(run.state()["weights"], folder / "weights.pt")


def _left(folder: Path) -> dict[str, Any]:
    """What a run that came through has left, to compare."""
    store, weights = RunStore(folder / "run"), torch.load(folder / "weights.pt")
    return {
        "evaluations": [replace(stored.evaluation, seconds=0.0).to_json() for stored in store.evaluations()],
        "alerts": [alert.to_json() for alert in store.alerts()],
        "weights": {name: tensor.sum().item() for name, tensor in weights.items()},
        "files": sorted(
            str(one.relative_to(store.folder))
            for one in store.folder.rglob("*")
            if one.suffix in (".tmp", ".safetensors")
        ),
    }


def _unreadable(folder: Path) -> list[str]:
    """What a reader stumbles over after a kill."""
    store, found = RunStore(folder / "run"), []
    try:
        for stored in store.evaluations():
            stored.evaluation  # noqa: B018  (raises where it is not whole)
        for alert in store.alerts():
            found += [f"no panel {one}" for one in alert.panels.values() if not (store.folder / one).is_file()]
    except ValueError as error:
        found.append(str(error))
    return found
