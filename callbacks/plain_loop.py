"""`I2AMPlainCallback`: watches a fine-tune in a loop of PyTorch alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from .groups import TorchGroup
from .loggers import TensorBoard
from .watched_run import WatchedRun


class I2AMPlainCallback(WatchedRun):
    """As `I2AMCallback`, where there is no Accelerator: alone, or on the processes of torch.distributed's default group.

    Save `callback.state_dict()` with the loop's checkpoints, and call `load_state_dict` before `on_train_begin`.

    Args:
        trained: the modules that are being trained, as the loop calls them (with DDP around them, if it has that).
        pipeline: a pipeline around them, or a function without arguments that builds one from the current weights.
        pairs: what to look at; 8 or more make a drop distinguishable from noise.
        every_n_steps: how often, in optimizer steps; or `budget=` in place of it.
        writer: the loop's own `torch.utils.tensorboard.SummaryWriter`, if it has one.
        logdir: where to write when it has none.
        settings: every further field of `settings.MonitorSettings`.

    Raises:
        ValueError: a setting is out of range. Whatever else is wrong is raised by `on_train_begin`.
        TypeError: there is no such setting.
    """

    def __init__(
        self,
        trained: nn.Module | Iterable[nn.Module],
        *,
        pipeline: Any,
        pairs: Any,
        every_n_steps: int | None = None,
        writer: Any = None,
        logdir: str | Path = "runs/i2am_debug",
        **settings: Any,
    ) -> None:
        modules = [trained] if isinstance(trained, nn.Module) else list(trained)
        super().__init__(
            "I2AMPlainCallback",
            pipeline=pipeline,
            group=TorchGroup(lambda: modules),
            trackers=lambda: [] if writer is None else [TensorBoard(writer)],
            logdir=lambda: Path(logdir),
            pairs=pairs,
            every_n_steps=every_n_steps,
            **settings,
        )
