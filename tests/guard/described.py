"""All that there is to know of a pipeline and the process, as plain values: the oracle of the guard's tests.

Walks the objects deeply and in its own way; the guard remembers one level of each and by identity.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn


def described(*roots: Any) -> dict[str, Any]:
    """Path → what is there."""
    found: dict[str, Any] = {}
    known: dict[int, str] = {}
    for number, root in enumerate(roots):
        _describe(root, f"{number}", found, known)
    return found


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [path for path in {**before, **after} if before.get(path, "absent") != after.get(path, "absent")]


def of_the_process() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": [str(part) for part in np.random.get_state()],
        "torch": torch.get_rng_state().tolist(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "autocast": (
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
        ),
        "benchmark": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        **_precision(),
        "sdpa": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()),
        "backend": _attention_backend(),
    }


def _precision() -> dict[str, Any]:
    """By the old names and the new; torch reads none by its old name while the new ones disagree with it."""
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    reads = {
        "tf32": lambda: cuda.allow_tf32,
        "tf32 of cudnn": lambda: cudnn.allow_tf32,
        "precision": torch.get_float32_matmul_precision,
        "new names": lambda: (cuda.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision),
    }
    found = {}
    for name, read in reads.items():
        try:
            found[name] = read()
        except RuntimeError as error:
            found[name] = str(error)
    return found


def _attention_backend() -> str:
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    return str(_AttentionBackendRegistry._active_backend)


def _describe(value: Any, path: str, found: dict[str, Any], known: dict[int, str]) -> None:
    if isinstance(value, str | int | float | bool | bytes | type | None):
        found[path] = value
        return
    if id(value) in known:
        found[path] = f"as {known[id(value)]}"
        return
    known[id(value)] = path
    if isinstance(value, torch.Tensor):
        found[path] = (
            id(value),
            value.dtype,
            value.device,
            value.requires_grad,
            value.data_ptr(),
            tuple(value.stride()),
        )
        if not value.is_meta:
            found[f"{path}/bytes"] = value.detach().clone().reshape(-1).view(torch.uint8).numpy().tobytes()
        if value.is_leaf:
            _describe(value.grad, f"{path}/grad", found, known)
        return
    if isinstance(value, np.ndarray):
        found[path] = value.tobytes()
        return
    found[path] = id(value)
    if isinstance(value, Mapping):
        found[f"{path}/keys"] = [str(key) for key in value]
        for key, inner in value.items():
            _describe(inner, f"{path}/{key}", found, known)
    elif isinstance(value, list | tuple):
        found[f"{path}/length"] = len(value)
        for number, inner in enumerate(value):
            _describe(inner, f"{path}/{number}", found, known)
    elif isinstance(value, set):
        found[f"{path}/set"] = set(map(str, value))
    inside = getattr(value, "__dict__", None)
    ours = ("diffusers", "peft", "torch.nn", "accelerate.hooks", "test_", "i2am_debug", "transformers")
    if isinstance(inside, dict) and (isinstance(value, nn.Module) or type(value).__module__.startswith(ours)):
        found[f"{path}.names"] = sorted(inside)
        for name, inner in inside.items():
            _describe(inner, f"{path}.{name}", found, known)
