"""What the user named: a saved pipeline, or a function that makes one, perhaps with further arguments of the callback."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from ..capture.trace import find_denoiser
from ..errors import UnsupportedModel
from ..evaluation.evaluator import Evaluator
from ..evaluation.load_pipeline import load_pipeline

_EXPECTED = "expected a folder that save_pretrained wrote, or MODULE:FACTORY, such as train:make_pipeline"
_IGNORED = {"every_n_steps", "logdir", "rules", "on_alert", "stop_on", "fail_on", "on_error", "baseline", "budget"}
"""Arguments of the callback that say nothing of how pairs are looked at."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """A pipeline, and how it is looked at."""

    pipeline: Any
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Evaluator`."""


class NotGiven(ValueError):
    """What was named can't be had; the text says why, and `cure` what to do."""

    def __init__(self, what: str, cure: str = "") -> None:
        super().__init__(what)
        self.cure = cure


def given(named: str) -> Given:
    """The pipeline of that folder, or what that function returns.

    Raises:
        NotGiven: there is none.
    """
    if Path(named).is_dir():
        return Given(pipeline=_from_folder(named))
    module_name, colon, factory = named.rpartition(":")
    if not (colon and module_name and factory):
        raise NotGiven(f"there is no folder {named}; {_EXPECTED}")
    if module_name.endswith(".py") or "/" in module_name or "\\" in module_name:
        name = Path(module_name).name.removesuffix(".py")
        raise NotGiven(f"{module_name!r} is no module's name", f"in its folder: i2am-debug doctor {name}:{factory}")
    return _made(_found(_module(module_name), factory), named)


def where_it_was_raised(error: BaseException) -> str:
    """ "file.py:12" of the innermost line that is not the standard library's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [one for one in frames if not one.filename.startswith("<")]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"


def first_line(error: BaseException) -> str:
    """Its type and the first line of its text."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _from_folder(folder: str) -> Any:
    try:
        pipeline = load_pipeline(folder)
    except ValueError as error:
        raise NotGiven(str(error), "pipeline.save_pretrained(FOLDER), or MODULE:FACTORY") from None
    except Exception as error:
        raise NotGiven(
            f"{folder} can't be loaded: {first_line(error)}",
            "load it in Python as you do, in a function, and say MODULE:FACTORY",
        ) from None
    return _on_the_accelerator(pipeline)


def _on_the_accelerator(pipeline: Any) -> Any:
    """There, if there is one: that is where it will be trained."""
    import torch

    if not torch.cuda.is_available():
        return pipeline
    try:
        return pipeline.to("cuda")
    except torch.OutOfMemoryError:
        raise NotGiven(
            "the pipeline does not fit into the device's memory as it was saved",
            "load it as you train it (dtype, offloading) in a function, and say MODULE:FACTORY",
        ) from None


def _module(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` has it
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise NotGiven(
                f"there is no module {name!r} in {Path.cwd()} nor on PYTHONPATH",
                "run it in the folder the module is in",
            ) from None
        raise NotGiven(f"the module {name!r} needs {missing!r}, which is not there", f"pip install {missing}") from None
    except (Exception, SystemExit) as error:
        raise NotGiven(
            f"importing {name!r} raised {first_line(error)} ({where_it_was_raised(error)})",
            'a training script begins to train when it is imported: put that under if __name__ == "__main__":',
        ) from None


def _found(module: ModuleType, name: str) -> Any:
    if hasattr(module, name):
        return getattr(module, name)
    own = [n for n, one in vars(module).items() if inspect.isfunction(one) and one.__module__ == module.__name__]
    raise NotGiven(
        f"the module {module.__name__!r} has no {name!r}; its functions are {', '.join(own) or 'none'}", _EXPECTED
    )


def _made(found: Any, named: str) -> Given:
    """What a function returns, or the object itself where that is a pipeline or a dict already."""
    if isinstance(found, Mapping) or _is_pipeline(found):
        return _with_settings(found, named)
    if not callable(found):
        raise NotGiven(
            f"{named} is a {type(found).__name__}; expected a function without arguments that returns a pipeline"
        )
    return _with_settings(_called(found, named), named)


def _called(factory: Callable[[], Any], named: str) -> Any:
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise NotGiven(
            f"{named} can't be called without arguments: {error}",
            "name a function that needs none: def make_pipeline(): return …",
        ) from None
    except ValueError:  # it does not say what it takes
        pass
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise NotGiven(f"{named} raised {first_line(error)} ({where_it_was_raised(error)})") from None


def _with_settings(made: Any, named: str) -> Given:
    if not isinstance(made, Mapping):
        return Given(pipeline=_checked(made, named))
    settings = {key: value for key, value in made.items() if key not in _IGNORED}
    pipeline = settings.pop("pipeline", None)
    known = [one.name for one in fields(Evaluator) if one.init and one.name != "choice"]
    if unknown := sorted(set(settings) - set(known)):
        raise NotGiven(
            f"{named} gave {', '.join(unknown)}; expected the callback's arguments: pipeline, {', '.join(known)}"
        )
    if callable(pipeline) and not _is_pipeline(pipeline):
        pipeline = _called(pipeline, f"pipeline= of {named}")
    return Given(pipeline=_checked(pipeline, f"'pipeline' of {named}"), settings=settings)


def _checked(pipeline: Any, named: str) -> Any:
    try:
        find_denoiser(pipeline)
    except UnsupportedModel as error:
        raise NotGiven(f"{named} gave a {type(pipeline).__name__}: {error}") from None
    return pipeline


def _is_pipeline(one: Any) -> bool:
    try:
        find_denoiser(one)
    except UnsupportedModel:
        return False
    return True
