"""A pipeline from a folder that `save_pretrained` wrote."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

_OWN = {
    "TinyExamplePipeline": "i2am_debug.demo.inpainting.pipeline",
    "TinyEditPipeline": "i2am_debug.demo.edit.pipeline",
    "TinySuperResolutionPipeline": "i2am_debug.demo.super_resolution.pipeline",
}
"""Pipelines of this package, which diffusers does not know: class → module."""


def load_pipeline(folder: str | Path) -> Any:
    """A pipeline saved with `save_pretrained`, by its own class.

    Raises:
        ValueError: the folder has no model_index.json, or one that is broken.
    """
    index = Path(folder) / "model_index.json"
    if not index.is_file():
        raise ValueError(
            f"{folder} is no pipeline folder: it has no model_index.json (pipeline.save_pretrained writes one)"
        )
    try:
        own_class = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is none that save_pretrained writes: {error!r}") from None
    if own_class in _OWN:
        pipeline_class = getattr(importlib.import_module(_OWN[own_class]), own_class)
    else:
        pipeline_class = importlib.import_module("diffusers").DiffusionPipeline  # finds the saved class
    return pipeline_class.from_pretrained(folder)
