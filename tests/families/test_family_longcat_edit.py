"""LongCat-Image-Edit: the reference after the generated picture in one joint sequence."""

from __future__ import annotations

import pytest
import torch
from builders.flux_kontext import blocks, picture, true_logits
from builders.longcat_edit import (
    GENERATED,
    KEYS,
    QUERIES,
    REFERENCE,
    TEXT,
    compiled,
    denoise,
    fused,
    inputs,
    pipeline_of,
    tiny_transformer,
    with_lora,
)
from diffusers import (
    LongCatImageEditPipeline,
    LongCatImagePipeline,
)
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit
from oracle import assert_maps_equal, recorded_products

from i2am_debug import trace
from i2am_debug.errors import NothingCaptured, UnsupportedModel
from i2am_debug.families.longcat_edit import LongCatImageEdit


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
