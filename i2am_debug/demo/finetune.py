"""The demo: a plain Accelerate fine-tune of the tiny model that, from a marked step on, mixes up its references.

Shuffling the references across the batch is the classic data-loader bug: the loss goes on falling in a way, and the model
learns that its reference says nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from i2am_debug.callbacks import I2AMCallback

from ..drift import Alert
from ..pairs import ValidationPair
from ..record import Evaluation, Undefined, figure_to_json
from .model import LATENT_CHANNELS, denoising_loss
from .pairs import PairBatch, make_batch, validation_pairs
from .pipeline import TinyExamplePipeline, load_tiny_pipeline

Sabotage = Literal["shuffle", "none"]

DEFAULT_STEPS = 48
_EVERY = 8
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
        alerted = {a.global_step for a in self.alerts}
        lines = ["  step  " + "  ".join(f"{title:>13}" for title in columns)]
        for evaluation in self.evaluations:
            cells = [evaluation.mean(tag) for tag in columns.values()]
            text = "  ".join(f"{'undefined' if isinstance(c, Undefined) else format(c, '.3f'):>13}" for c in cells)
            marks = [
                "references shuffled from here" if evaluation.global_step == self.sabotage_step else "",
                "ALERT" if evaluation.global_step in alerted else "",
            ]
            lines.append(f"{evaluation.global_step:>6}  {text}  {'  '.join(filter(None, marks))}".rstrip())
        return "\n".join(lines)


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
    sabotage: Sabotage = "shuffle",
    seed: int = 0,
    progress: bool = True,
) -> DemoResult:
    """Fine-tunes the shipped model for `steps` steps, evaluating every 8; sabotage begins half way.

    Raises:
        ValueError: fewer than 16 steps, which leave no evaluation before and after the sabotage.
    """
    if steps < 2 * _EVERY:
        raise ValueError(f"steps={steps}: at least {2 * _EVERY} are needed to evaluate before and after the sabotage")
    sabotage_step = steps // 2 // _EVERY * _EVERY if sabotage == "shuffle" else None
    set_seed(seed)
    accelerator = Accelerator(
        log_with="tensorboard", project_config=ProjectConfiguration(project_dir=str(logdir), logging_dir=str(logdir))
    )
    name = _free_name(Path(logdir), f"{sabotage}_seed{seed}")
    accelerator.init_trackers(name)

    pipeline = load_tiny_pipeline(device=accelerator.device)
    unet, encoder, scheduler = pipeline.unet, pipeline.reference_encoder, pipeline.scheduler
    parameters = [*unet.parameters(), *encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / _WARM_UP))
    loader = DataLoader(_NewPairs(steps * _BATCH, seed), batch_size=_BATCH)
    unet, encoder, optimizer, loader, schedule = accelerator.prepare(unet, encoder, optimizer, loader, schedule)

    alerts: list[Alert] = []
    callback = I2AMCallback(
        accelerator,
        pipeline=pipeline,
        pairs=validation_pairs(_VALIDATION_PAIRS, seed=_VALIDATION_SEED),
        every_n_steps=_EVERY,
        loss_fn=teacher_forced(pipeline),
        batch_size=_VALIDATION_PAIRS,
        num_inference_steps=10,
        on_alert=alerts.append,
        on_error="raise",
        disable_progress_bar=not progress,
    )
    callback.on_train_begin(0)
    unet.train(), encoder.train()
    bar = tqdm(total=steps, desc="demo fine-tune", disable=not (progress and accelerator.is_main_process))
    for step, batch in enumerate(loader):
        reference = batch["reference"]
        if sabotage_step is not None and step >= sabotage_step:
            reference = reference[torch.randperm(len(reference))]
        noise = torch.randn(len(reference), LATENT_CHANNELS, 16, 16, device=accelerator.device)
        timesteps = (1000 * torch.rand(len(reference), device=accelerator.device).sqrt()).long().clamp(max=999)
        loss = denoising_loss(
            unet,
            encoder(reference),
            scheduler,
            batch["target"],
            batch["hole"],
            timesteps,
            noise,
            hole_weight=_HOLE_WEIGHT,
        ).mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        accelerator.log({"train_loss": loss.item()}, step=step + 1)
        callback.on_step_end(step + 1)
        bar.update()
        bar.set_postfix(loss=f"{loss.item():.4f}", alerts=len(alerts), refresh=False)
    bar.close()
    callback.on_train_end(steps)
    accelerator.end_training()

    return DemoResult(
        run=Path(logdir) / name, sabotage_step=sabotage_step, evaluations=callback.history(), alerts=alerts
    )


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
