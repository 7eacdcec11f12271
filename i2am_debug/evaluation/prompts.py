"""A pair's prompt is encoded once for all its calls: text encoders can be as large as the denoiser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

_PLAIN = (str, int, float, bool, type(None), torch.device, torch.dtype)


@contextmanager
def prompts_encoded_once(pipeline: Any) -> Iterator[None]:
    """`pipeline.encode_prompt` answers from memory where it was asked the same before, inside the `with`.

    Only where all that it is given is plain: encoders that also see a picture are asked each time.
    """
    encode = getattr(pipeline, "encode_prompt", None)
    if encode is None or "encode_prompt" in vars(pipeline):
        yield
        return
    known: dict[str, Any] = {}

    def remembered(*args: Any, **kwargs: Any) -> Any:
        key = question(args, kwargs)
        if key is None:
            return encode(*args, **kwargs)
        if key not in known:
            known[key] = encode(*args, **kwargs)
        return known[key]

    pipeline.__dict__["encode_prompt"] = remembered
    try:
        yield
    finally:
        del pipeline.__dict__["encode_prompt"]


def question(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """What an encoder is asked, as text; None where it is given a picture or a tensor too."""
    return repr((args, sorted(kwargs.items()))) if all(map(_plain, (*args, *kwargs.values()))) else None


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return isinstance(value, _PLAIN)
