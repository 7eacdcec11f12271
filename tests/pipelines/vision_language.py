"""Tiny language models that see, and the processor in front of them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    BatchFeature,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from .text import byte_tokenizer, language_model_config


class SeesAndReads:
    """In place of Qwen2VLProcessor, which can't be made without torchvision: as many picture tokens as patches."""

    def __init__(self, tokenizer: Qwen2Tokenizer, patch: int = 14) -> None:
        self.tokenizer = tokenizer
        one = (2 * patch) ** 2
        self.image_processor = Qwen2VLImageProcessor(min_pixels=one, max_pixels=4 * one, patch_size=patch, merge_size=2)

    def __call__(self, text: list[str], images: Any = None, **settings: Any) -> BatchFeature:
        seen = {} if images is None else dict(self.image_processor(images=images, return_tensors="pt"))
        counts = [int(grid.prod()) // 4 for grid in seen.get("image_grid_thw", ())]
        parts = "\0".join(text).split("<|image_pad|>")
        joined = parts[0] + "".join("<|image_pad|>" * n + part for n, part in zip(counts, parts[1:], strict=True))
        read = self.tokenizer(joined.split("\0"), **settings)
        kinds = (read["input_ids"] == self.tokenizer.convert_tokens_to_ids("<|image_pad|>")).long()
        return BatchFeature({**read, **seen, "mm_token_type_ids": kinds})


def special_tokens(tokenizer: Qwen2Tokenizer) -> dict[str, int]:
    names = dict(image_token_id="image_pad", video_token_id="video_pad", vision_start_token_id="vision_start")
    return {key: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()} | {
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>")
    }


def qwen2_5_vl(width: int) -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(14)
    text = language_model_config(width, 2)
    del text["head_dim"]
    text["rope_parameters"] = {"rope_type": "default", "mrope_section": [1, 1, 1], "rope_theta": 1e4}
    vision = dict(
        depth=1,
        hidden_size=16,
        intermediate_size=16,
        num_heads=2,
        out_hidden_size=width,
        fullatt_block_indexes=[0],
    )
    tokens = special_tokens(byte_tokenizer())
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens))


def qwen3_vl(width: int) -> Qwen3VLForConditionalGeneration:
    torch.manual_seed(15)
    text = language_model_config(width, 2)
    text["rope_parameters"] = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
    vision = dict(
        depth=1,
        hidden_size=16,
        intermediate_size=16,
        num_heads=2,
        out_hidden_size=width,
        deepstack_visual_indexes=[0],
        num_position_embeddings=16,
    )
    tokens = special_tokens(byte_tokenizer())
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **tokens))
