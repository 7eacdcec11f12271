"""Bria FIBO Edit: one or more references after the generated picture in one joint sequence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders.bria_fibo_edit import (
    GENERATED,
    KEYS,
    QUERIES,
    REFERENCES,
    compiled,
    denoise,
    fused,
    inputs,
    pipeline_of,
    tiny_transformer,
    with_lora,
)
from builders.flux_kontext import blocks, picture, true_logits
from diffusers import (
    BriaFiboEditPipeline,
    BriaFiboPipeline,
)
from oracle import assert_maps_equal, recorded_products
from PIL import Image

from i2am_debug import trace
from i2am_debug.errors import NothingCaptured, UnsupportedModel
from i2am_debug.families.bria_fibo_edit import BriaFiboEdit


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
