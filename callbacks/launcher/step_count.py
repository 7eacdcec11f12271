"""A script's global step: how many optimizer steps it has made, from where it resumed."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

logger = logging.getLogger("i2am_debug")

STEP_FILE = "i2am_debug.step"
"""In every checkpoint: the global step at which it was written."""


class StepCount:
    """Counts the steps of an accelerator's first optimizer while `sync_gradients`; several optimizers step together."""

    def __init__(self, accelerator: Any) -> None:
        self.global_step = 0
        self._accelerator = accelerator
        accelerator.register_save_state_pre_hook(self._save)
        accelerator.register_load_state_pre_hook(self._load)

    def stepped(self, optimizer: Any) -> bool:
        """Takes note of a call of `optimizer.step`; whether it was a global step."""
        own = self._accelerator._optimizers
        is_step = bool(own) and own[0] is optimizer and self._accelerator.sync_gradients
        self.global_step += is_step
        return is_step

    def _save(self, models: list[Any], weights: list[Any], output_dir: str) -> None:
        if self._accelerator.is_main_process:
            try:
                (Path(output_dir) / STEP_FILE).write_text(json.dumps(self.global_step))
            except OSError as error:
                logger.warning("i2am: the step is not in %s: %s", output_dir, error)

    def _load(self, models: list[Any], input_dir: str) -> None:
        self.global_step = step_of(Path(input_dir), otherwise=self.global_step)


def step_of(checkpoint: Path, *, otherwise: int) -> int:
    """The step that a checkpoint says it is of; else the number that its folder's name ends with, as `checkpoint-500`."""
    try:
        return int(json.loads((checkpoint / STEP_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        pass
    named = re.search(r"(\d+)$", checkpoint.resolve().name)
    if named:
        return int(named[1])
    logger.warning(
        "i2am: which step %s is of is not known: it holds no %s, and its name does not end with a number; steps are counted "
        "from %d",
        checkpoint,
        STEP_FILE,
        otherwise,
    )
    return otherwise
