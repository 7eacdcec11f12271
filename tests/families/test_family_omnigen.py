"""OmniGen: the maps are those of the transformer's own attention over prompt, input images and generated picture.

The transformer is called as `OmniGenPipeline` calls it (the pipeline itself needs a Llama tokenizer): the batch, its masks,
positions and spans come from the pipeline's own collator, the rows are [full prompt, negative prompt, images alone], and
the latents are the same in all three.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import OmniGenTransformer2DModel
from diffusers.pipelines.omnigen.processor_omnigen import OmniGenCollator
from oracle import assert_maps_equal, recorded_products, sharpened

from i2am_debug import trace
from i2am_debug.errors import NothingCaptured, UnsupportedModel
from i2am_debug.families.family import Product
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


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("key_heads", [1, HEADS], ids=["one key head", "as many key heads"])
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


def test_output_is_bit_identical():
    model = small_transformer()
    data = batch([dict(length=5, references=REFERENCES)])
    plain = generate(model, data)
    with trace(model, family=FAMILY):
        looked_at = generate(model, data)
    assert all(map(torch.equal, plain, looked_at))


@pytest.mark.parametrize(
    ("patch", "reference", "key"), [((2, 1), 0, (1, 3)), ((2, 1), 1, (0, 4)), ((0, 2), 1, (1, 1)), ((3, 0), 0, (2, 0))]
)
def test_the_specific_map_of_a_planted_copy_peaks_at_its_key(patch, reference, key):
    model = small_transformer()
    data = batch([dict(length=5, references=REFERENCES)])
    data["position_ids"] = torch.zeros_like(data["position_ids"])  # no rotary embedding: a copied key is a copied key
    generated, references = where(data)
    ours = generated.start + patch[0] * GENERATED[1] + patch[1]
    theirs = references[reference].start + key[0] * REFERENCES[reference][1] + key[1]
    keys = 2 * F.normalize(torch.randn(3, generated.stop, HEADS, HEAD), dim=-1).flatten(2)
    queries = 0.1 * torch.randn(3, generated.stop, HEADS * HEAD)
    queries[0, ours] = 6 * keys[0, theirs]
    attention = model.layers[1].self_attn
    attention.to_q.register_forward_hook(lambda *_: queries)
    attention.to_k.register_forward_hook(lambda *_: keys)
    with trace(model, family=FAMILY) as t:
        generate(model, data)
    maps = t.maps(reference=reference)
    row = maps.specific(*patch, layer="layers.1")
    assert row.shape == REFERENCES[reference]
    assert np.unravel_index(row.argmax(), row.shape) == key
    other = maps.specific((patch[0] + 1) % GENERATED[0], patch[1], layer="layers.1")
    assert other.max() < 0.5 * row.max()


def rows_of(data: dict, *rows: int) -> dict:
    """Some of a batch's rows as a batch of their own; each must hold all of `REFERENCES`."""
    pictures = iter(data["input_img_latents"])
    latents = {row: [next(pictures) for _ in spans] for row, spans in data["input_image_sizes"].items()}
    return {
        **{name: data[name][list(rows)] for name in ("input_ids", "attention_mask", "position_ids")},
        "input_image_sizes": {i: data["input_image_sizes"][row] for i, row in enumerate(rows)},
        "input_img_latents": [latent for row in rows for latent in latents[row]],
    }


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
