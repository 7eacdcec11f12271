"""What to do where a figure has no value, or where nothing can be seen at all."""

from __future__ import annotations

import inspect
from typing import Any

from ..capture.maps import NO_GRID, NO_OBJECT, ONE_TOKEN
from ..errors import UnsupportedModel
from ..evaluation.calls import default_call
from ..families import channel_concatenation

_OF_FIGURES = {
    ONE_TOKEN: "a property of the model: what it draws on within the reference can't be told. Let the cross-attention read "
    "the image encoder's patch tokens (last_hidden_state) in place of its one embedding, and train with them; as it is, R2G, "
    "IMACS_g and the reference gap are what there is to watch",
    NO_GRID: "a property of the adapter or projection, whose tokens have no place in the reference. Take one that keeps the "
    "image encoder's tokens (IP-Adapter full, 257 tokens); as it is, attention information and the reference gap are what "
    "there is to watch",
    NO_OBJECT: "reference_mask_file_name in metadata.jsonl (reference_mask= of a ValidationPair): the object, white",
    "no mask": "mask_file_name in metadata.jsonl (mask= of a ValidationPair): the hole, white; of an edit kept_mask_file_name "
    "(kept=), what is kept",
    "one pair": "more pairs, with references of their own",
    "all pairs have the same reference": "pairs with references of their own",
}
"""Beginning of a reason → what to do. Reasons that are not here are as it should be, such as no decoupled cross-attention."""

_LOAD = "pipeline.load_ip_adapter(…) brings reference tokens"
_CALL = "call= or loss_fn= beside pipeline=, in a dict that MODULE:FACTORY returns (docs/training-loops.md)"


def cure_of_reason(reason: str) -> str | None:
    """What to do about figures that are undefined for this reason; None where that is as it should be."""
    return next((cure for begin, cure in _OF_FIGURES.items() if reason.startswith(begin)), None)


def nothing_to_see(pipeline: Any, denoiser: Any) -> tuple[str, str] | None:
    """What keeps the pipeline from having reference tokens, and the cure; None where nothing that is known does."""
    takes_adapter = (
        "ip_adapter_image" in inspect.signature(type(pipeline).__call__).parameters if callable(pipeline) else False
    )
    concatenated = channel_concatenation.reason(pipeline, denoiser)
    if concatenated is not None:
        return concatenated, f"{_LOAD} of its own, which are seen" if takes_adapter else ""
    if takes_adapter and uncallable(pipeline) is not None:
        return (
            f"{type(pipeline).__name__} has no IP-Adapter loaded, so it has no reference tokens",
            f"{_LOAD}; or {_CALL}",
        )
    return None


def uncallable(pipeline: Any) -> tuple[str, str] | None:
    """Why it is not known how a pair becomes a call of the pipeline, and the cure; None where it is."""
    try:
        default_call(pipeline)
    except UnsupportedModel as error:
        return str(error), _CALL
    return None
