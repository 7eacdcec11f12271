"""Bria FIBO Edit: one or more references after the generated picture in one joint sequence."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    BriaFiboEditPipeline,
    BriaFiboPipeline,
    BriaFiboTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.models.transformers import transformer_bria, transformer_bria_fibo
from oracle import assert_maps_equal, recorded_products, sharpened
from peft import LoraConfig
from PIL import Image
from test_family_flux_kontext import blocks, picture, position_ids, true_logits
from transformers import SmolLM3Config, SmolLM3ForCausalLM

from i2am_debug import trace
from i2am_debug.errors import NothingCaptured, UnsupportedModel
from i2am_debug.families.bria_fibo_edit import BriaFiboEdit

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


@pytest.mark.parametrize("guidance", [False, True])
@pytest.mark.parametrize("images", [1, 3])
def test_maps_and_reference_mass_of_each_reference_are_those_of_the_conditional_rows(images, guidance):
    transformer, given = tiny_transformer(), inputs(images)
    with recorded_products(blocks(transformer)) as products:
        plain = denoise(transformer, given, guidance=guidance)
    with trace(transformer, family=BriaFiboEdit()) as t:
        seen = denoise(transformer, given, guidance=guidance)
    assert all(map(torch.equal, plain, seen))
    assert t.images == images and t.references == (0, 1)
    for image in range(images):
        row = image + guidance * images
        for number, keys in KEYS.items():
            maps = t.maps(image, number)
            assert_maps_equal(maps, true_logits(products, row, QUERIES, keys))
            assert maps.r2g.unified.shape == GENERATED and maps.g2r.unified.shape == REFERENCES[number + 1]
            for layer, found in products.items():
                mass = [p.weights(slice(row, row + 1), QUERIES)[..., keys].sum(-1).mean() for p in found]
                assert maps.reference_mass[layer] == pytest.approx(float(sum(mass) / 2), rel=1e-5)


@pytest.mark.parametrize("generated, reference", [((1, 4), (2, 1)), ((3, 0), (0, 3))])
@pytest.mark.parametrize("number", [0, 1])
def test_the_specific_map_of_a_planted_copy_peaks_at_its_key(monkeypatch, number, generated, reference):
    transformer = tiny_transformer()
    real = transformer_bria_fibo.dispatch_attention_fn
    query = QUERIES.start + generated[0] * GENERATED[1] + generated[1]
    reference = (reference[0] % REFERENCES[number + 1][0], reference[1])
    key = KEYS[number].start + reference[0] * REFERENCES[number + 1][1] + reference[1]

    def planted(q, k, v, **kwargs):  # (B, tokens, heads, d), after the rotary embedding; in the conditional row only
        q = q.clone()
        q[1:, query] = 6 * k[1:, key]
        return real(q, k, v, **kwargs)

    with trace(transformer, family=BriaFiboEdit()) as unplanted:
        denoise(transformer, inputs(), guidance=True)
    monkeypatch.setattr(transformer_bria_fibo, "dispatch_attention_fn", planted)  # the double blocks' …
    monkeypatch.setattr(transformer_bria, "dispatch_attention_fn", planted)  # … and the single blocks'
    with trace(transformer, family=BriaFiboEdit()) as t:
        denoise(transformer, inputs(), guidance=True)
    for layer in blocks(transformer):
        row = t.maps(0, number).specific(*generated, layer=layer)
        assert np.unravel_index(row.argmax(), row.shape) == reference and row.max() > 0.9
        assert unplanted.maps(0, number).specific(*generated, layer=layer)[reference] < 0.5


def test_without_a_reference_or_with_unknown_positions_the_trace_says_so():
    transformer = tiny_transformer()
    with trace(transformer, family=BriaFiboEdit()) as t:
        denoise(transformer, inputs(references={}), guidance=True)
    with pytest.raises(NothingCaptured, match=r"'bria_fibo_edit' found reference tokens in none"):
        t.maps()
    given = inputs()
    given["img_ids"] = given["img_ids"].flip(0)
    with (
        pytest.raises(UnsupportedModel, match=r"pictures \[2, 1, 0\].*24 tokens must fill a rectangle"),
        trace(transformer, family=BriaFiboEdit()),
    ):
        denoise(transformer, given, guidance=False)


def with_lora(transformer):
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "add_k_proj"], init_lora_weights=False))


def fused(transformer):
    for attention in blocks(transformer).values():
        attention.fuse_projections()


def compiled(transformer):
    transformer.transformer_blocks[0].attn = torch.compile(transformer.transformer_blocks[0].attn, backend="eager")
    transformer.single_transformer_blocks[0] = torch.compile(transformer.single_transformer_blocks[0], backend="eager")


@pytest.mark.parametrize("change", [with_lora, fused, compiled])
def test_changed_transformers_are_captured_under_the_same_names(change):
    transformer = tiny_transformer()
    attention = blocks(transformer)
    change(transformer)
    with torch.compiler.set_stance("force_eager"), recorded_products(attention) as products:
        plain = denoise(transformer, inputs(), guidance=False)
    with trace(transformer, family=BriaFiboEdit()) as t:
        seen = denoise(transformer, inputs(), guidance=False)
    assert t.maps().layers == tuple(attention)
    assert_maps_equal(t.maps(), true_logits(products, 0, QUERIES, KEYS[0]))
    assert all(map(torch.equal, plain, seen))


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


def test_what_the_family_refuses():
    family, plain = BriaFiboEdit(), tiny_transformer()
    assert family.refuses(plain, plain) is None
    editing, generating = pipeline_of(BriaFiboEditPipeline), pipeline_of(BriaFiboPipeline)
    assert family.refuses(editing, editing.transformer) is None
    assert "BriaFiboPipeline puts no reference" in family.refuses(generating, generating.transformer)
    assert "no BriaFiboTransformer2DModel" in family.refuses(None, torch.nn.Linear(2, 2))


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_the_pipeline(images, guidance_scale):
    pipeline = pipeline_of(BriaFiboEditPipeline)

    def call():
        return pipeline(
            prompt='{"edit_instruction": "a red hat"}',  # 4 words, the negative prompt has one token
            image=[picture(grid, number) for number, grid in REFERENCES.items()],
            height=64,
            width=96,
            guidance_scale=guidance_scale,
            num_images_per_prompt=images,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(5),
            output_type="pt",
        ).images

    with recorded_products(blocks(pipeline.transformer)) as products:
        plain = call()
    with trace(pipeline, family=BriaFiboEdit()) as t:
        seen = call()
    assert torch.equal(plain, seen) and t.images == images and t.maps().total_steps == 2
    for image in range(images):
        for number, (start, stop) in {0: (28, 43), 1: (43, 57)}.items():
            maps, row = t.maps(image, number), image + (guidance_scale > 1) * images
            assert_maps_equal(maps, true_logits(products, row, slice(4, 28), slice(start, stop)))
            assert maps.r2g.unified.shape == GENERATED and maps.g2r.unified.shape == REFERENCES[number + 1]


def test_the_edited_region_is_grey_in_the_reference_which_keeps_its_tokens():
    pipeline = pipeline_of(BriaFiboEditPipeline)
    hole = Image.fromarray(np.pad(np.full((16, 32), 255, np.uint8), ((16, 16), (16, 32))))
    with trace(pipeline, family=BriaFiboEdit()) as t:
        pipeline(
            prompt='{"edit_instruction": "a red hat"}',
            image=picture(REFERENCES[1], 0),
            mask=hole,
            height=64,
            width=96,
            num_inference_steps=1,
        )
    assert t.references == (0,) and t.maps().g2r.unified.shape == REFERENCES[1]
