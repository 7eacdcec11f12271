"""Weights of tiny models as files: all modules of a pipeline in one, float16, with what is to be known of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file

from .recipe import Modules


def save_weights(modules: Modules, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes the modules' weights in float16 with `metadata`."""
    tensors = {f"{n}.{k}": v.half().contiguous() for n, m in modules.items() for k, v in m.state_dict().items()}
    save_file(tensors, path, metadata=dict(metadata))


def load_weights(modules: Modules, path: Path) -> Modules:
    """Gives the modules what `save_weights` wrote of them, in float32; returns them in evaluation mode."""
    state = load_file(path)
    for name, module in modules.items():
        module.load_state_dict(
            {k.removeprefix(f"{name}."): v.float() for k, v in state.items() if k.startswith(f"{name}.")}
        )
    return {name: module.eval() for name, module in modules.items()}
