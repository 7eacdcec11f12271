"""Runs an unmodified script as if Python had been called with it, watched."""

from __future__ import annotations

import logging
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from .evaluating import Evaluating
from .explaining import Explaining
from .options import RunOptions, read_options
from .watch import ScriptWatch


def run_script(script: Path, arguments: Sequence[str], given: Mapping[str, Any], config: Path | None = None) -> None:
    """Runs it to its end; what it raises is raised, its `SystemExit` too.

    Args:
        given: the words of the command line, by the keys of the config file.

    Raises:
        WrongSettings: raised before the script begins.
        I2AMError: the pairs, the pipeline or the model can't be looked at; raised before the first training step.
    """
    with _as_main(script, arguments), _log():
        options = read_options(given, config)
        with ScriptWatch(partial(_attached, options)) as watch:
            try:
                runpy.run_path(str(script), run_name="__main__")
            except SystemExit as end:
                if end.code not in (None, 0):
                    raise
                watch.script_ended()
                raise
            watch.script_ended()


def _attached(options: RunOptions, *of_the_script: Any) -> Any:
    return (Evaluating if "pairs" in options.settings else Explaining)(options, *of_the_script)


@contextmanager
def _as_main(script: Path, arguments: Sequence[str]) -> Iterator[None]:
    """Arguments and the place for imports as the script has them when Python is called with it."""
    argv, path = sys.argv[:], sys.path[:]
    sys.argv[:] = [str(script), *arguments]
    sys.path[0] = str(script.resolve().parent)
    try:
        yield
    finally:
        sys.argv[:], sys.path[:] = argv, path


@contextmanager
def _log() -> Iterator[None]:
    """Our words on the terminal by a handler of our own: what the script sets up for its log stays the first to be set up."""
    logger = logging.getLogger("i2am_debug")
    handler, before = logging.StreamHandler(), (logger.level, logger.propagate)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
