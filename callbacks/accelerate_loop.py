"""`I2AMCallback`: looks at the validation pairs now and then during a fine-tune with Accelerate."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from i2am_debug.alerts.alert import Alert
from i2am_debug.alerts.alert_state import AlertState
from i2am_debug.alerts.judge import refuse_idle_rules
from i2am_debug.alerts.rule import SEVERITIES, Severity, at_least
from i2am_debug.alerts.rules import Rules
from i2am_debug.capture.plan import CapturePlan
from i2am_debug.capture.trace import find_denoiser
from i2am_debug.errors import I2AMError, IMACSRegression
from i2am_debug.evaluation.calls import PipelineCall
from i2am_debug.evaluation.evaluator import Evaluator, LossFunction
from i2am_debug.families.family import Family
from i2am_debug.figures.observation import Observation, merge_observations
from i2am_debug.figures.record import Evaluation, differences
from i2am_debug.figures.scores import IMACSSettings
from i2am_debug.figures.values import Undefined
from i2am_debug.gate.check import in_words
from i2am_debug.pairs.collection import ValidationPairs
from i2am_debug.report.log import log_line
from i2am_debug.report.pictures import alert_panels, pictures_of
from i2am_debug.store.evaluation_file import read_evaluation
from i2am_debug.store.packing import pack_observations, unified_maps
from i2am_debug.store.run_store import RunStore, Stored

from .processes import from_main, gather, share
from .state_guard import StateGuard
from .trackers import RunTrackers

logger = logging.getLogger("i2am_debug")

_Observed = tuple[list[Observation], dict[int, Image.Image]]  # looks at pairs, and pictures sampled apart from them


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
        baseline: path of a stored evaluation (`step_….safetensors`, or a file of `i2am-debug baseline save`) to compare
            with; default: this run's first.
        rules: what counts as an alert; `Rules.from_toml(path)` reads them from a file.
        on_alert: called with each alert on the main process; what it raises ends the training.
        stop_on: alerts as severe as this, or more, make `should_stop` true; None for none.
        fail_on: alerts as severe as this, or more, raise `IMACSRegression` on every process; None for none.
        on_error: "warn": a failed evaluation is a warning in the log; "raise": it ends the training.
        family: where the reference sits in the model; found from the model by default.
        imacs: how the score is formed.
        num_inference_steps: of each sampling; None for the pipeline's own default.
        batch_size: pairs in one forward of `loss_fn`.
        pictures: for how many pairs the strips are drawn and, with a `loss_fn`, a picture is sampled.
        panels: for how many pairs a panel is drawn; an alert draws those of the pairs most to blame in any case.
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
        rules: Rules | None = None,
        on_alert: Callable[[Alert], Any] | None = None,
        stop_on: Severity | None = "critical",
        fail_on: Severity | None = None,
        on_error: Literal["warn", "raise"] = "warn",
        family: Family | None = None,
        imacs: IMACSSettings | None = None,
        num_inference_steps: int | None = None,
        batch_size: int = 1,
        pictures: int = 4,
        panels: int = 16,
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
        for name, severity in (("stop_on", stop_on), ("fail_on", fail_on)):
            if severity not in (*SEVERITIES, None):
                expected = ", ".join(map(repr, SEVERITIES))
                raise ValueError(f"I2AMCallback({name}={severity!r}): expected {expected} or None")
        if rules is not None and not isinstance(rules, Rules):
            raise ValueError(f"I2AMCallback(rules={rules!r}): expected Rules, or Rules.from_toml(path)")
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
        self.should_stop = False
        """Whether an alert as severe as `stop_on` was raised; the same on every process. The training loop decides."""
        self._pipeline = pipeline
        self._alert_state = AlertState(rules or Rules())
        self._on_alert, self._on_error = on_alert, on_error
        self._stop_on, self._fail_on = stop_on, fail_on
        self._keep_matrices = keep_matrices
        self._panels = panels
        self._logdir, self._disable_progress_bar = logdir, disable_progress_bar
        self._trackers: RunTrackers | None = None
        self._store: RunStore | None = None
        self._baseline: Evaluation | None = None
        self._baseline_maps: dict[str, Any] = {}
        self._last_step: int | None = None
        self._resumed_at: int | None = None
        self._told: set[str] = set()
        self._baseline_given = baseline is not None
        self._newest: Evaluation | None = None
        if baseline is not None:
            self._baseline, self._baseline_maps = read_evaluation(baseline)

    # -- the training loop -------------------------------------------------------------------------------------------

    def on_train_begin(self, global_step: int = 0) -> None:
        """Checks pairs, pipeline and arguments, and makes the baseline evaluation unless there is one.

        Raises:
            I2AMError, ValueError: something can't work; raised whatever `on_error` says, before training time is spent.
        """
        with StateGuard(self._trained_modules()) as guard:
            self.evaluator.check(self._build_pipeline(guard))
        # Saved before it was evaluated:
        missed = global_step % self.every_n_steps == 0 and global_step != self._last_step
        due = self._baseline is None or self._last_step is None or missed
        if self._resumed_at is None and self._main:
            self._resumed_at = global_step  # whatever the folder holds beyond this step is of an abandoned attempt
        if due:
            self._evaluate(global_step)
        from_main(self.accelerator, self._check_rules)

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
        """Evaluates now, writes and compares; returns the figures on every process.

        Raises:
            IMACSRegression: an alert as severe as `fail_on`, on every process.
            Exception: what went wrong, whatever `on_error` says.
        """
        evaluation, alert = self._look_and_write(global_step)
        self._act_on(alert)
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
            "alerting": {figure: list(known) for figure, known in self._alert_state.alerting.items()},
            "should_stop": self.should_stop,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a checkpoint; evaluations after it, if the folder has any, are superseded."""
        self._last_step = self._resumed_at = state["last_step"]
        if state["baseline"] is not None:
            self._baseline = Evaluation.from_json(json.loads(state["baseline"]))
            self.evaluator.heads = self._baseline.heads
        self._baseline_maps = {k: v.numpy() for k, v in state["baseline_maps"].items()}
        self._alert_state = AlertState(self._alert_state.rules, state["alerting"])
        self.should_stop = state["should_stop"]

    # -- one evaluation ----------------------------------------------------------------------------------------------

    @property
    def _main(self) -> bool:
        return self.accelerator.is_main_process

    def _evaluate(self, global_step: int) -> None:
        alert = None
        try:
            _, alert = self._look_and_write(global_step)
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
        self._act_on(alert)  # outside the try: an on_alert that raises, and fail_on, mean to end the training

    def _look_and_write(self, global_step: int) -> tuple[Evaluation, Alert | None]:
        started = time.monotonic()
        with StateGuard(self._trained_modules()) as guard:
            pipeline = self._build_pipeline(guard)
            observations = self._together(lambda: self._observe(pipeline))
            seen = from_main(
                self.accelerator, lambda: self._score_and_write(pipeline, observations, global_step, started)
            )
        self._last_step = global_step
        return seen

    def _act_on(self, alert: Alert | None) -> None:
        """What an alert does, the same on every process but for `on_alert`."""
        if alert is None:
            return
        if self._stop_on is not None and at_least(alert.severity, self._stop_on):
            self.should_stop = True
        if self._on_alert is not None and self._main:
            self._on_alert(alert)
        if self._fail_on is not None and at_least(alert.severity, self._fail_on):
            raise IMACSRegression(alert.text, alert)

    def _build_pipeline(self, guard: StateGuard) -> Any:
        given = self._pipeline
        is_built = isinstance(given, nn.Module) or any(hasattr(given, n) for n in ("unet", "transformer", "components"))
        pipeline = given if is_built else given()
        guard.watch([pipeline, find_denoiser(pipeline), *getattr(pipeline, "components", {}).values()])
        if hasattr(pipeline, "set_progress_bar_config"):
            if not hasattr(pipeline, "_progress_bar_config"):
                pipeline.set_progress_bar_config()
                guard.watch([pipeline])
            pipeline.set_progress_bar_config(disable=True)  # one bar over the pairs says more than one per sampling
        return pipeline

    def _trained_modules(self) -> list[nn.Module]:
        return list(self.accelerator._models)

    def _observe(self, pipeline: Any) -> _Observed:
        """This process's share of the pairs and pictures; every process runs the same number of forwards."""
        evaluator = self.evaluator
        evaluator.pilot(pipeline)
        batches, apart = share(self.accelerator, evaluator.batches), share(self.accelerator, evaluator.sampled_apart)
        no_bar = self._disable_progress_bar or not self._main
        observations, pictures = [], {}
        with tqdm(total=len(batches) + len(apart), desc="i2am", leave=False, disable=no_bar) as bar:
            for batch in batches:
                observations += evaluator.observe(pipeline, batch)
                bar.update()
            for index in apart:
                pictures[index] = evaluator.sample(pipeline, index)
                bar.update()
        return observations, pictures

    def _together(self, observe: Callable[[], _Observed]) -> list[Observation]:
        """All processes' observations, in the order of the pairs."""
        everyones = gather(self.accelerator, observe)
        pictures = {i: picture for _, some in everyones for i, picture in some.items()}
        return merge_observations(
            [observation for some, _ in everyones for observation in some], pictures, len(self.evaluator.pairs)
        )

    def _score_and_write(
        self, pipeline: Any, observations: list[Observation], global_step: int, started: float
    ) -> tuple[Evaluation, Alert | None]:
        trackers, store = self._open()
        known = self._baseline_maps
        evaluation = self.evaluator.score(observations, global_step=global_step, pipeline=pipeline, baseline=known)
        copying = (self._baseline or evaluation).copying_layer
        watched = None if isinstance(copying, Undefined) else copying
        seconds = time.monotonic() - started
        self._newest = evaluation = replace(evaluation, watched_layer=watched, seconds=seconds)
        if self._baseline is None:
            self._baseline, self._baseline_maps = evaluation, unified_maps(observations)
        store.write(evaluation, *pack_observations(observations, watched))
        store.write_pairs(evaluation, self.evaluator.pairs)
        alert = self._compare(evaluation, store)
        trackers.scalars(evaluation, copying)
        logger.info(log_line(evaluation, copying))
        if alert is not None:
            alert = self._keep_panels(alert, evaluation, observations, store)
            store.write_alert(alert)
            logger.log(getattr(logging, alert.severity.upper()), "i2am ALERT: %s", alert.text)
        trackers.alert(alert, global_step)
        trackers.pictures(
            pictures_of(
                evaluation, observations, self.evaluator.pairs, panels=self._panels, strips=self.evaluator.pictures
            ),
            global_step,
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

    def _compare(self, evaluation: Evaluation, store: RunStore) -> Alert | None:
        """An alert for what has newly fallen."""
        baseline = self._baseline
        assert baseline is not None
        unlike = differences(evaluation, baseline)
        if unlike:
            self._tell_once("no fall is looked for, the baseline is not comparable: %s", in_words(unlike))
            return None
        rules, count = self._alert_state.rules, len(baseline.pairs)
        if not rules.can_test(count):
            self._tell_once("too few to tell a fall from noise, only limits and margins act: %s", rules.too_few(count))
        comparable: list[Stored] = [
            s for s in store.evaluations() if s.comparable_id == evaluation.comparable_id and s.path.is_file()
        ]
        return self._alert_state.judge(baseline, comparable)

    def _check_rules(self) -> None:
        if self._baseline is None:
            return  # not the main process, or no evaluation has succeeded yet
        refuse_idle_rules(self._alert_state.rules, self._baseline)
        if self._baseline_given and self._newest is not None:
            unlike = differences(self._newest, self._baseline)
            if unlike:
                raise I2AMError(f"baseline= is not comparable with this run, they differ in {in_words(unlike)}")

    def _tell_once(self, text: str, *values: Any) -> None:
        if text not in self._told:
            logger.warning("i2am: " + text, *values)
            self._told.add(text)

    def _keep_panels(
        self, alert: Alert, evaluation: Evaluation, observations: list[Observation], store: RunStore
    ) -> Alert:
        """With the panels of the pairs most to blame as files, which outlast TensorBoard's last ten pictures."""
        drawn = alert_panels(alert, evaluation, observations, self.evaluator.pairs)
        files = {
            evaluation.pairs[number]: store.write_panel(alert.global_step, number, panel)
            for number, panel in drawn.items()
        }
        return replace(alert, panels=files)

    def _protected(self, store: RunStore) -> set[int]:
        """Evaluations whose rows are kept: the baseline, the one with the most attention information, alerted ones."""
        assert self._baseline is not None
        steps = {self._baseline.global_step, *(a.global_step for a in store.alerts())}
        scored = [(s.mean("attention_information"), s.global_step) for s in store.evaluations()]
        best = max(((v, step) for v, step in scored if not isinstance(v, Undefined)), default=None)
        return steps if best is None else steps | {best[1]}
