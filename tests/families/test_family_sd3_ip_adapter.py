"""SD3 with an IP-Adapter: the maps are those of the adapter's own product, over image and reference keys.

The adapter is loaded as `load_ip_adapter` loads one, from a state dict. The transformer is called as
`StableDiffusion3Pipeline` calls it (the pipeline itself needs three text encoders): rows [negative, positive] of the same
latents, the picture's features in `joint_attention_kwargs`, zeros for the negative rows; under skip-layer guidance a second
forward of the positive rows at the same noise time."""

from __future__ import annotations

import pytest
import torch
from builders.sd3_ip_adapter import (
    FAMILY,
    GRID,
    LAYERS,
    TEXT,
    adapter_products,
    assert_maps_equal_without_a_grid,
    generate,
    plain_transformer,
    small_transformer,
)

from i2am_debug import trace
from i2am_debug.errors import NothingCaptured, UnsupportedModel
from i2am_debug.families.family import Product


@pytest.mark.parametrize(
    "how",
    [dict(one_prompt=True), dict(one_picture=True)],
    ids=["the same prompt in both", "the same picture in both"],
)
@pytest.mark.parametrize("images", [1, 3])
def test_maps_and_reference_mass_equal_a_materialised_softmax(images, how):
    model = small_transformer()
    products = adapter_products(model, images, **how)
    with trace(model, family=FAMILY) as t:
        generate(model, images, **how)
    assert t.images == images and t.references == (0,)
    for image in range(images):
        maps = t.maps(image)
        assert maps.r2g.unified.shape == GRID and maps.branch_share == {}
        assert_maps_equal_without_a_grid(maps, products, image + images * how.get("guided", True))


@pytest.mark.parametrize("guided", [False, True])
def test_the_forward_that_skips_layers_is_left_out(guided):
    """Skip-layer guidance corrects the forward before it at the same noise time."""
    model = small_transformer()
    plain = adapter_products(model, guided=guided)
    with trace(model, family=FAMILY) as t:
        generate(model, guided=guided, skip=True)
    assert_maps_equal_without_a_grid(t.maps(), plain, int(guided))


def test_tokens_without_a_grid_are_one_row():
    model = small_transformer()
    with trace(model, family=FAMILY) as t:
        generate(model)
    maps = t.maps()
    assert maps.r2g.unified.sum() == pytest.approx(1, abs=1e-5)
    assert maps.undefined_place == "the reference tokens have no grid"
    assert maps.g2r.unified.shape == maps.specific(0, 0).shape == (1, maps.rows.reference_grid[1])


def test_a_scale_of_zero_or_no_picture_says_that_no_reference_was_seen():
    model = small_transformer(scale=0)
    with trace(model, family=FAMILY) as t:
        generate(model)
    with pytest.raises(NothingCaptured, match="'sd3_ip_adapter' found reference tokens in none.*scale above 0"):
        t.maps()


def test_tokens_that_fit_no_grid_are_an_error():
    sample, states = torch.zeros(1, 4, 8, 12), torch.zeros(1, TEXT, 12)
    arguments = dict(
        hidden_states=sample, encoder_hidden_states=states, joint_attention_kwargs={"ip_adapter_image_embeds": states}
    )
    product = Product(
        layer="", module=torch.nn.Identity(), arguments=arguments, forward=0, call=1, query_tokens=23, key_tokens=28
    )
    with pytest.raises(UnsupportedModel, match="23 tokens are no grid of square patches of a 8x12 latent"):
        FAMILY.layout(product)


def test_what_is_refused_and_what_is_known():
    model = small_transformer()
    assert FAMILY.refuses(model, model) is None and list(FAMILY.layers(model)) == LAYERS
    plain = plain_transformer()
    assert "load an adapter with pipeline.load_ip_adapter" in FAMILY.refuses(plain, plain)
    assert "no attention module has" in FAMILY.refuses(None, torch.nn.Linear(2, 2))
    model.transformer_blocks[0] = torch.compile(model.transformer_blocks[0], backend="eager")
    assert list(FAMILY.layers(model)) == LAYERS
