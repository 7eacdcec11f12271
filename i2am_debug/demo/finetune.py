"""The demo: a plain Accelerate fine-tune of the tiny model that, from a marked step on, mixes up its references.

Shuffling the references across the batch is the classic data-loader bug: the loss goes on falling in a way, and the model
learns that its reference says nothing.
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
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from i2am_debug.callbacks import I2AMCallback

from ..alerts.alert import Alert
from ..figures.record import Evaluation
from ..figures.values import Undefined, figure_to_json
from ..pairs.collection import ValidationPairs
from ..pairs.pair import ValidationPair
from .model import LATENT_CHANNELS, ReferenceEncoder, denoising_loss
from .pairs import PairBatch, make_batch, validation_pairs
from .pipeline import TinyExamplePipeline, load_tiny_pipeline
from .sabotage import SABOTAGES, Sabotage, break_encoder

DEFAULT_STEPS = 48
EVERY = 8
"""Steps from one evaluation to the next."""

_BATCH = 8
_LEARNING_RATE = 3e-4
_WARM_UP = 10
_HOLE_WEIGHT = 4.0
_VALIDATION_SEED = 7
_VALIDATION_PAIRS = 16


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What one demo run found."""

    run: Path
    sabotage: str
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
        """The figures that alerts look at, one evaluation a line."""
        copying = self.evaluations[0].copying_layer
        columns = {
            "IMACS_g": "imacs_g",
            "IMACS_r": "imacs_r",
            "copying layer": f"layer/{copying}/imacs_r_hole",
            "information": "attention_information",
            "reference gap": "reference_gap",
        }
        alerted = {a.global_step: a.severity for a in self.alerts}
        lines = ["  step  " + "  ".join(f"{title:<23}" for title in columns)]
        for evaluation in self.evaluations:
            cells = [evaluation.estimate(tag) for tag in columns.values()]
            text = "  ".join(f"{'undefined' if isinstance(c, Undefined) else str(c):<23}" for c in cells)
            step = evaluation.global_step
            marks = [
                f"{SABOTAGES[self.sabotage].what} from here" if step == self.sabotage_step else "",
                f"ALERT ({alerted[step]})" if step in alerted else "",
            ]
            lines.append(f"{step:>6}  {text}  {'  '.join(filter(None, marks))}".rstrip())
        return "\n".join([*lines, "", "means over the pairs with their 95 % intervals"])


class _NewPairs(Dataset):
    """Pairs the shipped model has not seen, drawn by index."""

    def __init__(self, count: int, seed: int) -> None:
        self._batch = make_batch(count, torch.Generator().manual_seed(500_000 + seed))

    def __len__(self) -> int:
        return len(self._batch)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        batch: PairBatch = self._batch
        return {
            "target": batch.target_B3SS[index],
            "reference": batch.reference_B3SS[index],
            "hole": batch.hole_B1SS[index],
        }


def run_demo(
    logdir: str | Path,
    *,
    steps: int = DEFAULT_STEPS,
    sabotage: str = "shuffle",
    seed: int = 0,
    progress: bool = True,
) -> DemoResult:
    """Fine-tunes the shipped model for `steps` steps, evaluating every 8; the sabotage begins half way.

    Args:
        sabotage: a name of `SABOTAGES`, or "none".

    Raises:
        ValueError: an unknown sabotage, or fewer than 16 steps, which leave no evaluation before and after it.
    """
    if steps < 2 * EVERY:
        raise ValueError(f"steps={steps}: at least {2 * EVERY} are needed to evaluate before and after the sabotage")
    if sabotage not in (*SABOTAGES, "none"):
        raise ValueError(f"sabotage={sabotage!r}: expected one of {', '.join((*SABOTAGES, 'none'))}")
    sabotage_step = None if sabotage == "none" else steps // 2 // EVERY * EVERY
    set_seed(seed)
    name = _free_name(Path(logdir), f"{sabotage}_seed{seed}")
    accelerator = new_accelerator(logdir, name)
    pipeline = load_tiny_pipeline(device=accelerator.device)
    training = fine_tune(
        accelerator, pipeline, steps=steps, seed=seed, sabotage=SABOTAGES.get(sabotage), sabotage_step=sabotage_step
    )
    alerts: list[Alert] = []
    callback = new_callback(
        accelerator, pipeline, demo_pairs(), on_alert=alerts.append, disable_progress_bar=not progress
    )
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
        sabotage=sabotage,
        sabotage_step=sabotage_step,
        evaluations=callback.history(),
        alerts=alerts,
    )


def new_accelerator(logdir: str | Path, name: str) -> Accelerator:
    """One with a TensorBoard run of this name."""
    accelerator = Accelerator(
        log_with="tensorboard", project_config=ProjectConfiguration(project_dir=str(logdir), logging_dir=str(logdir))
    )
    accelerator.init_trackers(name)
    return accelerator


