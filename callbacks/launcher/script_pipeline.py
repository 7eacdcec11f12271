"""A pipeline around the modules that a script trains, built of what the script itself loaded.

What the script still keeps is used as it is; what it has freed, such as text encoders whose embeddings it cached, is loaded for
the evaluation and freed again.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from i2am_debug.errors import I2AMError

from .adapter import adapter_in
from .encoded_prompts import EncodedPrompts, text_encoders
from .loaded_parts import LoadedParts
from .trained import denoiser_in, unwrapped

_UNASKED = {"safety_checker": None, "requires_safety_checker": False}
"""It would blacken pictures that are only looked at."""

_NOT_OF_WORDS = ("transformer", "transformer_2", "unet", "vae", "image_encoder", "scheduler")


class ScriptPipeline:
    """Builds the pipeline when called; always of one class, with its parts in the dtypes that they had first.

    Args:
        asked_for: the pipeline's class, by its name in diffusers or as "module:Class"; by default the one that the script
            imports, else the one that its model's folder names.
        model: the pipeline's folder or name on the hub; by default that which the denoiser was loaded from.
    """

    def __init__(
        self, accelerator: Any, loaded: LoadedParts, *, asked_for: type | None = None, model: str | None = None
    ) -> None:
        self._accelerator, self._loaded, self._kind, self._model = accelerator, loaded, asked_for, model
        self._where: dict[str, Any] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._prompts = EncodedPrompts(accelerator.device)
        self.was_built = False
        """Whether one was built since somebody said that none was."""

    def is_of_the_training(self, pipeline: Any) -> bool:
        """Whether it holds the denoiser that is being trained."""
        found = denoiser_in(unwrapped(self._accelerator))
        if found is None:
            return False
        held = getattr(pipeline, found[0], None)
        return getattr(held, "_orig_mod", held) is found[1]

    @contextmanager
    def parts_held(self) -> Iterator[None]:
        """A block in which the script's living parts are attributes of this object, where the guard looks for what the
        building of a pipeline may change."""
        parts = dict(enumerate(part for p in self._loaded if (part := p.module()) is not None))
        held = {f"_part_{number}": module for number, module in parts.items()}
        self.__dict__.update(held)
        try:
            yield
        finally:
            for name in held:
                del self.__dict__[name]

    def __call__(self) -> Any:
        """Raises:
        I2AMError: no denoiser is trained, or what the pipeline needs can't be known; says what to give.
        """
        self.was_built = True
        slot, denoiser = self._denoiser()
        folder = self._folder(denoiser)
        kind = self._kind = self._kind or self._found_kind(folder)
        adapter = adapter_in(unwrapped(self._accelerator))
        trained = {**self._trained(folder), slot: denoiser}
        with _quietly():
            given = {**self._loaded.living_in(folder), **trained}
            encoders = text_encoders(kind) - trained.keys()
            if self._prompts.are_known:
                given |= dict.fromkeys(encoders)
            if adapter is not None:
                given |= {**adapter.parts(self._loaded), slot: adapter.plain(denoiser)}
            pipeline = self._built(kind, folder, given, _dtype(denoiser))
            self._move(pipeline, keep=trained)
            if adapter is not None:
                adapter.load_into(pipeline)
        if encoders and encoders == text_encoders(kind):  # a trained one answers otherwise each time
            dtype = _dtype(denoiser)
            self._prompts.answer_for(pipeline, lambda: self._of_words(kind, folder, encoders, dtype))
        return pipeline

    def _of_words(self, kind: Any, folder: str, encoders: Container[str], dtype: torch.dtype) -> Any:
        """A pipeline of the text encoders alone."""
        living = {name: part for name, part in self._loaded.living_in(folder).items() if name in encoders}
        with _quietly():
            pipeline = self._built(kind, folder, {**dict.fromkeys(_NOT_OF_WORDS), **living}, dtype)
            self._move(pipeline, keep=())
        return pipeline

    def _built(self, kind: Any, folder: str, given: Mapping[str, Any], dtype: torch.dtype) -> Any:
        takes = inspect.signature(kind.__init__).parameters
        given = {name: part for name, part in {**_UNASKED, **given}.items() if name in takes}
        try:
            return kind.from_pretrained(folder, **given, **self._where, torch_dtype=dtype)
        except (OSError, ValueError, TypeError) as error:
            raise I2AMError(
                f"no {kind.__name__} can be built from {folder!r} ({type(error).__name__}: {error}); give the folder or hub "
                "name of a whole pipeline as --model, and its class as --pipeline"
            ) from error

    def _denoiser(self) -> tuple[str, nn.Module]:
        found = denoiser_in(unwrapped(self._accelerator))
        if found is None:
            names = ", ".join(type(model).__name__ for model in unwrapped(self._accelerator)) or "nothing"
            raise I2AMError(
                f"the script prepares {names} with its Accelerator, in which no transformer or unet is found; what is "
                "looked at is a denoiser that is being trained. Use the callback in the script: docs/training-loops.md"
            )
        return found

    def _folder(self, denoiser: nn.Module) -> str:
        part = self._loaded.of(denoiser)
        if part is not None:
            self._where = dict(part.where) if self._model in (None, part.folder) else {}
        if self._model is None:
            self._model = part.folder if part is not None else None
        if self._model is None:
            raise I2AMError(
                f"the script did not load its {type(denoiser).__name__} with from_pretrained, so that the other parts of a "
                "pipeline are not known; give the pipeline's folder or hub name as --model"
            )
        return self._model

    def _trained(self, folder: str) -> dict[str, nn.Module]:
        """The trained modules beside the denoiser, such as text encoders, by the subfolder they were loaded from."""
        parts = [(self._loaded.of(module), module) for module in unwrapped(self._accelerator)]
        return {part.subfolder: module for part, module in parts if part is not None and part.folder == folder}

    def _found_kind(self, folder: str) -> type:
        script = vars(sys.modules["__main__"])
        imported = {
            value.__name__: value
            for value in script.values()
            if isinstance(value, type) and issubclass(value, DiffusionPipeline) and value is not DiffusionPipeline
        }
        if len(imported) > 1:
            raise I2AMError(
                f"the script imports {', '.join(sorted(imported))}; say with --pipeline which of them your pairs are for"
            )
        if imported:
            return next(iter(imported.values()))
        return kind_in(folder, self._where)

    def _move(self, pipeline: Any, *, keep: Container[str]) -> None:
        """To the training's device, and to the dtype that each part had at the first time: evaluations are compared."""
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module) and name not in keep:
                dtype = self._dtypes.setdefault(name, _dtype(part))
                part.to(self._accelerator.device)
                if _dtype(part) != dtype:
                    part.to(dtype)


def kind_in(folder: str, where: dict[str, Any]) -> type:
    """The class that a pipeline's own folder names.

    Raises:
        I2AMError: the folder holds no pipeline.
    """
    import diffusers

    try:
        name = DiffusionPipeline.load_config(folder, **where)["_class_name"]
        kind: type = getattr(diffusers, name)
        return kind
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise I2AMError(
            f"the script imports no pipeline, and {folder!r} names none ({type(error).__name__}); give its class as "
            "--pipeline, such as FluxKontextPipeline, and its folder or hub name as --model"
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without a bar and a paragraph for each part that is loaded, at every evaluation."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    logs = (of_diffusers, of_transformers)
    were = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    try:
        for log in logs:
            log.set_verbosity_error()
            log.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for log, verbosity, bar in were:
            log.set_verbosity(verbosity)
            (log.enable_progress_bar if bar else log.disable_progress_bar)()


def _dtype(module: nn.Module) -> torch.dtype:
    """That of its frozen weights: what is trained may be kept in another one."""
    floating = [p for p in module.parameters() if p.is_floating_point()]
    first = next((p for p in floating if not p.requires_grad), floating[0] if floating else None)
    return torch.float32 if first is None else first.dtype
