"""Fixtures of all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest_plugins = ["pytester"]  # runs pytest on made-up projects, to test our plugin

if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # runs the kernels for CUDA; read when Triton is imported, by whomever


@pytest.fixture(autouse=True)
def _one_thread(request):
    """The tests' tensors are tiny: threads would only wait for each other."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_pipeline():
    """The shipped model. Tests that change it must put it back."""
    from i2am_debug.demo.inpainting.pipeline import load_tiny_pipeline

    pipeline = load_tiny_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium; without one its tests are skipped, unless I2AM_REQUIRE_BROWSER is set."""
    from benchmarks.browser import chromium, chromium_path

    if chromium_path() is None:
        reason = "no chromium on the path (on Debian: apt install chromium)"
        pytest.fail(reason) if os.environ.get("I2AM_REQUIRE_BROWSER") else pytest.skip(reason)
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def few_probes() -> Iterator[None]:
    """Two probes in place of all of them, for a module that is about something else."""
    from training import few_probes

    with few_probes():
        yield
