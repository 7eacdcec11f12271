"""Qwen-Image: editing one picture or several, inpainting, taking apart into layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditInpaintPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageLayeredPipeline,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage import (
    pipeline_qwenimage_edit,
    pipeline_qwenimage_edit_inpaint,
    pipeline_qwenimage_edit_plus,
    pipeline_qwenimage_layered,
)
from PIL import Image

from i2am_debug import ValidationPair

from .case import STEPS, PipelineCase, pair, quiet
from .pictures import qwen_autoencoder
from .text import byte_tokenizer
from .vision_language import SeesAndReads, qwen2_5_vl

TEXT = 12
MODULES = (
    pipeline_qwenimage_edit,
    pipeline_qwenimage_edit_inpaint,
    pipeline_qwenimage_edit_plus,
    pipeline_qwenimage_layered,
)
SIDE = 128
"""Of a square picture, where the pipelines would make it 1024 (layers: 64 and 640)."""


def smaller(calculate_dimensions: Callable[[float, float], Any]) -> Callable[[float, float], Any]:
    return lambda area, ratio: calculate_dimensions(area / 64, ratio)


@contextmanager
def small_pictures() -> Iterator[None]:
    """The pipelines bring every picture to a megapixel, whatever is asked for; here to a 64th of that."""
    with ExitStack() as stack:
        for module in MODULES:
            stack.enter_context(patch.object(module, "calculate_dimensions", smaller(module.calculate_dimensions)))
        yield


def qwen(kind: type) -> Any:
    layered = kind is QwenImageLayeredPipeline
    own = dict(
        text_encoder=qwen2_5_vl(TEXT),
        tokenizer=byte_tokenizer(),
        vae=qwen_autoencoder(input_channels=4 if layered else 3),
        processor=SeesAndReads(byte_tokenizer()),
    )
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=TEXT,
        axes_dims_rope=(4, 6, 6),
        use_additional_t_cond=layered,
        use_layer3d_rope=layered,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, shift_terminal=0.02, time_shift_type="exponential"
    )
    return quiet(kind(scheduler=scheduler, transformer=transformer, **own))


def encode_target(pipeline: Any, pair: ValidationPair, size: tuple[int, int] | None = None) -> torch.Tensor:
    """(1, tokens, channels)."""
    width, height = size or pair.target.size
    pixels = pipeline.image_processor.resize(pair.target, height, width)
    pixels = pipeline.image_processor.preprocess(pixels, height, width).unsqueeze(2)
    encoded = pipeline._encode_vae_image(pixels, torch.Generator().manual_seed(0))
    return pipeline._pack_latents(encoded, 1, encoded.shape[1], *encoded.shape[3:])


def inpaint() -> Any:
    """The picture to be inpainted is the reference, and no other."""

    def call(pipeline: Any, pair: ValidationPair, generator: torch.Generator) -> Any:
        pictures = dict(image=pair.reference, mask_image=pair.mask_image)
        return pipeline(
            prompt=pair.prompt, **pictures, **pair.extra, num_inference_steps=STEPS, strength=1.0, generator=generator
        )

    return call


def first_layer() -> Any:
    """The first layer of two, on black."""

    def call(pipeline: Any, pair: ValidationPair, generator: torch.Generator) -> Image.Image:
        picture = pair.reference.convert("RGBA")
        made = pipeline(
            picture, prompt=pair.prompt, layers=2, **pair.extra, num_inference_steps=STEPS, generator=generator
        )
        return made.images[0][0].convert("RGB")

    return call


def square(number: int, **changes: Any) -> ValidationPair:
    return pair(number, size=(96, 96), **changes)


GUIDED = dict(negative_prompt=" ", true_cfg_scale=4.0)
COMMON = dict(around=small_pictures, size=(96, 96))

CASES = [
    PipelineCase(
        name="QwenImageEditPipeline",
        build=lambda: qwen(QwenImageEditPipeline),
        family="qwen_image_edit",
        pairs=lambda: [square(0), square(1, extra=GUIDED), pair(2)],
        encode=encode_target,
        **COMMON,
    ),
    PipelineCase(
        name="QwenImageEditPlusPipeline",
        build=lambda: qwen(QwenImageEditPlusPipeline),
        family="qwen_image_edit",
        pairs=lambda: [square(0), square(1, extra=GUIDED), square(2, further=1)],
        encode=encode_target,
        **COMMON,
    ),
    PipelineCase(
        name="QwenImageEditInpaintPipeline",
        build=lambda: qwen(QwenImageEditInpaintPipeline),
        family="qwen_image_edit",
        call=inpaint,
        pairs=lambda: [square(0, masked=True), square(1, masked=True, extra=GUIDED)],
        encode=lambda pipeline, pair: encode_target(pipeline, pair, (SIDE, SIDE)),
        falls_back="the pipeline's latents are (1, 64, 64), the truth's (1, 36, 64); encode= says how",
        around=small_pictures,
        size=(SIDE, SIDE),
    ),
    PipelineCase(
        name="QwenImageLayeredPipeline",
        build=lambda: qwen(QwenImageLayeredPipeline),
        family="qwen_image_edit",
        call=first_layer,
        pairs=lambda: [square(0), square(1, extra=GUIDED)],
        falls_back="QwenImageLayeredPipeline makes pictures of 4 channels, a target has 3; pass encode=",
        around=small_pictures,
        size=(64, 64),
    ),
]
