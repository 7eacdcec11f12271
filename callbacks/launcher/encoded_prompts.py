"""The pairs' prompts are encoded once a run: text encoders can be larger than the denoiser, and scripts free them.

The first evaluation loads them; later ones are answered from memory and build their pipelines without.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import send_to_device

from i2am_debug.evaluation.prompts import question


def text_encoders(kind: Any) -> set[str]:
    """The names of the text encoders that a pipeline's class takes."""
    return {name for name in inspect.signature(kind.__init__).parameters if name.startswith("text_encoder")}


class EncodedPrompts:
    """What `encode_prompt` has answered in this run, on the CPU. Encoders that see a picture too are asked each time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known: dict[str, Any] = {}
        self._was_asked = self._asked_with_more = False

    @property
    def are_known(self) -> bool:
        """Whether a pipeline can do without text encoders; for a prompt that is new all the same they are loaded."""
        return self._was_asked and not self._asked_with_more

    def answer_for(self, pipeline: Any, load: Callable[[], Any]) -> None:
        """From now on the pipeline's `encode_prompt` answers from memory where it can.

        Args:
            load: makes a pipeline with text encoders, for one that has none.
        """
        if not hasattr(pipeline, "encode_prompt"):
            return
        own = pipeline.encode_prompt
        encode = own if any(getattr(pipeline, name) is not None for name in text_encoders(type(pipeline))) else None

        def answer(*args: Any, **kwargs: Any) -> Any:
            nonlocal encode
            self._was_asked = True
            if any("prompt_embeds" in name and value is not None for name, value in kwargs.items()):
                return own(*args, **kwargs)  # the pair's own; nothing is left to encode
            key = question(args, kwargs)
            self._asked_with_more |= key is None
            if key is not None and key in self._known:
                return send_to_device(self._known[key], self._device)
            if encode is None:
                encode = load().encode_prompt
            answered = encode(*args, **kwargs)
            if key is not None:
                self._known[key] = send_to_device(answered, "cpu")
            return answered

        pipeline.__dict__["encode_prompt"] = answer
