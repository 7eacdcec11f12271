"""OmniGen: the maps are those of the transformer's own attention over prompt, input images and generated picture.

The transformer is called as `OmniGenPipeline` calls it (the pipeline itself needs a Llama tokenizer): the batch, its masks,
positions and spans come from the pipeline's own collator, the rows are [full prompt, negative prompt, images alone], and
the latents are the same in all three."""

from __future__ import annotations

import pytest
import torch
from builders.omnigen import (
    FAMILY,
    GENERATED,
    REFERENCES,
    batch,
    generate,
    modules,
    rows_of,
    small_transformer,
    where,
)
from oracle import assert_maps_equal, recorded_products

from i2am_debug import trace
from i2am_debug.errors import NothingCaptured, UnsupportedModel
from i2am_debug.families.family import Product


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("key_heads", [1], ids=["one key head"])
def test_maps_and_reference_mass_equal_a_materialised_softmax_for_each_reference(images, key_heads):
    model = small_transformer(num_key_value_heads=key_heads)
    data = batch([dict(length=5, references=REFERENCES)] * images)
    with recorded_products(modules(model)) as products:
        generate(model, data)
    with trace(model, family=FAMILY) as t:
        generate(model, data)
    assert t.images == images and t.references == (0, 1)
    generated, references = where(data)
    assert references[0].start > 3, "the prompt is padded, or the test would not see a shift"
    for number, reference in enumerate(references):
        for image in range(images):
            maps = t.maps(image, number)
            logits = {n: [p.logits([image], generated, reference)[0] for p in e] for n, e in products.items()}
            assert_maps_equal(maps, logits)
            assert maps.r2g.unified.shape == GENERATED and maps.g2r.unified.shape == REFERENCES[number]
            for name, each in products.items():
                share = [p.weights([image], generated)[..., reference].sum(-1).mean() for p in each]
                assert maps.reference_mass[name] == pytest.approx(float(sum(share)) / 2, rel=1e-5)


def test_generated_tokens_see_all_of_the_prompt_but_its_padding():
    """The mask is causal in the prompt; were reference keys hidden from generated queries, maps would mean nothing."""
    model = small_transformer()
    data = batch([dict(length=5, references=REFERENCES)])
    with recorded_products(modules(model)) as products:
        generate(model, data)
    generated, references = where(data)
    mask = products["layers.0"][0].mask[0, 0]
    padding = references[0].start - 3
    assert padding > 0 and (mask[generated, :padding] < 0).all() and (mask[generated, padding:] == 0).all()
    for reference in references:  # within an input image tokens see each other, and nothing that comes later
        assert (mask[reference, reference] == 0).all() and (mask[reference, reference.stop :] < 0).all()


def test_without_guidance_all_rows_are_conditional():
    """As in a training loss: no other conditions in the batch, every row its own latents."""
    model = small_transformer()
    data = rows_of(batch([dict(length=5, references=REFERENCES)] * 2), 0, 1)
    with recorded_products(modules(model)) as products:
        generate(model, data, rows=1)
    with trace(model, family=FAMILY) as t:
        generate(model, data, rows=1)
    assert t.images == 2
    generated, references = where(data)
    for image in (0, 1):
        logits = {n: [p.logits([image], generated, references[1])[0] for p in e] for n, e in products.items()}
        assert_maps_equal(t.maps(image, 1), logits)


def test_of_separate_forwards_at_one_noise_time_the_first_counts():
    """Not the pipeline's way, but its conditions run one after the other are the same model."""
    model = small_transformer()
    guided = batch([dict(length=5, references=REFERENCES)])
    full, alone = rows_of(guided, 0), rows_of(guided, 2)
    sample = torch.randn(1, 4, *(2 * s for s in GENERATED))
    with trace(model, family=FAMILY) as t, recorded_products(modules(model)) as products, torch.no_grad():
        for data in (full, alone):
            model(hidden_states=sample, timestep=torch.tensor([100.0]), **data)
    generated, references = where(full)
    assert_maps_equal(t.maps(), {n: [e[0].logits([0], generated, references[0])[0]] for n, e in products.items()})


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        ([dict(length=5, references=REFERENCES), dict(length=6, references=REFERENCES)], "different places or sizes"),
        ([dict(length=5, references=[(3, 4)]), dict(length=5, references=[(4, 3)])], "different places or sizes"),
        ([dict(length=5, references=[(3, 4)]), dict(length=5, references=[])], r"of 6 rows .* only \[0, 4\] have"),
    ],
    ids=["lengths", "sizes", "one without"],
)
def test_prompts_that_differ_in_their_input_images_are_an_error(prompts, says):
    model = small_transformer()
    with pytest.raises(UnsupportedModel, match=says + ".*one prompt at a time"), trace(model, family=FAMILY):
        generate(model, batch(prompts))


def test_a_prompt_without_input_images_has_no_reference():
    model = small_transformer()
    data = batch([dict(length=5, references=[])])
    assert data["input_image_sizes"] == {}
    with trace(model, family=FAMILY) as t:
        generate(model, data)
    with pytest.raises(NothingCaptured, match="'omnigen' found reference tokens in none"):
        t.maps()


def test_tokens_that_fit_no_grid_are_an_error():
    model = small_transformer()
    data = batch([dict(length=5, references=REFERENCES)])
    arguments = dict(hidden_states=torch.zeros(3, 4, 8, 6), **data)
    tokens = data["attention_mask"].shape[-1] - 1
    product = Product(
        layer="", module=model, arguments=arguments, forward=0, call=0, query_tokens=tokens, key_tokens=tokens
    )
    with pytest.raises(UnsupportedModel, match="11 tokens are no grid of square patches of a 8x6 latent"):
        FAMILY.layout(product)


def test_what_is_refused_and_what_is_known():
    model = small_transformer()
    assert FAMILY.refuses(model, model) is None
    assert "no OmniGenTransformer2DModel" in FAMILY.refuses(None, torch.nn.Linear(2, 2))
    model.layers[1] = torch.compile(model.layers[1], backend="eager")
    assert FAMILY.refuses(model, model) is None and list(FAMILY.layers(model)) == ["layers.0", "layers.1"]
