"""An IP-Adapter in the making, as the original's scripts hold it: a module of UNet, image projection and attention processors.

Its processors want the picture's tokens behind the text's, which no pipeline of diffusers gives them. Here its weights are
loaded the way a finished adapter's are, into a UNet of its own that shares the frozen weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from i2am_debug.errors import I2AMError

from .loaded_parts import LoadedParts


@dataclass(frozen=True)
class Adapter:
    """What the script trains beside the UNet's frozen weights."""

    image_projection: nn.Module
    processors: nn.Module

    def plain(self, unet: nn.Module) -> nn.Module:
        """The UNet with diffusers' own processors; its weights are the same memory."""
        with torch.device("meta"):
            plain: Any = type(unet).from_config(unet.config)
        weights = unet.state_dict()
        plain.load_state_dict({name: weights[name] for name in plain.state_dict()}, assign=True)
        return plain.eval().requires_grad_(False)

    def parts(self, loaded: LoadedParts) -> dict[str, Any]:
        """The image encoder that the script loaded, and what prepares pictures for it.

        Raises:
            I2AMError: it loaded none.
        """
        from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

        for part in loaded:
            if issubclass(part.kind, CLIPVisionModelWithProjection):
                encoder = part.module()
                if encoder is None:
                    encoder = part.kind.from_pretrained(part.folder, subfolder=part.subfolder, **part.where)  # type: ignore[attr-defined]
                return {"image_encoder": encoder, "feature_extractor": CLIPImageProcessor()}
        raise I2AMError(
            "the script trains an IP-Adapter, but loaded no CLIPVisionModelWithProjection with from_pretrained to read a "
            "reference picture with (FaceID's reads face embeddings); put the callback into the script, with a call= of your "
            "own: docs/official-scripts.md"
        )

    def load_into(self, pipeline: Any) -> None:
        """Loads the adapter's present weights.

        Raises:
            I2AMError: they are of a kind that diffusers does not load.
        """
        weights = {"image_proj": self.image_projection.state_dict(), "ip_adapter": self.processors.state_dict()}
        try:
            pipeline.load_ip_adapter(weights, subfolder="", weight_name="", image_encoder_folder=None)
        except (KeyError, RuntimeError, ValueError) as error:
            raise I2AMError(
                f"diffusers can't load the adapter that is being trained ({type(error).__name__}: {error}); put the callback "
                "into the script, with a call= of your own: docs/official-scripts.md"
            ) from error


def adapter_in(models: Iterable[nn.Module]) -> Adapter | None:
    """The adapter that one of the trained modules is, if any."""
    for model in models:
        parts = [getattr(model, name, None) for name in ("image_proj_model", "adapter_modules")]
        if all(isinstance(part, nn.Module) for part in parts):
            return Adapter(*parts)
    return None
