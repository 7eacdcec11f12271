"""Tiny models of the family `omnigen`, and how a pipeline calls them."""

from __future__ import annotations

import torch
from diffusers import OmniGenTransformer2DModel
from diffusers.pipelines.omnigen.processor_omnigen import OmniGenCollator
from oracle import sharpened

from i2am_debug.families.omnigen import OmniGen

GENERATED, REFERENCES = (4, 3), [(3, 4), (2, 5)]
HEADS, HEAD = 4, 8
FAMILY = OmniGen()


def small_transformer(**changes) -> OmniGenTransformer2DModel:
    torch.manual_seed(0)
    settings = dict(
        hidden_size=HEADS * HEAD,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        intermediate_size=32,
        num_layers=2,
        pad_token_id=0,
        vocab_size=50,
        rope_scaling={"short_factor": [1.0] * (HEAD // 2), "long_factor": [1.0] * (HEAD // 2)},
        pos_embed_max_size=8,
        time_step_dim=16,
    )
    return sharpened(OmniGenTransformer2DModel(**{**settings, **changes}).eval())


def prompt(length: int, references) -> dict:
    """What the pipeline's processor makes of a text: three tokens before each input image, the rest after the last."""
    ids, found = [], []
    for h, w in references:
        ids += [7, 8, 9]
        found.append([len(ids), len(ids) + h * w])
        ids += [0] * (h * w)
    ids += [3 + i % 40 for i in range(length)]
    pictures = [torch.zeros(3, 16 * h, 16 * w) for h, w in references]
    return {"input_ids": ids, "pixel_values": pictures or None, "image_sizes": found or None}


def batch(prompts, negative: int = 40, generated=GENERATED) -> dict:
    """The pipeline's arguments for these prompts, under guidance; the negative prompt is longer, so that others are padded."""
    alone = [prompt(2, p["references"]) for p in prompts]
    features = [
        (prompt(**p), prompt(negative, []), a, [16 * s for s in generated]) for p, a in zip(prompts, alone, strict=True)
    ]
    data = OmniGenCollator()(features)
    draw = torch.Generator().manual_seed(1)
    pictures = data.pop("input_pixel_values")
    data["input_img_latents"] = [
        torch.randn(1, 4, p.shape[-2] // 8, p.shape[-1] // 8, generator=draw) for p in pictures
    ]
    return data


def generate(model, data, rows: int = 3, generated=GENERATED) -> list[torch.Tensor]:
    """Two sampler steps; the latents are repeated for each of `rows` conditions."""
    draw = torch.Generator().manual_seed(2)
    outputs = []
    for time in (100.0, 600.0):  # OmniGen's noise times grow
        latents = torch.randn(len(data["input_ids"]) // rows, 4, *(2 * s for s in generated), generator=draw)
        sample = torch.cat([latents] * rows)
        with torch.no_grad():
            arguments = dict(hidden_states=sample, timestep=torch.full((len(sample),), time), return_dict=False)
            outputs.append(model(**arguments, **data)[0])
    return outputs


def modules(model) -> dict[str, torch.nn.Module]:
    return {f"layers.{i}": block.self_attn for i, block in enumerate(model.layers)}


def where(data, row: int = 0) -> tuple[slice, list[slice]]:
    """The generated tokens, and those of each reference of one batch row."""
    total = data["attention_mask"].shape[-1]
    return slice(total - 12, total), [slice(*span) for span in data["input_image_sizes"][row]]


def rows_of(data: dict, *rows: int) -> dict:
    """Some of a batch's rows as a batch of their own; each must hold all of `REFERENCES`."""
    pictures = iter(data["input_img_latents"])
    latents = {row: [next(pictures) for _ in spans] for row, spans in data["input_image_sizes"].items()}
    return {
        **{name: data[name][list(rows)] for name in ("input_ids", "attention_mask", "position_ids")},
        "input_image_sizes": {i: data["input_image_sizes"][row] for i, row in enumerate(rows)},
        "input_img_latents": [latent for row in rows for latent in latents[row]],
    }
