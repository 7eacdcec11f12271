"""The families known, and which of them a model belongs to."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import UnsupportedModel
from . import channel_concatenation
from .added_key_value import AddedKeyValue
from .bria_fibo_edit import BriaFiboEdit
from .family import Family
from .flux2 import Flux2
from .flux_ip_adapter import FluxIPAdapter
from .flux_kontext import FluxKontext
from .flux_redux import FluxRedux
from .ip_adapter import IPAdapter
from .ldm_cross_attention import LDMCrossAttention
from .longcat_edit import LongCatImageEdit
from .omnigen import OmniGen
from .qwen_image_edit import QwenImageEdit
from .sd3_ip_adapter import SD3IPAdapter
from .self_attention_reference import KeyConcatenation, SpatialConcatenation
from .unet_cross_attention import UNetCrossAttention
from .wan_image_to_video import WanImageToVideo

_REGISTERED: list[Family] = []


def register_family(family: Family) -> None:
    """Adds a family of your own; it is asked before the ones that came earlier."""
    _REGISTERED.insert(0, family)


def registered() -> list[Family]:
    """The known families in the order they are asked: the user's own, then those of this package."""
    return [*_REGISTERED, *_of_this_package()]


def _of_this_package() -> list[Family]:

    return [
        # What is recognised by a sign of its own comes before the UNets that any such model also is.
        LDMCrossAttention(),
        KeyConcatenation(),
        SpatialConcatenation(),
        IPAdapter(),
        UNetCrossAttention(),
        AddedKeyValue(),
        FluxIPAdapter(),
        FluxKontext(),
        Flux2(),
        FluxRedux(),
        QwenImageEdit(),
        LongCatImageEdit(),
        BriaFiboEdit(),
        OmniGen(),
        SD3IPAdapter(),
        WanImageToVideo(),
    ]


def check_still_found(family: Family, denoiser: nn.Module) -> None:
    """Whether a call of the pipeline has made the denoiser one of another family than it was found to be: figures by the one
    or the other are figures of something else.

    Raises:
        UnsupportedModel: it has.
    """
    for other in registered():
        if type(other) is type(family):
            return
        shows = getattr(other, "shows_in_a_call", None)
        if shows is not None and shows(denoiser):
            raise UnsupportedModel(
                f"{type(denoiser).__name__} was found to be of the family {family.name!r}, and is of {other.name!r} since the "
                f"call began, which changes the denoiser. Say which it is, every time: family={type(other).__name__}()"
            )


def find_family(pipeline: Any, denoiser: nn.Module) -> Family:
    """The first family that knows the model.

    Raises:
        UnsupportedModel: none does; the text gives each one's reason.
    """
    reasons = []
    for families in (_REGISTERED, _of_this_package()):
        for family in families:
            reason = family.refuses(pipeline, denoiser)
            if reason is None:
                return family
            reasons.append(f"{family.name}: {reason}")
        no_tokens = channel_concatenation.reason(pipeline, denoiser)  # only a family of the user's own may know better
        if no_tokens is not None:
            raise UnsupportedModel(no_tokens)
    model = (
        type(denoiser).__name__ if pipeline is denoiser else f"{type(pipeline).__name__} ({type(denoiser).__name__})"
    )
    raise UnsupportedModel(
        f"no family knows where the reference sits in {model}. "
        + " ".join(reasons)
        + " Needed to support a model: which attention modules read the reference, and which of their key tokens are the "
        "reference's. If you know that a family fits, pass it as family=; to add one, see register_family."
    )
