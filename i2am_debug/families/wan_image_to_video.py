"""Wan 2.1 image-to-video and its like: every `attn2` attends to the image encoder's tokens first, then to the text.

The first product of an `attn2` with keys of its own for pictures (`add_k_proj`) holds them: a class token and 16x16 patches for
the first frame's picture, and behind them as many for the last frame's where the model takes one. Its output is added to the
second product's, the text's. Guidance runs the transformer twice a step, conditional first. The reference's latents, which
these models also take as channels behind the noise, pass through no attention that tells them apart: nothing is said of them.

A video's tokens lie frame after frame. By default the frames are stacked from top to bottom as the rows of one grid: the patch
at row y of latent frame f, of h rows each, is in row f*h + y.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..errors import UnsupportedModel
from .family import About, Layout, Product
from .ip_adapter import patch_reference

_SUFFIX = ".attn2"
_CHRONOEDIT = "ChronoEditTransformer3DModel"
_MODELS = ("WanTransformer3DModel", "SkyReelsV2Transformer3DModel", _CHRONOEDIT)
_TEXT = 512  # text tokens that the attention counts off from the end of its context, however many there are


@dataclass(frozen=True, kw_only=True)
class WanImageToVideo:
    """Wan 2.1 I2V (also first and last frame), SkyReels V2 I2V and ChronoEdit."""

    frame: int | None = None
    """Which latent frame to look at, -1 for the last; by default all, stacked (a mask for the trace must be stacked likewise).
    Of ChronoEdit it is always one, by default the last, the edited picture: the others may be dropped on the way."""
    reference_grid: tuple[int, int] | None = None
    """(height, width) of one picture's tokens; by default a square, with one class token before it where that fits."""
    name: ClassVar[str] = "wan_image_to_video"
    about: ClassVar[About] = About(
        models="Wan 2.1 image-to-video (also first and last frame), SkyReels V2 image-to-video, ChronoEdit",
        imacs="for one frame (frame=…), ChronoEdit's last by default",
        reference_mass="the branch's share of the norm; between the first and the last frame's picture: yes",
    )
    projections: ClassVar[bool] = False
    reads_encoder: ClassVar[bool] = True

    def refuses(self, pipeline: Any, denoiser: nn.Module) -> str | None:
        if not any(c.__name__ in _MODELS for c in type(denoiser).__mro__):
            return f"it is none of {', '.join(_MODELS)}."
        if not self.layers(denoiser):
            return (
                "its attn2 has no keys for pictures (add_k_proj): text-to-video, or a model like Wan 2.2 that takes its "
                "reference by channel concatenation only, which leaves no attention to look at."
            )
        return None

    def layers(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        found = {n.replace("_orig_mod.", ""): m for n, m in denoiser.named_modules() if n.endswith(_SUFFIX)}
        return {n.removesuffix(_SUFFIX): m for n, m in found.items() if getattr(m, "add_k_proj", None) is not None}

    def layout(self, product: Product) -> Layout | None:
        pictures = product.arguments.get("encoder_hidden_states_image")
        if product.call > 0 or product.forward > 0 or pictures is None:
            return None  # the text; the unconditional forward
        text = product.arguments["encoder_hidden_states"].shape[1]
        if text != _TEXT:
            raise UnsupportedModel(
                f"the text has {text} tokens, and the model's attention takes the last {_TEXT} of its context for the text, so "
                f"that text and picture mix; call the pipeline with max_sequence_length={_TEXT}"
            )
        denoiser, video = product.arguments["self"], product.arguments["hidden_states"]
        frames, h, w = (side // p for side, p in zip(video.shape[2:], denoiser.config.patch_size, strict=True))
        frame = -1 if self.frame is None and type(denoiser).__name__ == _CHRONOEDIT else self.frame
        if frame is not None and not -frames <= frame < frames:
            raise UnsupportedModel(f"frame={frame}: the video has {frames} latent frames")
        shown = range(frames) if frame is None else range(frames)[frame:][:1]
        tokens = pictures.shape[1]
        count = product.key_tokens // tokens  # first and last frame come as two rows of the batch
        return Layout(
            generated=slice(shown[0] * h * w, (shown[-1] + 1) * h * w),
            generated_grid=(len(shown) * h, w),
            references={n: patch_reference(n * tokens, tokens, self.reference_grid) for n in range(count)},
            conditional=slice(0, len(video)),
            joint=count > 1,
            branch_scale=1.0,
        )
