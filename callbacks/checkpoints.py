"""The callback's own file in every checkpoint that Accelerate or transformers' Trainer writes.

Accelerate refuses a checkpoint of another number of registered objects, so one from before the callback was there could not be
loaded; its hooks ask for no number. Whatever is wrong with the file, training goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from i2am_debug.errors import I2AMError
from i2am_debug.store.files import NOT_OURS, replace_file

from .processes import GroupProcesses

logger = logging.getLogger("i2am_debug")

STATE_FILE = "i2am_debug.state"
"""In safetensors' format, but not so named: a folder with a second .safetensors is one that `load_lora_weights` refuses."""

_KEY = "i2am_debug_state"
UNREADABLE = (*NOT_OURS, OSError, SafetensorError, I2AMError)
_of_accelerator: WeakKeyDictionary[Accelerator, int] = WeakKeyDictionary()

State = dict[str, Any]


class CheckpointFile:
    """A state in a checkpoint's folder.

    Args:
        state: what to save; plain values, and NumPy arrays under "baseline_maps".
        resume: takes up such a state on every process, or raises and leaves all as it was.
        registered: whether the state is in the checkpoint otherwise too.
        cure: what helps where there is no file.
    """

    def __init__(
        self,
        processes: GroupProcesses,
        *,
        state: Callable[[], State],
        resume: Callable[[Mapping[str, Any]], None],
        registered: Callable[[], bool] = lambda: False,
        name: str = STATE_FILE,
        cure: str = "unless baseline= names one",
    ) -> None:
        self._processes, self._state, self._resume, self._registered = processes, state, resume, registered
        self._name, self._cure = name, cure

    def save(self, folder: str | Path) -> None:
        """Writes the file on the main process; where it can't, a warning."""
        if not self._processes.is_main:
            return
        try:
            write_state(Path(folder) / self._name, self._state())
        except Exception as error:  # a checkpoint without our state is worth more than none
            logger.warning("i2am: the callback's state is not in %s: %s: %s", folder, type(error).__name__, error)

    def load(self, folder: str | Path) -> None:
        """Takes up what the file says, on every process; where it can't, or there is none, a warning."""
        path = Path(folder) / self._name
        try:
            state = self._processes.from_main(lambda: read_state(path) if path.is_file() else None)
            if state is not None:
                self._resume(state)
            elif not self._registered():
                logger.warning(
                    "i2am: %s holds no state of the callback (%s); its baseline will be the first evaluation from now on, %s",
                    folder,
                    self._name,
                    self._cure,
                )
        except UNREADABLE as error:
            logger.warning(
                "i2am: %s can't be taken up, the callback begins anew and training goes on: %s: %s",
                path,
                type(error).__name__,
                error,
            )


def in_checkpoints_of(accelerator: Accelerator, processes: GroupProcesses, **file: Any) -> None:
    """Saves and loads a `CheckpointFile` with the checkpoints of an accelerator, from now on."""
    number = _of_accelerator[accelerator] = _of_accelerator.get(accelerator, -1) + 1  # of the run's callbacks, in order
    name = STATE_FILE if number == 0 else f"i2am_debug_{number}.state"
    one = CheckpointFile(processes, name=name, **file)

    # `models` and `weights` are left alone: scripts pop from them what they save themselves.
    def save(models: list[Any], weights: list[Any], output_dir: str) -> None:
        one.save(output_dir)

    def load(models: list[Any], input_dir: str) -> None:
        one.load(input_dir)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    plain = {name: value for name, value in state.items() if name != "baseline_maps"}
    metadata = {_KEY: json.dumps(plain)}
    replace_file(path, lambda temporary: save_file(dict(state["baseline_maps"]), temporary, metadata))


def read_state(path: Path) -> State:
    """What `write_state` wrote.

    Raises:
        OSError, SafetensorError, ValueError, KeyError: the file is broken, or none of ours.
    """
    with safe_open(path, framework="numpy") as file:
        state = json.loads((file.metadata() or {})[_KEY])
        if not isinstance(state, dict):
            raise ValueError(f"{_KEY} is no JSON object")
        return {**state, "baseline_maps": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118
