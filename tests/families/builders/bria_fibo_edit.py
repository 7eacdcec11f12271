"""Tiny models of the family `bria_fibo_edit`, and how a pipeline calls them."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from builders.flux_kontext import blocks, position_ids
from diffusers import (
    AutoencoderKLWan,
    BriaFiboTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)
from oracle import sharpened
from peft import LoraConfig
from transformers import SmolLM3Config, SmolLM3ForCausalLM

TEXT, GENERATED, REFERENCES = 5, (4, 6), {1: (3, 5), 2: (2, 7)}
# of the sequence [5 text · 4x6 generated · 3x5 reference 0 · 2x7 reference 1]
QUERIES, KEYS = slice(5, 29), {0: slice(29, 44), 1: slice(44, 58)}


def tiny_transformer() -> BriaFiboTransformer2DModel:
    torch.manual_seed(0)
    model = BriaFiboTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        text_encoder_dim=8,
        axes_dims_rope=[4, 6, 6],
    ).eval()
    return sharpened(model, "norm_q", "norm_k", "norm_added_q", "norm_added_k", factor=1.5)


def inputs(images: int = 1, references: dict[int, tuple[int, int]] | None = None) -> dict:
    """What BriaFiboEditPipeline gives its transformer: latents, then the references', each with its own number in column 0."""
    random = torch.Generator().manual_seed(1)
    grids = {0: GENERATED, **(REFERENCES if references is None else references)}
    return dict(
        hidden_states=torch.randn(images, sum(h * w for h, w in grids.values()), 16, generator=random),
        txt_ids=torch.zeros(TEXT, 3),
        img_ids=torch.cat([position_ids(number, grid) for number, grid in grids.items()]),
        return_dict=False,
    )


@torch.no_grad()
def denoise(transformer, inputs: dict, *, guidance: bool) -> list[torch.Tensor]:
    """Two sampler steps as in BriaFiboEditPipeline: with guidance the latents twice and the negative prompt first, padded to
    the prompt's length and masked."""
    sample = torch.cat([inputs["hidden_states"]] * (1 + guidance))
    random = torch.Generator().manual_seed(2)
    present = torch.ones(len(sample), TEXT + sample.shape[1], dtype=torch.bool)
    if guidance:
        present[: len(sample) // 2, 1:TEXT] = False
    given = dict(
        inputs,
        hidden_states=sample,
        encoder_hidden_states=torch.randn(len(sample), TEXT, 16, generator=random),
        text_encoder_layers=[torch.randn(len(sample), TEXT, 8, generator=random) for _ in range(3)],
        joint_attention_kwargs={"attention_mask": present[:, None, None]} if guidance else {},
    )
    return [transformer(**given, timestep=torch.full((len(sample),), t))[0] for t in (1000.0, 600.0)]


def with_lora(transformer):
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "add_k_proj"], init_lora_weights=False))


def fused(transformer):
    for attention in blocks(transformer).values():
        attention.fuse_projections()


def compiled(transformer):
    transformer.transformer_blocks[0].attn = torch.compile(transformer.transformer_blocks[0].attn, backend="eager")
    transformer.single_transformer_blocks[0] = torch.compile(transformer.single_transformer_blocks[0], backend="eager")


class Tokenizer:
    """One token for each word."""

    def __call__(self, prompt, **_):
        tokens = torch.arange(1, 1 + len(prompt[0].split())).expand(len(prompt), -1)
        return SimpleNamespace(input_ids=tokens, attention_mask=torch.ones_like(tokens))


def pipeline_of(kind):
    torch.manual_seed(3)
    text = SmolLM3Config(
        vocab_size=128001,  # the empty prompt is token 128000
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    pipeline = kind(
        transformer=tiny_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKLWan(
            base_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1, in_channels=12, out_channels=12, patch_size=2
        ).eval(),
        text_encoder=SmolLM3ForCausalLM(text).eval(),
        tokenizer=Tokenizer(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
