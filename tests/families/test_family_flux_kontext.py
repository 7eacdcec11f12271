"""Flux Kontext: the reference after the generated picture in one joint sequence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextInpaintPipeline,
    FluxKontextPipeline,
    FluxTransformer2DModel,
)
from diffusers.models.transformers import transformer_flux
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from oracle import assert_maps_equal, recorded_products, sharpened
from peft import LoraConfig
from PIL import Image

from i2am_debug import trace
from i2am_debug.errors import NothingCaptured, UnsupportedModel
from i2am_debug.families.flux_kontext import FluxKontext

TEXT, GENERATED, REFERENCE = 5, (4, 6), (3, 5)
QUERIES, KEYS = slice(5, 29), slice(29, 44)  # of the sequence [5 text · 4x6 generated · 3x5 reference]


def tiny_transformer(**changes) -> FluxTransformer2DModel:
    torch.manual_seed(0)
    settings = dict(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=True,
    )
    model = FluxTransformer2DModel(**{**settings, **changes}).eval()
    return sharpened(model, "norm_q", "norm_k", "norm_added_q", "norm_added_k", factor=1.5)


def blocks(transformer) -> dict[str, torch.nn.Module]:
    return {
        "transformer_blocks.0": transformer.transformer_blocks[0].attn,
        "single_transformer_blocks.0": transformer.single_transformer_blocks[0].attn,
        "single_transformer_blocks.1": transformer.single_transformer_blocks[1].attn,
    }


def position_ids(picture: int, grid: tuple[int, int]) -> torch.Tensor:
    return torch.tensor([(picture, y, x) for y in range(grid[0]) for x in range(grid[1])]).float()


def inputs(images: int = 1, references: dict[int, tuple[int, int]] | None = None, seed: int = 1) -> dict:
    """What FluxKontextPipeline gives its transformer: latents, then the reference's, whose ids have 1 in column 0."""
    random = torch.Generator().manual_seed(seed)
    grids = {0: GENERATED, **({1: REFERENCE} if references is None else references)}
    return dict(
        hidden_states=torch.randn(images, sum(h * w for h, w in grids.values()), 16, generator=random),
        guidance=torch.full((images,), 3.5),
        txt_ids=torch.zeros(TEXT, 3),
        img_ids=torch.cat([position_ids(number, grid) for number, grid in grids.items()]),
        joint_attention_kwargs={},
        return_dict=False,
    )


@torch.no_grad()
def denoise(transformer, inputs: dict, *, guidance: bool) -> list[torch.Tensor]:
    """Two sampler steps as in FluxKontextPipeline: timestep / 1000; with true_cfg_scale the prompt first, then the negative."""
    images, dtype = len(inputs["hidden_states"]), inputs["hidden_states"].dtype
    random = torch.Generator().manual_seed(2)
    prompts = [
        dict(
            encoder_hidden_states=torch.randn(images, TEXT, 12, generator=random).to(dtype),
            pooled_projections=torch.randn(images, 8, generator=random).to(dtype),
        )
        for _ in range(1 + guidance)
    ]
    times = [torch.full((images,), t) / 1000 for t in (1000.0, 600.0)]
    return [transformer(**inputs, **prompt, timestep=time)[0] for time in times for prompt in prompts]


def true_logits(products, image: int, queries: slice, keys: slice, every: int = 1):
    row = slice(image, image + 1)
    return {n: [p.logits(row, queries, keys)[0] for p in found[::every]] for n, found in products.items()}


