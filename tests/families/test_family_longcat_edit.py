"""LongCat-Image-Edit: the reference after the generated picture in one joint sequence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    LongCatImageEditPipeline,
    LongCatImagePipeline,
    LongCatImageTransformer2DModel,
)
from diffusers.models.transformers import transformer_longcat_image
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit
from oracle import assert_maps_equal, recorded_products, sharpened
from peft import LoraConfig
from test_family_flux_kontext import blocks, picture, position_ids, true_logits

from i2am_debug import trace
from i2am_debug.errors import NothingCaptured, UnsupportedModel
from i2am_debug.families.longcat_edit import LongCatImageEdit

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


@pytest.mark.parametrize("guidance", [False, True], ids=["one forward", "two forwards"])
@pytest.mark.parametrize("images", [1, 3])
def test_maps_and_reference_mass_are_those_of_the_conditional_forward(images, guidance):
    transformer, given = tiny_transformer(), inputs(images)
    with recorded_products(blocks(transformer)) as products:
        plain = denoise(transformer, given, guidance=guidance)
    with trace(transformer, family=LongCatImageEdit()) as t:
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


@pytest.mark.parametrize("generated, reference", [((1, 4), (2, 1)), ((3, 0), (0, 3))])
def test_the_specific_map_of_a_planted_copy_peaks_at_its_key(monkeypatch, generated, reference):
    transformer = tiny_transformer()
    real = transformer_longcat_image.dispatch_attention_fn
    query = QUERIES.start + generated[0] * GENERATED[1] + generated[1]
    key = KEYS.start + reference[0] * REFERENCE[1] + reference[1]

    def planted(q, k, v, **kwargs):  # (B, tokens, heads, d), after the rotary embedding
        q = q.clone()
        q[:, query] = 6 * k[:, key]
        return real(q, k, v, **kwargs)

    with trace(transformer, family=LongCatImageEdit()) as unplanted:
        denoise(transformer, inputs(), guidance=True)
    monkeypatch.setattr(transformer_longcat_image, "dispatch_attention_fn", planted)
    with trace(transformer, family=LongCatImageEdit()) as t:
        denoise(transformer, inputs(), guidance=True)
    for layer in blocks(transformer):
        row = t.maps().specific(*generated, layer=layer)
        assert np.unravel_index(row.argmax(), row.shape) == reference and row.max() > 0.9
        assert unplanted.maps().specific(*generated, layer=layer)[reference] < 0.5


def test_without_a_reference_or_with_unknown_positions_the_trace_says_so():
    transformer = tiny_transformer()
    with trace(transformer, family=LongCatImageEdit()) as t:
        denoise(transformer, inputs(modalities={1: GENERATED}), guidance=True)
    with pytest.raises(NothingCaptured, match=r"'longcat_edit' found reference tokens in none"):
        t.maps()
    backwards = inputs()
    backwards["img_ids"] = backwards["img_ids"].flip(0)
    unnumbered = inputs(modalities={2: GENERATED, 3: REFERENCE})
    for given, said in (backwards, r"modalities \[2, 1\].*its 24 tokens"), (unnumbered, r"modalities \[2, 3\].*its 0"):
        with pytest.raises(UnsupportedModel, match=said), trace(transformer, family=LongCatImageEdit()):
            denoise(transformer, given, guidance=False)


def with_lora(transformer):
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "add_k_proj"], init_lora_weights=False))


def fused(transformer):
    transformer.fuse_qkv_projections()


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
    with trace(transformer, family=LongCatImageEdit()) as t:
        seen = denoise(transformer, inputs(), guidance=False)
    assert t.maps().layers == tuple(attention)
    assert_maps_equal(t.maps(), true_logits(products, 0, QUERIES, KEYS))
    assert all(map(torch.equal, plain, seen))


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


def test_what_the_family_refuses():
    family, plain = LongCatImageEdit(), tiny_transformer()
    assert family.refuses(plain, plain) is None
    editing, generating = pipeline_of(LongCatImageEditPipeline), pipeline_of(LongCatImagePipeline)
    assert family.refuses(editing, editing.transformer) is None
    assert "LongCatImagePipeline puts no reference" in family.refuses(generating, generating.transformer)
    assert "no LongCatImageTransformer2DModel" in family.refuses(None, torch.nn.Linear(2, 2))


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
def test_the_pipeline(monkeypatch, images, guidance_scale):
    random = torch.Generator().manual_seed(2)
    texts = {"a red hat": torch.randn(1, TEXT, 12, generator=random), "": torch.randn(1, 3, 12, generator=random)}
    monkeypatch.setattr(LongCatImageEditPipeline, "_encode_prompt", lambda _, prompt, image: texts[prompt[0]])
    # The pipeline brings every picture to about a megapixel, which is too many tokens here.
    monkeypatch.setattr(pipeline_longcat_image_edit, "calculate_dimensions", lambda area, ratio: (96, 64))
    pipeline = pipeline_of(LongCatImageEditPipeline)

    def call():
        return pipeline(
            image=picture((7, 8), 0),
            prompt="a red hat",
            guidance_scale=guidance_scale,
            num_images_per_prompt=images,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(5),
            output_type="pt",
        ).images

    with recorded_products(blocks(pipeline.transformer)) as products:
        plain = call()
    with trace(pipeline, family=LongCatImageEdit()) as t:
        seen = call()
    assert torch.equal(plain, seen) and t.images == images and t.maps().total_steps == 2
    for image in range(images):
        maps = t.maps(image)
        assert_maps_equal(maps, true_logits(products, image, QUERIES, slice(29, 53), every=1 + (guidance_scale > 1)))
        assert maps.r2g.unified.shape == GENERATED == maps.g2r.unified.shape
