"""`I2AMCallback`: looks at the validation pairs now and then during a fine-tune with Accelerate."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from i2am_debug.calls import PipelineCall
from i2am_debug.capture import find_denoiser
from i2am_debug.drift import Alert, Margins, find_drops
from i2am_debug.errors import I2AMError
from i2am_debug.evaluation import Evaluator, Look, LossFunction, merge, with_seconds
from i2am_debug.families import Family
from i2am_debug.pairs import ValidationPairs
from i2am_debug.plan import CapturePlan
from i2am_debug.record import Evaluation, Undefined, differences
from i2am_debug.report import log_line, pictures_of
from i2am_debug.scores import IMACSSettings
from i2am_debug.store import RunStore, pack_pair, read_evaluation, unified_form

from .trackers import RunTrackers
from .untouched import Untouched

logger = logging.getLogger("i2am_debug")

_Seen = tuple[list[Look], dict[int, Image.Image]]  # looks at pairs, and pictures sampled apart from them


class I2AMCallback:
    """Evaluates how a model uses its reference, every so many optimizer steps, and never changes the training.

    Call the `on_…` methods on every process; they decide inside. Register the callback for checkpointing
    (`accelerator.register_for_checkpointing(callback)`), and a resumed run keeps its baseline.

    Args:
        accelerator: the run's own; its TensorBoard tracker's writer is used.
        pipeline: a pipeline around the modules being trained, or a function without arguments that builds one from the
            current weights, as official training scripts do for their validation.
        pairs: what to look at; 8 or more make a drop distinguishable from noise.
        every_n_steps: how often, in global (optimizer) steps.
        plan: which layers, heads and sampler steps.
        loss_fn: the teacher-forced way (`evaluation.LossFunction`): figures from a few noised-truth forwards instead of a
            whole sampling, and the reference gap. Without it every pair is sampled.
        call: `call(pipeline, pair, generator)` → output; by default as the pipeline's class wants it.
        baseline: path of a stored evaluation (`step_….safetensors`) to compare with; default: this run's first.
        on_alert: called with each alert on the main process; what it raises ends the training.
        on_error: "warn": a failed evaluation is a warning in the log; "raise": it ends the training.
        family: where the reference sits in the model; found from the model by default.
        imacs, margins: how the score is formed, and how far figures may fall.
        num_inference_steps: of each sampling; None for the pipeline's own default.
        batch_size: pairs in one forward of `loss_fn`.
        pictures: for how many pairs the strips are drawn and, with a `loss_fn`, a picture is sampled.
        keep_matrices: how many evaluations keep their specific-reference rows on disk, besides baseline, best and alerted.
        logdir: where to write when the run has no TensorBoard tracker; default `<project_dir or "runs">/i2am_debug`.
        disable_progress_bar: no bar.
        seed: of the noise and all draws.

    Raises:
        ValueError: an argument is out of range. Whatever else is wrong is raised by `on_train_begin`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        *,
        pipeline: Any,
        pairs: ValidationPairs,
        every_n_steps: int,
        plan: CapturePlan | None = None,
        loss_fn: LossFunction | None = None,
        call: PipelineCall | None = None,
        baseline: str | Path | None = None,
        on_alert: Callable[[Alert], Any] | None = None,
        on_error: Literal["warn", "raise"] = "warn",
        family: Family | None = None,
        imacs: IMACSSettings | None = None,
        margins: Margins | None = None,
        num_inference_steps: int | None = None,
        batch_size: int = 1,
        pictures: int = 4,
        keep_matrices: int = 20,
        logdir: str | Path | None = None,
        disable_progress_bar: bool = False,
        seed: int = 0,
    ) -> None:
        for name, value in (
            ("every_n_steps", every_n_steps),
            ("batch_size", batch_size),
            ("keep_matrices", keep_matrices),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"I2AMCallback({name}={value!r}): expected a whole number of at least 1")
        if on_error not in ("warn", "raise"):
            raise ValueError(f'I2AMCallback(on_error={on_error!r}): expected "warn" or "raise"')
        if not isinstance(pairs, ValidationPairs):
            pairs = ValidationPairs(pairs)
        self.accelerator = accelerator
        self.every_n_steps = every_n_steps
        self.evaluator = Evaluator(
            pairs=pairs,
            plan=plan or CapturePlan(),
            family=family,
            call=call,
            loss_fn=loss_fn,
            imacs=imacs or IMACSSettings(),
            num_inference_steps=num_inference_steps,
            batch_size=batch_size,
            pictures=pictures,
            seed=seed,
        )
        self.margins = margins or Margins()
        self._pipeline = pipeline
        self._on_alert, self._on_error = on_alert, on_error
        self._keep_matrices = keep_matrices
        self._logdir = logdir
        self._disable_progress_bar = disable_progress_bar
        self._trackers: RunTrackers | None = None
        self._store: RunStore | None = None
        self._baseline: Evaluation | None = None
        self._baseline_maps: dict[str, Any] = {}
        self._alerting: set[str] = set()  # figures already reported as fallen; reported again only after a recovery
        self._last_step: int | None = None
        self._resumed_at: int | None = None
        self._told_not_comparable = False
        if baseline is not None:
            self._baseline, self._baseline_maps = read_evaluation(baseline)

    # -- the training loop -------------------------------------------------------------------------------------------

    def on_train_begin(self, global_step: int = 0) -> None:
        """Checks pairs, pipeline and arguments, and makes the baseline evaluation unless there is one.

        Raises:
            I2AMError: something can't work; raised whatever `on_error` says, before training time is spent.
        """
        with Untouched(self._trained_modules()) as untouched:
            self.evaluator.check(self._build_pipeline(untouched))
        missed = (
            global_step % self.every_n_steps == 0 and global_step != self._last_step
        )  # saved before it was evaluated
        due = self._baseline is None or self._last_step is None or missed
        if self._resumed_at is None and self._main:
            self._resumed_at = global_step  # whatever the folder holds beyond this step is of an abandoned attempt
        if due:
            self._evaluate(global_step)

    def on_step_end(self, global_step: int) -> None:
        """Evaluates when `global_step` is a multiple of `every_n_steps`; once a step, however often it is called."""
        if global_step % self.every_n_steps == 0 and global_step != self._last_step:
            self._evaluate(global_step)

    def on_train_end(self, global_step: int) -> None:
        """Evaluates the final weights unless just done, and closes what was opened."""
        if global_step != self._last_step:
            self._evaluate(global_step)
        if self._trackers is not None:
            self._trackers.close()
        # A script that ends now frees its process group while gloo's thread may still hold our last gather's tensors;
        # both then wait for the interpreter's lock for ever (torch 2.13, CPU). A barrier gives that thread time.
        self.accelerator.wait_for_everyone()

    def evaluate(self, global_step: int) -> Evaluation:
        """Evaluates now, writes and compares; returns the figures on every process. Errors are raised."""
        started = time.monotonic()
        with Untouched(self._trained_modules()) as untouched:
            pipeline = self._build_pipeline(untouched)
            looks = self._together(lambda: self._look(pipeline))
            evaluation, alert = self._from_main(lambda: self._score_and_write(pipeline, looks, global_step, started))
        self._last_step = global_step
        if alert is not None and self._on_alert is not None and self._main:
            self._on_alert(alert)
        return evaluation

    def history(self) -> list[Evaluation]:
        """The run's evaluations so far, by step; on the main process."""
        return [] if self._store is None else [stored.evaluation for stored in self._store.evaluations()]

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: plain values and tensors, loadable with `weights_only=True`."""
        return {
            "last_step": self._last_step,
            "baseline": None if self._baseline is None else json.dumps(self._baseline.to_json()),
            "baseline_maps": {k: torch.as_tensor(v) for k, v in self._baseline_maps.items()},
            "alerting": sorted(self._alerting),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a checkpoint; evaluations after it, if the folder has any, are superseded."""
        self._last_step = self._resumed_at = state["last_step"]
        if state["baseline"] is not None:
            self._baseline = Evaluation.from_json(json.loads(state["baseline"]))
            self.evaluator.heads = self._baseline.heads
        self._baseline_maps = {k: v.numpy() for k, v in state["baseline_maps"].items()}
        self._alerting = set(state["alerting"])

    # -- one evaluation ----------------------------------------------------------------------------------------------

    @property
    def _main(self) -> bool:
        return self.accelerator.is_main_process

    def _evaluate(self, global_step: int) -> None:
        alerts: list[Alert] = []
        on_alert, self._on_alert = self._on_alert, alerts.append
        try:
            self.evaluate(global_step)
        except Exception as error:
            if self._on_error == "raise":
                raise
            self._last_step = global_step
            logger.warning(
                "i2am: the evaluation at step %d failed and is skipped; training goes on: %s",
                global_step,
                error,
                exc_info=not isinstance(error, I2AMError),
            )
        finally:
            self._on_alert = on_alert
        for alert in alerts:  # outside the try: an on_alert that raises means to end the training
            if on_alert is not None:
                on_alert(alert)

    def _build_pipeline(self, untouched: Untouched) -> Any:
        given = self._pipeline
        is_built = isinstance(given, nn.Module) or any(hasattr(given, n) for n in ("unet", "transformer", "components"))
        pipeline = given if is_built else given()
        untouched.watch([pipeline, find_denoiser(pipeline), *getattr(pipeline, "components", {}).values()])
        if hasattr(pipeline, "set_progress_bar_config"):
            if not hasattr(pipeline, "_progress_bar_config"):
                pipeline.set_progress_bar_config()
                untouched.watch([pipeline])
            pipeline.set_progress_bar_config(disable=True)  # one bar over the pairs says more than one per sampling
        return pipeline

    def _trained_modules(self) -> list[nn.Module]:
        return list(self.accelerator._models)

    def _look(self, pipeline: Any) -> _Seen:
        """This process's share of the pairs and pictures; every process runs the same number of forwards."""
        evaluator = self.evaluator
        evaluator.pilot(pipeline)
        batches, apart = self._share(evaluator.batches), self._share(evaluator.sampled_apart)
        no_bar = self._disable_progress_bar or not self._main
        looks, pictures = [], {}
        with tqdm(total=len(batches) + len(apart), desc="i2am", leave=False, disable=no_bar) as bar:
            for batch in batches:
                looks += evaluator.look(pipeline, batch)
                bar.update()
            for index in apart:
                pictures[index] = evaluator.sample(pipeline, index)
                bar.update()
        return looks, pictures

    def _share(self, work: list[Any]) -> list[Any]:
        """This process's part of the work, padded with repetitions so that all parts are of one length."""
        if not work:
            return []
        with self.accelerator.split_between_processes(work, apply_padding=True) as mine:
            return mine

    def _together(self, look: Callable[[], _Seen]) -> list[Look]:
        """All processes' looks in order; an error on one is an error on all, so that none waits for ever."""
        seen: _Seen = ([], {})
        error: Exception | None = None
        try:
            seen = look()
        except Exception as raised:
            error = raised
        if self.accelerator.num_processes > 1:
            told = gather_object([None if error is None else f"{type(error).__name__}: {error}"])
            if error is None and any(told):
                raise I2AMError(f"another process failed: {next(t for t in told if t)}")
        if error is not None:
            raise error
        everyones = gather_object([seen]) if self.accelerator.num_processes > 1 else [seen]
        pictures = {i: picture for _, some in everyones for i, picture in some.items()}
        return merge([look for some, _ in everyones for look in some], pictures, len(self.evaluator.pairs))

    def _from_main(self, work: Callable[[], Any]) -> Any:
        """What `work` returns on the main process, on every process."""
        outcome: list[Any] = [None, None]
        error: Exception | None = None
        if self._main:
            try:
                outcome = [work(), None]
            except Exception as raised:
                error, outcome = raised, [None, f"{type(raised).__name__}: {raised}"]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(outcome)
        if error is not None:
            raise error
        if outcome[1] is not None:
            raise I2AMError(f"the main process failed: {outcome[1]}")
        return outcome[0]

    def _score_and_write(
        self, pipeline: Any, looks: list[Look], global_step: int, started: float
    ) -> tuple[Evaluation, Alert | None]:
        trackers, store = self._open()
        evaluation = self.evaluator.score(
            looks, global_step=global_step, pipeline=pipeline, baseline=self._baseline_maps or None
        )
        evaluation = with_seconds(evaluation, time.monotonic() - started)
        if self._baseline is None:
            self._baseline = evaluation
            self._baseline_maps = _unified_maps(looks)
        copying = self._baseline.copying_layer
        self._write(store, evaluation, looks, copying)
        alert = self._compare(evaluation)
        trackers.scalars(evaluation, copying)
        trackers.alert(alert, global_step)
        logger.info(log_line(evaluation, copying))
        if alert is not None:
            store.write_alert(alert)
            logger.warning("i2am ALERT: %s", alert.text)
        trackers.pictures(
            pictures_of(evaluation, looks, self.evaluator.pairs, strips=self.evaluator.pictures), global_step
        )
        trackers.flush()
        store.thin(self._keep_matrices, self._protected(store))
        return evaluation, alert

    def _open(self) -> tuple[RunTrackers, RunStore]:
        if self._trackers is None or self._store is None:
            fallback = self._logdir or Path(self.accelerator.project_dir or "runs") / "i2am_debug"
            self._trackers = RunTrackers(self.accelerator.trackers, Path(fallback))
            self._store = RunStore(self._trackers.folder)
        if self._resumed_at is not None:
            self._store.resume(self._resumed_at)
            self._resumed_at = None
        return self._trackers, self._store

    def _write(self, store: RunStore, evaluation: Evaluation, looks: list[Look], copying: str | Undefined) -> None:
        arrays, grids = {}, {}
        for look in looks:
            own, own_grids = pack_pair(look.maps, None if isinstance(copying, Undefined) else copying, look.generated)
            arrays.update({f"{look.index}/{name}": value for name, value in own.items()})
            grids[str(look.index)] = own_grids
        store.write(evaluation, arrays, grids)

    def _compare(self, evaluation: Evaluation) -> Alert | None:
        """An alert for figures that have newly fallen below the baseline."""
        baseline = self._baseline
        assert baseline is not None
        unlike = differences(evaluation, baseline)
        if unlike:
            if not self._told_not_comparable:
                logger.warning("i2am: no drift is looked for, the baseline is not comparable: %s", _in_words(unlike))
                self._told_not_comparable = True
            return None
        drops = find_drops(evaluation, baseline, self.margins)
        fallen = {d.figure for d in drops}
        new = fallen - self._alerting
        self._alerting = fallen
        if not new:
            return None
        return Alert(global_step=evaluation.global_step, baseline_step=baseline.global_step, drops=drops)

    def _protected(self, store: RunStore) -> set[int]:
        """Evaluations whose rows are kept: the baseline, the one with the most attention information, alerted ones."""
        assert self._baseline is not None
        steps = {self._baseline.global_step, *(a.global_step for a in store.alerts())}
        scored = [(s.evaluation.mean("attention_information"), s.evaluation.global_step) for s in store.evaluations()]
        best = max(((v, step) for v, step in scored if not isinstance(v, Undefined)), default=None)
        return steps if best is None else steps | {best[1]}


def _unified_maps(looks: list[Look]) -> dict[str, Any]:
    maps = {f"{look.index}/r2g": unified_form(look.maps.r2g.unified) for look in looks}
    if looks[0].maps.undefined_g2r is None:
        maps.update({f"{look.index}/g2r": unified_form(look.maps.g2r.unified) for look in looks})
    return maps


def _in_words(unlike: dict[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"{name} is {ours!r}, was {theirs!r}" for name, (ours, theirs) in unlike.items())