@pytest.mark.parametrize("guidance", [False, True], ids=["one forward", "two forwards"])
@pytest.mark.parametrize("images", [1, 3])
def test_maps_and_reference_mass_are_those_of_the_conditional_forward(images, guidance):
    transformer = tiny_transformer()
    given = inputs(images)
    with recorded_products(blocks(transformer)) as products:
        plain = denoise(transformer, given, guidance=guidance)
    with trace(transformer, family=FluxKontext()) as t:
        seen = denoise(transformer, given, guidance=guidance)
    assert all(map(torch.equal, plain, seen))
    assert t.images == images and t.references == (0,)
    for image in range(images):
        maps = t.maps(image)
        assert_maps_equal(maps, true_logits(products, image, QUERIES, KEYS, every=1 + guidance))
        assert maps.r2g.unified.shape == GENERATED and maps.g2r.unified.shape == REFERENCE and maps.total_steps == 2
        for layer, found in products.items():
            mass = [
                p.weights(slice(image, image + 1), QUERIES)[..., KEYS].sum(-1).mean() for p in found[:: 1 + guidance]
            ]
            assert maps.reference_mass[layer] == pytest.approx(float(sum(mass) / 2), rel=1e-5)


def test_other_pictures_in_the_sequence_are_references_of_their_own():
    """A pipeline derived from Kontext's may number more pictures; what counts is column 0 of img_ids, not the order."""
    transformer = tiny_transformer()
    given = inputs(references={2: (2, 7), 1: REFERENCE})
    with recorded_products(blocks(transformer)) as products:
        denoise(transformer, given, guidance=False)
    with trace(transformer, family=FluxKontext()) as t:
        denoise(transformer, given, guidance=False)
    assert t.references == (0, 1)
    for number, keys in {0: slice(43, 58), 1: slice(29, 43)}.items():
        assert_maps_equal(t.maps(0, number), true_logits(products, 0, QUERIES, keys))
    assert t.maps(0, 1).g2r.unified.shape == (2, 7)


@pytest.mark.parametrize("generated, reference", [((1, 4), (2, 1)), ((3, 0), (0, 3))])
def test_the_specific_map_of_a_planted_copy_peaks_at_its_key(monkeypatch, generated, reference):
    transformer = tiny_transformer()
    real = transformer_flux.dispatch_attention_fn
    query = QUERIES.start + generated[0] * GENERATED[1] + generated[1]
    key = KEYS.start + reference[0] * REFERENCE[1] + reference[1]

    def planted(q, k, v, **kwargs):  # (B, tokens, heads, d), after the rotary embedding
        q = q.clone()
        q[:, query] = 6 * k[:, key]
        return real(q, k, v, **kwargs)

    monkeypatch.setattr(transformer_flux, "dispatch_attention_fn", planted)
    with trace(transformer, family=FluxKontext()) as t:
        denoise(transformer, inputs(), guidance=True)
    for layer in blocks(transformer):
        row = t.maps().specific(*generated, layer=layer)
        assert np.unravel_index(row.argmax(), row.shape) == reference and row.max() > 0.9
        assert t.maps().specific(0, 5, layer=layer).max() < 0.8


@pytest.mark.parametrize("order", [range(38), [*range(24), *range(24, 39)[::-1]]], ids=["one missing", "backwards"])
def test_reference_tokens_that_fill_no_rectangle_row_by_row_have_no_grid(order):
    transformer, given = tiny_transformer(), inputs()
    order = list(order)
    given["hidden_states"], given["img_ids"] = given["hidden_states"][:, order], given["img_ids"][order]
    with trace(transformer, family=FluxKontext()) as t:
        denoise(transformer, given, guidance=False)
    assert t.maps().r2g.unified.shape == GENERATED
    assert t.maps().undefined_place == "the reference tokens have no grid"
    assert t.maps().g2r.unified.shape == (1, len(order) - 24)


def test_without_a_reference_or_with_unknown_positions_the_trace_says_so():
    transformer = tiny_transformer()
    with trace(transformer, family=FluxKontext()) as t:
        denoise(transformer, inputs(references={}), guidance=True)
    with pytest.raises(NothingCaptured, match=r"'flux_kontext' found reference tokens in none"):
        t.maps()
    given = inputs()
    given["img_ids"] = given["img_ids"].flip(0)
    with (
        pytest.raises(UnsupportedModel, match=r"pictures \[1, 0\].*24 tokens must fill a rectangle"),
        trace(transformer, family=FluxKontext()),
    ):
        denoise(transformer, given, guidance=False)
    given["img_ids"][3, 0] = 0
    with (
        pytest.raises(UnsupportedModel, match=r"numbers the pictures \[1, 0, 1, 0\]"),
        trace(transformer, family=FluxKontext()),
    ):
        denoise(transformer, given, guidance=False)


