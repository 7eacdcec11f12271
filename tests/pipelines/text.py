"""Tokenizers with a vocabulary of letters, and tiny text encoders for them."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
)
SPECIAL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]


def clip_tokenizer(length: int = 77) -> CLIPTokenizer:
    names = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    return CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[], model_max_length=length)


def clip_text_encoder(width: int = 12, *, projection: int | None = None, heads: int = 2) -> Any:
    """Tokens of `width` channels; with a `projection`, of that many channels, for the pooled text."""
    torch.manual_seed(10)
    config = CLIPTextConfig(
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        hidden_size=width,
        intermediate_size=16,
        num_attention_heads=heads,
        num_hidden_layers=2,
        vocab_size=2 + 2 * len(LETTERS),
        projection_dim=projection or width,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def t5_tokenizer() -> T5TokenizerFast:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in LETTERS] + [(f"▁{letter}", -3.5) for letter in LETTERS]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512)


def t5_text_encoder(width: int = 12, kind: type = T5EncoderModel, config: type = T5Config) -> Any:
    torch.manual_seed(11)
    return kind(config(vocab_size=64, d_model=width, d_kv=8, d_ff=16, num_layers=2, num_heads=2))


def byte_tokenizer(*more: str) -> Qwen2Tokenizer:
    """A token for each byte, and one for each special word: Qwen's, `more`."""
    names = [*sorted(ByteLevel.alphabet()), *SPECIAL, *more]
    tokenizer = Qwen2Tokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[], model_max_length=2048)
    tokenizer.add_special_tokens({"additional_special_tokens": [*SPECIAL[1:], *more]})
    tokenizer.chat_template = CHAT
    return tokenizer


def language_model_config(width: int, layers: int, heads: int = 2) -> dict[str, Any]:
    return dict(
        vocab_size=len(byte_tokenizer()) + 8,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=8,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )


def qwen3(width: int, layers: int = 28) -> Qwen3ForCausalLM:
    """With the 27 layers that Flux 2 Klein reads."""
    torch.manual_seed(12)
    return Qwen3ForCausalLM(Qwen3Config(**language_model_config(width, layers)))


def mistral3(width: int, layers: int = 31) -> Mistral3ForConditionalGeneration:
    """With the 30 layers that Flux 2 reads, and eyes that it doesn't use."""
    torch.manual_seed(13)
    vision = dict(
        model_type="pixtral",
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        head_dim=8,
        image_size=16,
        patch_size=8,
    )
    config = Mistral3Config(
        text_config={"model_type": "mistral", **language_model_config(width, layers)},
        vision_config=vision,
        image_token_index=1,
    )
    return Mistral3ForConditionalGeneration(config)
