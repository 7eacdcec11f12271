"""Tiny models of the family `longcat_edit`, and how a pipeline calls them."""

from __future__ import annotations

import torch
from builders.flux_kontext import position_ids
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    LongCatImageTransformer2DModel,
)
from oracle import sharpened
from peft import LoraConfig

TEXT, GENERATED, REFERENCE = 5, (4, 6), (3, 5)
QUERIES, KEYS = slice(5, 29), slice(29, 44)  # of the sequence [5 text · 4x6 generated · 3x5 reference]


def tiny_transformer(**changes) -> LongCatImageTransformer2DModel:
    torch.manual_seed(0)
    settings = dict(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=12,
        axes_dims_rope=(4, 6, 6),
    )
    model = LongCatImageTransformer2DModel(**{**settings, **changes}).eval()
    return sharpened(model, "norm_q", "norm_k", "norm_added_q", "norm_added_k", factor=1.5)


def inputs(images: int = 1, modalities: dict[int, tuple[int, int]] | None = None) -> dict:
    """What LongCatImageEditPipeline gives its transformer; there rows and columns of both pictures begin at the text's length.

    The pipeline makes both pictures of one size; here they differ, so that none can be taken for the other.
    """
    random = torch.Generator().manual_seed(1)
    grids = {1: GENERATED, 2: REFERENCE} if modalities is None else modalities
    start = torch.tensor((0, TEXT, TEXT))
    return dict(
        hidden_states=torch.randn(images, sum(h * w for h, w in grids.values()), 16, generator=random),
        img_ids=torch.cat([position_ids(number, grid) + start for number, grid in grids.items()]).double(),
        txt_ids=torch.tensor([(0, i, i) for i in range(TEXT)]).float(),
        guidance=None,
        return_dict=False,
    )


@torch.no_grad()
def denoise(transformer, inputs: dict, *, guidance: bool) -> list[torch.Tensor]:
    """Two sampler steps as in LongCatImageEditPipeline: timestep / 1000; the prompt first, then the negative one."""
    images, random = len(inputs["hidden_states"]), torch.Generator().manual_seed(2)
    texts = [torch.randn(images, TEXT, 12, generator=random) for _ in range(1 + guidance)]
    times = [torch.full((images,), t) / 1000 for t in (1000.0, 600.0)]
    return [transformer(**inputs, encoder_hidden_states=text, timestep=time)[0] for time in times for text in texts]


def with_lora(transformer):
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "add_k_proj"], init_lora_weights=False))


def fused(transformer):
    transformer.fuse_qkv_projections()


def compiled(transformer):
    transformer.transformer_blocks[0].attn = torch.compile(transformer.transformer_blocks[0].attn, backend="eager")
    transformer.single_transformer_blocks[0] = torch.compile(transformer.single_transformer_blocks[0], backend="eager")


class Processor:
    """In place of Qwen2VLProcessor, whose tokens are not needed where `_encode_prompt` is replaced."""

    image_processor = None


def pipeline_of(kind):
    torch.manual_seed(3)
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=1,
        norm_num_groups=1,
        latent_channels=16,
        shift_factor=0.06,
        scaling_factor=1.5,
    ).eval()
    pipeline = kind(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        text_processor=Processor(),
        transformer=tiny_transformer(in_channels=64),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