def test_bfloat16_has_its_positions_in_bfloat16_too():
    transformer = tiny_transformer().bfloat16()
    given = {name: x.bfloat16() if isinstance(x, torch.Tensor) else x for name, x in inputs().items()}
    with recorded_products(blocks(transformer)) as products:
        plain = denoise(transformer, given, guidance=False)
    with trace(transformer, family=FluxKontext()) as t:
        seen = denoise(transformer, given, guidance=False)
    assert all(map(torch.equal, plain, seen))
    assert_maps_equal(t.maps(), true_logits(products, 0, QUERIES, KEYS))


def test_an_ip_adapter_beside_the_reference_is_not_taken_for_one():
    transformer, given = tiny_transformer(), inputs()
    block = transformer.transformer_blocks[0].attn
    block.set_processor(FluxIPAdapterAttnProcessor(hidden_size=32, cross_attention_dim=8, num_tokens=(4,)))
    given["joint_attention_kwargs"] = {"ip_hidden_states": [torch.randn(1, 4, 8)]}
    with recorded_products({"transformer_blocks.0": block}) as products:
        denoise(transformer, given, guidance=False)
    with trace(transformer, family=FluxKontext()) as t:
        denoise(transformer, given, guidance=False)
    joint = products["transformer_blocks.0"][::2]
    assert [p.k.shape[2] for p in products["transformer_blocks.0"]] == [44, 4, 44, 4]
    truth = torch.stack([p.logits(queries=QUERIES, keys=KEYS)[0] for p in joint]).softmax(-1).mean((0, 1, 2))
    ours = t.maps().g2r.by_layer["transformer_blocks.0"].ravel()
    assert np.abs(ours - truth.numpy()).max() <= 1e-5 * float(truth.max())


def with_lora(transformer):
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "add_k_proj"], init_lora_weights=False))


def fused(transformer):
    transformer.fuse_qkv_projections()


def compiled(transformer):
    transformer.compile_repeated_blocks(backend="eager")


def compiled_parts(transformer):
    transformer.transformer_blocks[0].attn = torch.compile(transformer.transformer_blocks[0].attn, backend="eager")
    transformer.single_transformer_blocks[0] = torch.compile(transformer.single_transformer_blocks[0], backend="eager")


@pytest.mark.parametrize("change", [with_lora, fused, compiled, compiled_parts])
def test_changed_transformers_are_captured_under_the_same_names(change):
    transformer = tiny_transformer()
    attention = blocks(transformer)
    change(transformer)
    with torch.compiler.set_stance("force_eager"), recorded_products(attention) as products:
        plain = denoise(transformer, inputs(), guidance=False)
    with trace(transformer, family=FluxKontext()) as t:
        seen = denoise(transformer, inputs(), guidance=False)
    assert t.maps().layers == tuple(attention)
    assert_maps_equal(t.maps(), true_logits(products, 0, QUERIES, KEYS))
    assert all(map(torch.equal, plain, seen))


def test_what_the_family_refuses():
    class FluxPipeline:
        def __init__(self, transformer):
            self.transformer = transformer

    family, plain = FluxKontext(), tiny_transformer()
    assert family.refuses(plain, plain) is None
    assert family.refuses(FluxPipeline(plain), plain) is None  # not diffusers' own: may well pass a reference
    FluxPipeline.__module__ = "diffusers.pipelines.flux.pipeline_flux"
    assert "FluxPipeline puts no reference picture into the sequence" in family.refuses(FluxPipeline(plain), plain)
    fill = tiny_transformer(in_channels=40, out_channels=16)
    assert "reads 40 channels and writes 16" in family.refuses(fill, fill)
    assert "no FluxTransformer2DModel" in family.refuses(None, torch.nn.Linear(2, 2))
    plain.encoder_hid_proj = torch.nn.Linear(2, 2)  # what load_ip_adapter leaves
    assert "IP-Adapter is loaded" in family.refuses(plain, plain)