def demo_pairs() -> ValidationPairs:
    """The 16 pairs that every demo looks at."""
    return validation_pairs(_VALIDATION_PAIRS, seed=_VALIDATION_SEED)


def new_callback(
    accelerator: Accelerator, pipeline: TinyExamplePipeline, pairs: ValidationPairs, **settings: Any
) -> I2AMCallback:
    """The callback as the demo sets it: teacher-forced, all pairs in one batch, every 8 steps."""
    return I2AMCallback(
        accelerator,
        pipeline=pipeline,
        pairs=pairs,
        every_n_steps=EVERY,
        loss_fn=teacher_forced(pipeline),
        batch_size=len(pairs),
        num_inference_steps=10,
        on_error="raise",
        **settings,
    )


def fine_tune(
    accelerator: Accelerator,
    pipeline: TinyExamplePipeline,
    *,
    steps: int,
    seed: int,
    sabotage: Sabotage | None = None,
    sabotage_step: int | None = None,
    decay: bool = False,
) -> Iterator[tuple[int, float]]:
    """The training loop; yields (global step, loss) after every optimizer step.

    Args:
        sabotage: what goes wrong, from the step after `sabotage_step` on.
        decay: a learning rate that falls to nothing over `steps` (a cosine) instead of a constant one.
    """
    unet, encoder, scheduler = pipeline.unet, pipeline.reference_encoder, pipeline.scheduler
    parameters = [*unet.parameters(), *encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4)

    def learning_rate(step: int) -> float:
        return min(1.0, (step + 1) / _WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * step / steps) if decay else 1.0)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate)
    loader = DataLoader(_NewPairs(steps * _BATCH, seed), batch_size=_BATCH)
    unet, encoder, optimizer, loader, schedule = accelerator.prepare(unet, encoder, optimizer, loader, schedule)
    unet.train(), encoder.train()
    faults = torch.Generator().manual_seed(seed)  # of their own: a healthy run of this seed sees the same noise

    def steps_of_the_run() -> Iterator[tuple[int, float]]:
        for step, batch in enumerate(loader):
            since = -1 if sabotage is None or sabotage_step is None else step - sabotage_step
            if sabotage is not None and since >= 0:
                if since == 0:
                    _break(sabotage, pipeline.reference_encoder, optimizer, schedule)
                batch = sabotage.spoil(batch, since // EVERY, faults)
            target, hole = batch["target"], batch["hole"]
            noise = torch.randn(len(target), LATENT_CHANNELS, 16, 16, device=accelerator.device)
            timesteps = (1000 * torch.rand(len(target), device=accelerator.device).sqrt()).long().clamp(max=999)
            inputs = (scheduler, target, hole, timesteps, noise)
            loss = denoising_loss(unet, encoder(batch["reference"]), *inputs, hole_weight=_HOLE_WEIGHT).mean()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            accelerator.log({"train_loss": loss.item()}, step=step + 1)
            yield step + 1, loss.item()

    return steps_of_the_run()  # so that everything above is done now, before the first evaluation


def _break(sabotage: Sabotage, encoder: ReferenceEncoder, optimizer: Any, schedule: Any) -> None:
    """What a fault does once, when it begins."""
    if sabotage.random_encoder:
        break_encoder(encoder)
    if sabotage.learning_rate != 1.0:
        inner = schedule.scheduler  # accelerate's wrapper holds torch's
        inner.base_lrs = [rate * sabotage.learning_rate for rate in inner.base_lrs]
        for group in optimizer.param_groups:
            group["lr"] *= sabotage.learning_rate


def teacher_forced(pipeline: TinyExamplePipeline) -> Any:
    """The `loss_fn` of the tiny model: the denoising loss of noised truths, unweighted, one value a pair."""

    def loss_fn(
        pairs: list[ValidationPair], timesteps: torch.Tensor, generator: torch.Generator, reference: Any = None
    ) -> torch.Tensor:
        picture, hole, example = pipeline.prepare(
            [p.target for p in pairs], [p.mask_image for p in pairs], reference or [p.reference for p in pairs]
        )
        noise = torch.randn(len(pairs), LATENT_CHANNELS, 16, 16, generator=generator).to(picture.device)
        tokens = pipeline.reference_encoder(example)
        inputs = (pipeline.scheduler, picture, hole, timesteps.to(picture.device), noise)
        return denoising_loss(pipeline.unet, tokens, *inputs, hole_weight=0.0)

    return loss_fn


def write_json(result: DemoResult, path: str | Path) -> None:
    """Writes `DemoResult.to_json` to a file."""
    Path(path).write_text(json.dumps(result.to_json(), indent=1) + "\n", encoding="utf-8")


def _free_name(logdir: Path, name: str) -> str:
    """A run folder of its own: two runs in one would mix their points."""
    candidate, number = name, 2
    while (logdir / candidate).exists():
        candidate, number = f"{name}_{number}", number + 1
    return candidate
