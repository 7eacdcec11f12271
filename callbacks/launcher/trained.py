"""The modules that a script trains: those that it handed to `accelerator.prepare`, without their wrappers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

_DENOISERS = ("transformer", "unet")


def unwrapped(accelerator: Any) -> list[nn.Module]:
    """Without DDP and `torch.compile`; what is sharded in place stays as it is."""
    models = [accelerator.unwrap_model(model) for model in accelerator._models]
    return [getattr(model, "_orig_mod", model) for model in models]


def denoiser_in(models: Iterable[nn.Module]) -> tuple[str, nn.Module] | None:
    """("transformer" or "unet", the module): one of the models, or a part that one of them holds by that name."""
    models = list(models)
    for model in models:
        for slot in _DENOISERS:
            if slot in type(model).__name__.lower() and hasattr(model, "config"):
                return slot, model
    for model in models:
        for slot in _DENOISERS:
            inner = getattr(model, slot, None)
            if isinstance(inner, nn.Module):
                return slot, inner
    return None