def kontext_pipeline(kind):
    torch.manual_seed(3)
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=1,
        norm_num_groups=1,
        shift_factor=0.06,
        scaling_factor=1.5,
    ).eval()
    texts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipeline = kind(scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, transformer=tiny_transformer(), **texts)
    pipeline.set_progress_bar_config(disable=True)
    assert FluxKontext().refuses(pipeline, pipeline.transformer) is None
    return pipeline


def picture(grid: tuple[int, int], seed: int) -> Image.Image:
    """One of 16x16 pixels a token."""
    pixels = np.random.default_rng(seed).integers(0, 256, (16 * grid[0], 16 * grid[1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def pipeline_call(pipeline, images: int, **changes) -> torch.Tensor:
    """`_auto_resize` and `max_area` would bring everything to about a megapixel."""
    random = torch.Generator().manual_seed(4)
    prompts = {
        f"{sign}{name}": torch.randn(images, *shape, generator=random)
        for sign in ("", "negative_")
        for name, shape in {"prompt_embeds": (TEXT, 12), "pooled_prompt_embeds": (8,)}.items()
    }
    size = dict(height=64, width=96, max_area=64 * 96, _auto_resize=False)
    settings = dict(num_inference_steps=2, generator=torch.Generator().manual_seed(5), output_type="pt")
    return pipeline(**{**prompts, **size, **settings, **changes}).images


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("true_cfg_scale", [1.0, 2.0])
def test_the_pipeline(images, true_cfg_scale):
    pipeline = kontext_pipeline(FluxKontextPipeline)
    arguments = dict(image=picture(REFERENCE, 0), true_cfg_scale=true_cfg_scale)
    with recorded_products(blocks(pipeline.transformer)) as products:
        plain = pipeline_call(pipeline, images, **arguments)
    with trace(pipeline, family=FluxKontext()) as t:
        seen = pipeline_call(pipeline, images, **arguments)
    assert torch.equal(plain, seen) and t.images == images and t.maps().total_steps == 2
    for image in range(images):
        maps = t.maps(image)
        assert_maps_equal(maps, true_logits(products, image, QUERIES, KEYS, every=1 + (true_cfg_scale > 1)))
        assert maps.r2g.unified.shape == GENERATED and maps.g2r.unified.shape == REFERENCE


def test_inpainting_reads_its_reference_picture_or_else_the_picture_itself():
    pipeline = kontext_pipeline(FluxKontextInpaintPipeline)
    hole = Image.fromarray(np.pad(np.full((32, 32), 255, np.uint8), ((16, 16), (32, 32))))
    arguments = dict(image=picture(GENERATED, 1), mask_image=hole)
    for reference, grid in ({"image_reference": picture(REFERENCE, 0)}, REFERENCE), ({}, GENERATED):
        with recorded_products(blocks(pipeline.transformer)) as products:
            plain = pipeline_call(pipeline, 1, **arguments, **reference)
        with trace(pipeline, family=FluxKontext()) as t:
            seen = pipeline_call(pipeline, 1, **arguments, **reference)
        assert torch.equal(plain, seen) and t.maps().g2r.unified.shape == grid and t.references == (0,)
        assert_maps_equal(t.maps(), true_logits(products, 0, QUERIES, slice(QUERIES.stop, None)))


def test_the_pipeline_without_a_reference_says_so():
    pipeline = kontext_pipeline(FluxKontextPipeline)
    with trace(pipeline, family=FluxKontext()) as t:
        pipeline_call(pipeline, 1)
    with pytest.raises(NothingCaptured, match="was the pipeline called with a reference"):
        t.maps()
