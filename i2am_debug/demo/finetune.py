"""The demo: a plain Accelerate fine-tune of a tiny model that, from a marked step on, mixes up its references.

Shuffling the references across the batch is the classic data-loader bug: the loss goes on falling in a way, and the model
learns that its reference says nothing. Knows no model but what `DemoModel` says of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from torch.utils.data import DataLoader, StackDataset
from tqdm.auto import tqdm

from i2am_debug.callbacks import I2AMCallback

from ..alerts.alert import Alert
from ..figures.record import Evaluation
from ..figures.values import Undefined, figure_to_json
from ..pairs.collection import ValidationPairs
from .demo_model import DemoModel, demo_model
from .sabotage import Sabotage

DEFAULT_STEPS = 48
EVERY = 8
"""Steps from one evaluation to the next."""

_BATCH = 8
_WARM_UP = 10
_COLUMNS = 5  # of the printed table: as many as a terminal has room for


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What one demo run found."""

    run: Path
    sabotage: str
    """What went wrong, in words; empty in a healthy run."""
    sabotage_step: int | None
    evaluations: list[Evaluation]
    alerts: list[Alert]

    def to_json(self) -> dict[str, Any]:
        """`evaluations` (global_step and every score's mean), `alerts`, `sabotage_step`."""
        return {
            "sabotage_step": self.sabotage_step,
            "evaluations": [
                {"global_step": e.global_step, **{t: figure_to_json(e.mean(t)) for t in e.figures}}
                for e in self.evaluations
            ],
            "alerts": [a.to_json() for a in self.alerts],
        }

    def table(self) -> str:
        """The most telling of the figures that the model has, one evaluation a line."""
        by_what_they_tell = {
            "reference gap": "reference_gap",
            "information": "attention_information",
            "kept place": "kept_place",
            "reference mass": "reference_mass",
            "copying layer": f"layer/{self.evaluations[0].copying_layer}/imacs_r_hole",
            "IMACS_g": "imacs_g",
            "loss": "loss",
        }
        known = [(title, tag) for title, tag in by_what_they_tell.items() if self._has(tag)]
        columns = dict(reversed(known[:_COLUMNS]))
        alerted = {a.global_step: a.severity for a in self.alerts}
        lines = ["  step  " + "  ".join(f"{title:<23}" for title in columns)]
        for evaluation in self.evaluations:
            cells = [evaluation.estimate(tag) for tag in columns.values()]
            text = "  ".join(f"{'undefined' if isinstance(c, Undefined) else str(c):<23}" for c in cells)
            step = evaluation.global_step
            marks = [
                f"{self.sabotage} from here" if step == self.sabotage_step else "",
                f"ALERT ({alerted[step]})" if step in alerted else "",
            ]
            lines.append(f"{step:>6}  {text}  {'  '.join(filter(None, marks))}".rstrip())
        return "\n".join([*lines, "", "means over the pairs with their 95 % intervals"])

    def _has(self, tag: str) -> bool:
        return any(not isinstance(evaluation.mean(tag), Undefined) for evaluation in self.evaluations)


def run_demo(
    logdir: str | Path,
    *,
    model: str = "inpainting",
    steps: int = DEFAULT_STEPS,
    sabotage: str = "shuffle",
    seed: int = 0,
    progress: bool = True,
) -> DemoResult:
    """Fine-tunes a shipped model for `steps` steps, evaluating every 8; the sabotage begins half way.

    Args:
        model: a name of `demo_model.MODELS`.
        sabotage: a name of the model's `sabotages`, or "none".

    Raises:
        ValueError: an unknown model, a sabotage that it doesn't have, or fewer than 16 steps, which leave no evaluation before
            and after it.
    """
    if steps < 2 * EVERY:
        raise ValueError(f"steps={steps}: at least {2 * EVERY} are needed to evaluate before and after the sabotage")
    demo = demo_model(model)
    if sabotage not in (*demo.sabotages, "none"):
        raise ValueError(
            f"sabotage={sabotage!r}: expected one of {', '.join((*demo.sabotages, 'none'))} for the model {model!r}"
        )
    fault = demo.sabotages.get(sabotage)
    sabotage_step = None if fault is None else steps // 2 // EVERY * EVERY
    set_seed(seed)
    name = _free_name(Path(logdir), f"{'' if model == 'inpainting' else f'{model}_'}{sabotage}_seed{seed}")
    accelerator = new_accelerator(logdir, name)
    pipeline = demo.load(device=accelerator.device)
    training = fine_tune(
        accelerator, demo, pipeline, steps=steps, seed=seed, sabotage=fault, sabotage_step=sabotage_step
    )
    alerts: list[Alert] = []
    callback = new_callback(accelerator, demo, pipeline, on_alert=alerts.append, disable_progress_bar=not progress)
    callback.on_train_begin(0)
    bar = tqdm(total=steps, desc="demo fine-tune", disable=not (progress and accelerator.is_main_process))
    for step, loss in training:
        callback.on_step_end(step)
        bar.update()
        bar.set_postfix(loss=f"{loss:.4f}", alerts=len(alerts), refresh=False)
    bar.close()
    callback.on_train_end(steps)
    accelerator.end_training()

    return DemoResult(
        run=Path(logdir) / name,
        sabotage="" if fault is None else fault.what,
        sabotage_step=sabotage_step,
        evaluations=callback.history(),
        alerts=alerts,
    )


