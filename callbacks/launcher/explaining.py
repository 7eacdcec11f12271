"""The script's own validation calls looked at, where no pairs are given: maps, and the figures that need no truth."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image

from i2am_debug.capture.maps import AttributionMaps
from i2am_debug.capture.trace import Trace, trace
from i2am_debug.errors import I2AMError
from i2am_debug.evaluation.calls import default_call, picture_of
from i2am_debug.guard.random_states import RandomStates
from i2am_debug.report.panels import panel

from ..trackers import RunTrackers
from .loaded_parts import LoadedParts
from .options import RunOptions
from .step_count import StepCount
from .watch import Attached

logger = logging.getLogger("i2am_debug")

_CALLS = 4
"""Of one step that are looked at: scripts make several pictures of one prompt."""


class Explaining(Attached):
    """Looks at the calls themselves, so that nothing is sampled twice; what they return stays the same, bit for bit.

    Tags:
        | tag | what |
        |---|---|
        | `i2am/validation/attention_information` | of the layer that has most, bit; mean over the calls of a step |
        | `i2am/validation/reference_mass`, `…/branch_share` | of that layer, where the model has it |
        | `i2am/validation_00` … | a panel for each of the first calls of a step; in the run `<run>/i2am_pictures` |
    """

    def __init__(self, options: RunOptions, accelerator: Accelerator, loaded: LoadedParts) -> None:
        self._accelerator, self._logdir = accelerator, options.logdir
        self._steps = StepCount(accelerator)
        self._trackers: RunTrackers | None = None
        self._step, self._calls = -1, 0
        self._told: set[str] = set()

    def about_to_train(self) -> None:
        logger.info(
            "i2am: no pairs are given (--pairs): the script's own validation calls are looked at, which has no baseline"
        )

    def stepped(self, optimizer: Any) -> bool:
        return self._steps.stepped(optimizer)

    def calls(self, pipeline: Any, arguments: Mapping[str, Any], call: Callable[[], Any]) -> Any:
        if self._steps.global_step != self._step:
            self._step, self._calls = self._steps.global_step, 0
        self._calls += 1
        if self._calls > _CALLS or not self._accelerator.is_main_process:
            return call()
        try:
            references = arguments.get(default_call(pipeline).reference_parameter)
        except I2AMError as error:
            self._tell(pipeline, error)
            return call()
        if references is None:
            self._tell(pipeline, "it was called without a reference")
            return call()
        put_back = _noise(arguments.get("generator"))
        try:
            with trace(pipeline) as seen:
                output = call()
        except I2AMError as error:
            self._tell(pipeline, error)
            put_back()
            return call()
        try:
            self._write(seen, references, output)
        except Exception as error:
            self._tell(pipeline, f"{type(error).__name__}: {error}")
        return output

    def training_ended(self) -> None:
        if self._trackers is not None:
            self._trackers.close()

    def _write(self, seen: Trace, references: Any, output: Any) -> None:
        maps = seen.maps()
        figures = _figures(maps)
        logger.info(
            "i2am: the script's validation at step %d, call %d: %s",
            self._step,
            self._calls,
            ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures.items()),
        )
        if self._trackers is None:
            own = self._logdir or Path(self._accelerator.project_dir or "runs") / "i2am_debug"
            self._trackers = RunTrackers(self._accelerator.trackers, own)
        self._trackers.numbers({f"validation/{name}": value for name, value in figures.items()}, self._step)
        drawn = panel(
            name=f"validation, call {self._calls}",
            reference=_first_picture(references) or Image.new("RGB", (64, 64), "grey"),
            masked_input=None,
            generated=_made(output),
            truth=None,
            r2g=maps.r2g.unified,
            g2r=maps.undefined_g2r or maps.g2r.unified,
            region=None,
            reference_region=None,
            figures={name.replace("_", " "): f"{value:.3f}" for name, value in figures.items()},
            subtitle=f"step {self._step}, the script's own call",
        )
        self._trackers.picture(f"validation_{self._calls - 1:02d}", drawn, self._step)
        self._trackers.flush()

    def _tell(self, pipeline: Any, why: object) -> None:
        text = f"i2am: a validation call of {type(pipeline).__name__} is not looked at: {why}"
        if text not in self._told:
            logger.warning(text)
        self._told.add(text)


def _figures(maps: AttributionMaps) -> dict[str, float]:
    """Those that need neither truth nor mask, of the layer with most attention information."""
    information = maps.layer_information
    layer = max(information, key=lambda name: information[name])
    found = {"attention_information": information[layer]}
    for name in ("reference_mass", "branch_share"):
        of_layers = getattr(maps, name)
        if layer in of_layers:
            found[name] = float(of_layers[layer])
    return found


def _noise(generators: Any) -> Callable[[], None]:
    """Puts all random numbers back to where they are now, so that a call can be made once more."""
    own = generators if isinstance(generators, (list, tuple)) else [generators]
    states = [(one, one.get_state()) for one in own if isinstance(one, torch.Generator)]
    everywhere = RandomStates()

    def put_back() -> None:
        everywhere.put_back()
        for generator, state in states:
            generator.set_state(state)

    return put_back


def _first_picture(references: Any) -> Image.Image | None:
    while isinstance(references, (list, tuple)) and references:
        references = references[0]
    return references if isinstance(references, Image.Image) else None


def _made(output: Any) -> Image.Image | None:
    try:
        return picture_of(output)
    except I2AMError:  # latents, or tensors
        return None
