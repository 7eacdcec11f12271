"""Float32 products in float32, whatever the training script allows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def float32_products(device_type: str) -> Iterator[None]:
    """Autocast off, and float32 products in float32: training scripts allow TF32 or bfloat16 ones, which are 1e-3 off."""
    matmuls: list[Any] = [getattr(backend, "matmul", None) for backend in (torch.backends.cuda, torch.backends.mkldnn)]
    matmuls = [
        m for m in matmuls if hasattr(m, "fp32_precision")
    ]  # torch 2.9; must not be mixed with the older function
    before = [m.fp32_precision for m in matmuls] or torch.get_float32_matmul_precision()
    try:
        for m in matmuls:
            m.fp32_precision = "ieee"
        if not matmuls:
            torch.set_float32_matmul_precision("highest")
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for m, value in zip(matmuls, before, strict=False):
            m.fp32_precision = value
        if not matmuls:
            torch.set_float32_matmul_precision(before)
