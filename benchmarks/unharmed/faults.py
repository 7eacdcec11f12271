"""A fault at every stage of an evaluation: what becomes of the training, of what it had written, and of an alert.

The stages are those of `i2am_debug.run.stages.Stage`: one that is added is tried without a change here. In each case a tiny
model trains for two steps, evaluated before it and after each; from step 1 on its loss is beyond a rule's limit, and in that
evaluation, at one stage, a fault is planted. Afterwards everything must be as in a run without the callback.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from test_capture import left_behind
from training import Run

from i2am_debug import CapturePlan, Rule, Rules
from i2am_debug.demo.inpainting.pairs import validation_pairs
from i2am_debug.demo.inpainting.training import teacher_forced
from i2am_debug.run import stages
from i2am_debug.run.stages import Stage
from i2am_debug.store.run_store import RunStore

from .disks import fill, rights_of_an_ordinary_user, small_disk
from .found import Found

FAULTS = ("exception", "out of memory", "interrupt", "full disk", "read-only folder", "files deleted")
_AT_THE_BEGINNING, _AT_THE_END = (Stage.OPEN,), (Stage.CLOSE,)
_OF_A_PAIR = (Stage.LOOK, Stage.PICTURE, Stage.ALERT_PANELS, Stage.DRAW)
_IN_BACKGROUND = (
    Stage.PACK,
    Stage.STORE,
    Stage.ALERT_PANELS,
    Stage.FIGURES,
    Stage.ALERT_TOLD,
    Stage.PAIRS,
    Stage.THIN,
    Stage.DRAW,
)


@dataclass
class Case:
    """One fault at one stage, and what was seen."""

    fault: str
    stage: Stage
    fired: bool = False
    warnings: list[str] = field(default_factory=list)
    harm: list[str] = field(default_factory=list)

    @property
    def row(self) -> dict[str, Any]:
        said = next((w for w in self.warnings if "training goes on" in w), "").removeprefix("i2am: ")
        return {
            "stage": self.stage.name,
            "fault": self.fault,
            "fired": "yes" if self.fired else "NO",
            "harm": "; ".join(self.harm) or "none",
            "said": said.replace("\n", " ").replace("|", "/")[:160],
        }


def measure(*, long: bool) -> Found:
    """Every fault at every stage; the short form takes one fault a stage, in turn."""
    torch.set_num_threads(1)  # the model is tiny: threads would wait for each other
    everything = list(itertools.product(Stage, FAULTS))
    if not long:
        everything = [(stage, FAULTS[number % len(FAULTS)]) for number, stage in enumerate(Stage)]
    with tempfile.TemporaryDirectory() as folder:
        (alone := _Training(Path(folder, "alone"), None)).run()
        cases = [
            _try(Case(fault, stage), Path(folder, f"case_{n}"), alone) for n, (stage, fault) in enumerate(everything)
        ]
    tried = [case for case in cases if case is not None]
    harm = [f"{c.fault} at {c.stage.name}: {what}" for c in tried for what in c.harm]
    harm += [f"{c.fault} at {c.stage.name} never fired" for c in tried if not c.fired]
    counted = {
        "cases": len(tried),
        "fired": sum(case.fired for case in tried),
        "not run (no tmpfs may be mounted here, or root's rights not be given up)": len(cases) - len(tried),
    }
    return Found(rows=[case.row for case in tried], harm=harm, counted=counted)


class _Training:
    """Two steps of an untrained tiny model, whose own points go into its own tracker."""

    def __init__(self, folder: Path, case: Case | None) -> None:
        self.loop, self.case, self.told = Run(folder), case, []
        self.beyond_its_limit = False
        self.run_folder = folder / "run"

    def callback(self) -> Any:
        own = teacher_forced(self.loop.pipeline)

        def loss_fn(*given: Any, **named: Any) -> Any:
            loss = own(*given, **named)
            return loss + 1000 if self.beyond_its_limit else loss

        loud = Rule(name="loud", kind="ceiling", figure="loss", limit=500.0, severity="critical")
        risen = Rule(name="risen", kind="drop", figure="loss", margin="50%")  # whose cause is looked for
        return self.loop.callback(
            pairs=validation_pairs(2, seed=11),
            plan=CapturePlan(sampler_steps=1),
            loss_fn=loss_fn,
            batch_size=1,
            every_n_steps=1,
            keep_matrices=1,
            panels=1,
            pictures=1,
            num_inference_steps=1,
            rules=Rules(rules=(loud, risen)),
            on_alert=self.told.append,
            on_error="warn",
            synchronous=False,
        )

    def run(self, around: Callable[[int], Any] | None = None) -> None:
        """`around(step)` is a context for what the callback does at a step: −1 at the beginning, 3 at the end."""
        callback = None if around is None else self.callback()
        for step in range(-1, 4):
            if 1 <= step <= 2:
                self.loop.train(1)
                self.loop.accelerator.log({"own": float(step)}, step=step)
            if callback is None or around is None:
                continue
            self.beyond_its_limit = step >= 1
            with suppress(KeyboardInterrupt), around(step):
                if step == -1:
                    callback.on_train_begin(0)
                elif step == 3:
                    callback.on_train_end(2)
                elif step > 0:
                    callback.on_step_end(step)
                callback.monitor.reporter.recorder.wait()  # so that a fault in the background is one of this step
        self.should_stop = callback is not None and callback.should_stop
        self.loop.accelerator.end_training()


def _try(case: Case, folder: Path, alone: _Training) -> Case | None:
    with ExitStack() as stack:
        if case.fault == "full disk":
            disk = stack.enter_context(small_disk(folder, "24m"))
            if disk is None:
                return None
        if case.fault == "read-only folder" and not stack.enter_context(rights_of_an_ordinary_user()):
            return None
        stack.enter_context(_heard(case))
        training = _Training(folder, case)
        # Given back whatever happens: pytest and later cases must be able to write and to clean up.
        stack.callback(lambda: [one.chmod(0o755) for one in folder.rglob("*") if one.is_dir()])
        training.run(lambda step: _planted(case, training, step))
        case.harm += _harm(case, training, alone)
    shutil.rmtree(folder, ignore_errors=True)
    return case


@contextmanager
def _heard(case: Case) -> Iterator[None]:
    handler, logger = logging.Handler(logging.WARNING), logging.getLogger("i2am_debug")
    handler.emit = lambda record: case.warnings.append(record.getMessage())
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated


@contextmanager
def _planted(case: Case, training: _Training, step: int) -> Iterator[None]:
    """The fault, if this is its moment; the disk is well again afterwards."""
    moment = -1 if case.stage in _AT_THE_BEGINNING else 3 if case.stage in _AT_THE_END else 1
    if step != moment:
        yield
        return
    undo = ExitStack()
    seen = 0

    def entered(stage: Stage, pairs: Any = ()) -> None:
        nonlocal seen
        if stage is not case.stage or case.fired:
            return
        seen += bool(pairs)
        if stage in _OF_A_PAIR and seen < (2 if stage is Stage.LOOK else 1):
            return  # half-way, and where there is a pair to be named
        case.fired = True
        _break(case.fault, training.run_folder, undo)

    real, stages.entered = stages.entered, entered
    interrupted = False
    try:
        yield
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        stages.entered = real
        undo.close()
        if case.fault == "interrupt" and case.stage not in _IN_BACKGROUND and case.fired and not interrupted:
            case.harm.append("the interrupt was swallowed")


def _break(fault: str, run: Path, undo: ExitStack) -> None:
    if fault == "exception":
        raise RuntimeError("planted")
    if fault == "out of memory":
        raise torch.OutOfMemoryError("planted: out of memory")
    if fault == "interrupt":
        raise KeyboardInterrupt
    if fault == "full disk":
        undo.callback(fill(run.parent).unlink)
    if fault == "read-only folder":
        for folder in [run.parent, *(one for one in run.parent.rglob("*") if one.is_dir())]:
            folder.chmod(0o555)
            undo.callback(folder.chmod, 0o755)
    if fault == "files deleted":
        shutil.rmtree(run / "plugins", ignore_errors=True)
        shutil.rmtree(run / "i2am_pictures", ignore_errors=True)


def _harm(case: Case, training: _Training, alone: _Training) -> list[str]:
    """What is not as it must be; in words."""
    store, found = RunStore(training.run_folder), []
    if not _same(training.loop.state(), alone.loop.state()):
        found.append("the training is another")
    if left := left_behind(training.loop.pipeline.unet):
        found.append(f"left behind: {left[:2]}")
    steps = [one.global_step for one in store.evaluations()]
    nothing_came_later = case.fault == "files deleted" and case.stage in _AT_THE_END
    if 2 not in steps and not nothing_came_later:
        found.append(f"no later evaluation: {steps}")
    for stored in store.evaluations():
        if stored.path.is_file():
            stored.evaluation  # noqa: B018  (raises where it is not whole)
        elif case.fault != "files deleted":
            found.append(f"step {stored.global_step} is announced and not there")
    order = list(Stage).index
    deleted_again = case.fault == "files deleted" and order(case.stage) > order(Stage.ALERT_FILE)
    written = bool(store.alerts()) or deleted_again
    if not written or not training.told or not training.should_stop:
        found.append(f"alert lost: file {len(store.alerts())}, told {len(training.told)}, stop {training.should_stop}")
    if torn := list(store.folder.rglob("*.tmp")):
        found.append(f"stray files: {[one.name for one in torn]}")
    if missing := {1, 2} - _own_points(training.run_folder):
        found.append(f"the script's own points are lost: {missing}")
    expects_words = case.fault in ("exception", "out of memory")
    about = [w for w in case.warnings if case.stage.value in w]
    if expects_words and len(about) != 1:
        found.append(f"{len(about)} warnings name the stage: {case.warnings}")
    if expects_words and case.stage in _OF_A_PAIR and about and "pair '" not in about[0]:
        found.append(f"no pair is named: {about[0]}")
    return found


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(_same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, np.ndarray):
        return np.array_equal(ours, theirs)
    return bool(ours == theirs)


def _own_points(run: Path) -> set[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return {point.step for point in events.Scalars("own")} if "own" in events.Tags()["scalars"] else set()
