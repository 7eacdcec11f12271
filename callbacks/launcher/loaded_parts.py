"""What a script loaded with `from_pretrained`: from where, and the module itself for as long as the script keeps it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import ReferenceType, ref

from torch import nn

from .patches import Patches

_WHERE = ("revision", "variant", "cache_dir", "token", "local_files_only")
"""Those arguments of `from_pretrained` that say where the files are, not what becomes of them."""


@dataclass(frozen=True)
class LoadedPart:
    """One module that the script loaded."""

    kind: type
    folder: str
    """A folder, or a name on the hub."""
    subfolder: str
    where: Mapping[str, Any]
    module: ReferenceType[nn.Module]


class LoadedParts:
    """Every model that is loaded from now on, the script's memory being its own: what it frees is freed."""

    def __init__(self) -> None:
        self._parts: list[LoadedPart] = []

    def __iter__(self) -> Iterator[LoadedPart]:
        """The newest first."""
        return reversed(self._parts)

    def watch(self, patches: Patches) -> None:
        """Takes note of what diffusers' and transformers' models are loaded from."""
        from diffusers import ModelMixin
        from transformers import PreTrainedModel

        patches.wrap(ModelMixin, "from_pretrained", self._from_pretrained)
        patches.wrap(PreTrainedModel, "from_pretrained", self._from_pretrained)

    def of(self, module: nn.Module) -> LoadedPart | None:
        """Where this module was loaded from."""
        return next((part for part in self if part.module() is module), None)

    def living_in(self, folder: str) -> dict[str, nn.Module]:
        """Of the parts of a pipeline's folder those that the script still keeps, by their subfolder; of several the newest."""
        found: dict[str, nn.Module] = {}
        for part in self:
            module = part.module()
            if module is not None and _in(part.folder, part.subfolder).startswith(_in(folder, "")):
                name = _in(part.folder, part.subfolder)[len(_in(folder, "")) :]
                if name and os.sep not in name:
                    found.setdefault(name, module)
        return found

    def _from_pretrained(self, original: Any, kind: type, *args: Any, **kwargs: Any) -> Any:
        loaded = original(kind, *args, **kwargs)
        folder = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        module = loaded[0] if isinstance(loaded, tuple) else loaded
        if isinstance(module, nn.Module) and isinstance(folder, (str, os.PathLike)):
            where = {name: kwargs[name] for name in _WHERE if kwargs.get(name) is not None}
            subfolder = kwargs.get("subfolder") or ""
            self._parts.append(LoadedPart(type(module), str(folder), subfolder, where, ref(module)))
        return loaded


def _in(folder: str, subfolder: str) -> str:
    return os.path.join(folder.rstrip(os.sep), subfolder)
