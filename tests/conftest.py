"""Fixtures of all tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]  # runs pytest on made-up projects, to test our plugin

sys.path.insert(0, str(Path(__file__).parent))  # for training.py, which is also a script for `accelerate launch`


@pytest.fixture(autouse=True)
def _one_thread(request):
    """The tests' tensors are tiny: threads would only wait for each other."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_pipeline():
    """The shipped model. Tests that change it must put it back."""
    from i2am_debug.demo.pipeline import load_tiny_pipeline

    pipeline = load_tiny_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
