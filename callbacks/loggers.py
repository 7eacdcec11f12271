"""The loggers of loops without Accelerate, in the form in which `trackers.RunTrackers` takes a tracker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class TensorBoard:
    """A `SummaryWriter` of the loop's own."""

    name = "tensorboard"

    def __init__(self, writer: Any) -> None:
        self.writer = writer


class FiguresLogger:
    """A logger that takes figures.

    Args:
        log: takes names with their values, and the step.
    """

    def __init__(self, name: str, log: Callable[[dict[str, float], int], Any]) -> None:
        self.name, self._log = name, log

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Hands the figures on."""
        self._log(dict(values), step)


class WandB:
    """A wandb run of a loop's own. The step is logged as a figure: wandb's own count is the loop's."""

    name = "wandb"

    def __init__(self, run: Any, step_name: str) -> None:
        """`step_name`: the figure by which the loop's charts are drawn, such as "trainer/global_step"."""
        self.tracker, self._step_name = run, step_name

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Hands the figures on."""
        self.tracker.log({**values, self._step_name: step})

    def log_images(self, values: Mapping[str, list[Any]], step: int) -> None:
        """Hands pictures on, arrays (H, W, 3)."""
        import wandb

        self.log({name: [wandb.Image(picture) for picture in pictures] for name, pictures in values.items()}, step)

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Adds to the run's configuration."""
        self.tracker.config.update(dict(values), allow_val_change=True)


def of_lightning(logger: Any) -> Any:
    """A logger of Lightning's: TensorBoard's and wandb's as what they are, any other for figures."""
    kinds = {kind.__name__ for kind in type(logger).__mro__}
    if "TensorBoardLogger" in kinds:
        return TensorBoard(logger.experiment)
    if "WandbLogger" in kinds:
        return WandB(logger.experiment, "trainer/global_step")
    return FiguresLogger(type(logger).__name__, logger.log_metrics)


def of_trainer(trainer: Any) -> list[Any]:
    """What a transformers Trainer reports to: its TensorBoard writer and wandb run, any other for figures."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    names = {kind: name for name, kind in INTEGRATION_TO_CALLBACK.items()}
    told = [(names[type(one)], one) for one in trainer.callback_handler.callbacks if type(one) in names]
    return [_of_trainer(trainer, name, one) for name, one in told]


def _of_trainer(trainer: Any, name: str, integration: Any) -> Any:
    if name == "tensorboard":
        return TensorBoard(integration.tb_writer)
    if name == "wandb":
        import wandb

        return WandB(wandb.run, "train/global_step")

    def log(values: dict[str, float], step: int) -> None:
        integration.on_log(trainer.args, trainer.state, trainer.control, logs=values, model=trainer.model)

    return FiguresLogger(name, log)