def new_accelerator(logdir: str | Path, name: str, *, mixed_precision: str = "no") -> Accelerator:
    """One with a TensorBoard run of this name."""
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=str(logdir), logging_dir=str(logdir)),
    )
    accelerator.init_trackers(name)
    return accelerator


def new_callback(
    accelerator: Accelerator,
    model: DemoModel,
    pipeline: Any,
    *,
    pairs: ValidationPairs | None = None,
    **settings: Any,
) -> I2AMCallback:
    """The callback as the demo sets it: told nothing but a pipeline and pairs, all of them in one batch, every 8 steps.

    `pairs` are those of the model by default.
    """
    pairs = model.validation_pairs() if pairs is None else pairs
    as_the_demo: dict[str, Any] = {"batch_size": len(pairs)}
    return I2AMCallback(
        accelerator, pipeline=pipeline, pairs=pairs, every_n_steps=EVERY, on_error="raise", **(as_the_demo | settings)
    )


def fine_tune(
    accelerator: Accelerator,
    model: DemoModel,
    pipeline: Any,
    *,
    steps: int,
    seed: int,
    sabotage: Sabotage | None = None,
    sabotage_step: int | None = None,
    decay: bool = False,
    learning_rate: float | None = None,
    batch_size: int | None = None,
) -> Iterator[tuple[int, float]]:
    """The training loop; yields (global step, loss) after every optimizer step.

    Args:
        sabotage: what goes wrong, from the step after `sabotage_step` on.
        decay: a learning rate that falls to nothing over `steps` (a cosine) instead of a constant one.
        learning_rate: by default the model's own, which is for all of its weights.
    """
    batch_size = batch_size or _BATCH
    parameters = [p for name in model.trained for p in getattr(pipeline, name).parameters() if p.requires_grad]
    rate = model.learning_rate if learning_rate is None else learning_rate
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=1e-4)

    def share_of_the_rate(step: int) -> float:
        return min(1.0, (step + 1) / _WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * step / steps) if decay else 1.0)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_the_rate)
    unseen = torch.Generator().manual_seed(500_000 + seed)  # by the shipped weights' training and by the evaluations
    loader = DataLoader(StackDataset(**model.new_data(steps * batch_size, unseen)), batch_size=batch_size)
    modules = (getattr(pipeline, name) for name in model.trained)
    *modules, optimizer, loader, schedule = accelerator.prepare(*modules, optimizer, loader, schedule)
    trained = {name: module.train() for name, module in zip(model.trained, modules, strict=True)}
    faults = torch.Generator().manual_seed(seed)  # of their own: a healthy run of this seed sees the same noise

    def steps_of_the_run() -> Iterator[tuple[int, float]]:
        for step, batch in enumerate(loader):
            since = -1 if sabotage is None or sabotage_step is None else step - sabotage_step
            if sabotage is not None and since >= 0:
                if since == 0:
                    _break(sabotage, pipeline, optimizer, schedule)
                batch = sabotage.spoil(batch, since // EVERY, faults)
            predicts_noise = sabotage is not None and sabotage.predicts_noise and since >= 0
            loss = model.training_loss(pipeline, trained, batch, predicts_noise=predicts_noise)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            accelerator.log({"train_loss": loss.item()}, step=step + 1)
            yield step + 1, loss.item()

    return steps_of_the_run()  # so that everything above is done now, before the first evaluation


def _break(sabotage: Sabotage, pipeline: Any, optimizer: Any, schedule: Any) -> None:
    """What a fault does once, when it begins."""
    if sabotage.break_weights is not None:
        sabotage.break_weights(pipeline)
    if sabotage.learning_rate != 1.0:
        inner = schedule.scheduler  # accelerate's wrapper holds torch's
        inner.base_lrs = [rate * sabotage.learning_rate for rate in inner.base_lrs]
        for group in optimizer.param_groups:
            group["lr"] *= sabotage.learning_rate


def write_json(result: DemoResult, path: str | Path) -> None:
    """Writes `DemoResult.to_json` to a file."""
    Path(path).write_text(json.dumps(result.to_json(), indent=1) + "\n", encoding="utf-8")


def _free_name(logdir: Path, name: str) -> str:
    """A run folder of its own: two runs in one would mix their points."""
    candidate, number = name, 2
    while (logdir / candidate).exists():
        candidate, number = f"{name}_{number}", number + 1
    return candidate
