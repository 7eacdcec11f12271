"""Settings of the whole process that move a model's arithmetic: dtypes, autocast, determinism, precision, attention."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

Setting = tuple[Callable[[], Any], Callable[[Any], Any]]
"""How it is read, and how it is written."""

_DEVICES = ("cpu", "cuda", "mps", "xpu")


class ProcessSettings:
    """All of them as they are now; only what has changed is written back."""

    def __init__(self) -> None:
        self._found = [(setting, value) for setting in _settings() for value in _read(setting)]

    def put_back(self) -> None:
        """One that fails does not keep the others from being put back."""
        with ExitStack() as stack:
            for setting, value in self._found:  # which a stack undoes from the last to the first
                stack.callback(_write_if_changed, setting, value)


def leave_autocast_cache_alone() -> None:
    """Under autocast of the script's own, weights that are cast without gradients would be found by its next forward."""
    if any(map(torch.is_autocast_enabled, _DEVICES)):
        torch.set_autocast_cache_enabled(False)


def _read(setting: Setting) -> list[Any]:
    """Its value, or nothing: torch refuses to read a precision by the old name after it was set by the new one."""
    try:
        return [setting[0]()]
    except RuntimeError:
        return []


def _write_if_changed(setting: Setting, value: Any) -> None:
    if _read(setting) not in ([], [value]):
        setting[1](value)


def _settings() -> Iterator[Setting]:
    yield torch.get_default_dtype, torch.set_default_dtype
    yield torch.get_default_device, torch.set_default_device
    yield torch.is_grad_enabled, torch._C._set_grad_enabled
    yield torch.get_num_threads, torch.set_num_threads
    yield (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda mode: torch.use_deterministic_algorithms(mode[0], warn_only=mode[1]),
    )
    yield from _autocast()
    yield from _precision()
    cuda = torch.backends.cuda
    yield cuda.flash_sdp_enabled, cuda.enable_flash_sdp
    yield cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp
    yield cuda.math_sdp_enabled, cuda.enable_math_sdp
    yield cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp
    # Not imported for this: a process that has not loaded it can't have set it.
    diffusers = sys.modules.get("diffusers.models.attention_dispatch")
    registry = getattr(diffusers, "_AttentionBackendRegistry", None)
    if hasattr(registry, "_active_backend"):
        yield _attribute(registry, "_active_backend")


def _autocast() -> Iterator[Setting]:
    yield torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled
    for device in _DEVICES:
        yield partial(torch.is_autocast_enabled, device), partial(torch.set_autocast_enabled, device)
        yield partial(torch.get_autocast_dtype, device), partial(torch.set_autocast_dtype, device)


def _precision() -> Iterator[Setting]:
    """The new names first, so that they are written last: writing an old name writes new ones too."""
    backends = torch.backends
    for owner in (backends.cuda.matmul, getattr(backends.cudnn, "conv", None), getattr(backends.cudnn, "rnn", None)):
        if hasattr(owner, "fp32_precision"):
            yield _attribute(owner, "fp32_precision")
    for name in ("benchmark", "deterministic", "enabled", "allow_tf32"):
        yield _attribute(backends.cudnn, name)
    for name in ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction"):
        yield _attribute(backends.cuda.matmul, name)
    yield torch.get_float32_matmul_precision, torch.set_float32_matmul_precision


def _attribute(owner: Any, name: str) -> Setting:
    return (lambda: getattr(owner, name)), (lambda value: setattr(owner, name, value))
