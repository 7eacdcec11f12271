"""SD3 with an IP-Adapter: the maps are those of the adapter's own product, over image and reference keys.

The adapter is loaded as `load_ip_adapter` loads one, from a state dict. The transformer is called as
`StableDiffusion3Pipeline` calls it (the pipeline itself needs three text encoders): rows [negative, positive] of the same
latents, the picture's features in `joint_attention_kwargs`, zeros for the negative rows; under skip-layer guidance a second
forward of the positive rows at the same noise time.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterTimeImageProjection
from oracle import recorded_products, sharpened

from i2am_debug import trace
from i2am_debug.errors import NothingCaptured, UnsupportedModel
from i2am_debug.families.family import Product
from i2am_debug.families.sd3_ip_adapter import SD3IPAdapter

GRID, TOKENS, TEXT = (4, 6), 5, 7
IMAGE = GRID[0] * GRID[1]
REFERENCE = slice(IMAGE, IMAGE + TOKENS)
LAYERS = ["transformer_blocks.0", "transformer_blocks.0.attn2", "transformer_blocks.1"]
FAMILY = SD3IPAdapter()


def plain_transformer() -> SD3Transformer2DModel:
    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=12,
        caption_projection_dim=32,
        pooled_projection_dim=10,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),  # as 3.5 medium has them
        qk_norm="rms_norm",
    ).eval()


def small_transformer(scale: float = 0.5) -> SD3Transformer2DModel:
    model = plain_transformer()
    adapter = {}
    for i, _ in enumerate(model.attn_processors):
        fresh = SD3IPAdapterJointAttnProcessor2_0(32, 32, head_dim=8, timesteps_emb_dim=64)
        adapter |= {f"{i}.{name}": value for name, value in fresh.state_dict().items()}
    resampler = IPAdapterTimeImageProjection(
        embed_dim=9, output_dim=32, hidden_dim=64, heads=1, num_queries=TOKENS, timestep_in_dim=16
    )
    model._load_ip_adapter_weights({"ip_adapter": adapter, "image_proj": resampler.state_dict()})
    for module in modules(model).values():
        module.processor.scale = scale
    return sharpened(model, "processor.norm_q", "processor.norm_k", "processor.norm_ip_k", factor=2)


def generate(model, images=1, *, guided=True, one_prompt=False, one_picture=False, skip=False) -> list[torch.Tensor]:
    """Two sampler steps of the pipeline; the denoiser's outputs."""
    draw = torch.Generator().manual_seed(1)
    prompt, negative = (torch.randn(images, TEXT, 12, generator=draw) for _ in range(2))
    pooled = torch.randn(images, 10, generator=draw)
    picture = torch.randn(images, 3, 9, generator=draw)
    none = picture if one_picture else torch.zeros_like(picture)
    outputs = []
    for time in (900.0, 300.0):
        latents = torch.randn(images, 4, *(2 * s for s in GRID), generator=draw)
        full = (latents, prompt, pooled, picture)
        if guided:
            pairs = (
                (latents, latents),
                (prompt if one_prompt else negative, prompt),
                (pooled, pooled),
                (none, picture),
            )
            full = tuple(torch.cat(pair) for pair in pairs)
        # the pipeline hands the second forward the features of the whole batch, as here
        calls = [(full, {})] + [((latents, prompt, pooled, full[3]), dict(skip_layers=[1]))] * skip
        for (sample, states, pooled_states, features), more in calls:
            with torch.no_grad():
                output = model(
                    hidden_states=sample,
                    timestep=torch.full((len(sample),), time),
                    encoder_hidden_states=states,
                    pooled_projections=pooled_states,
                    joint_attention_kwargs={"ip_adapter_image_embeds": features},
                    return_dict=False,
                    **more,
                )[0]
            outputs.append(output)
    return outputs


def modules(model) -> dict[str, torch.nn.Module]:
    first, second = model.transformer_blocks
    return dict(zip(LAYERS, (first.attn, first.attn2, second.attn), strict=True))


def adapter_products(model, *args, **kwargs) -> dict:
    """Layer → the adapter's product of each sampler step."""
    with recorded_products(modules(model)) as products:
        generate(model, *args, **kwargs)
    return {name: each[1::2] for name, each in products.items()}


def assert_equal(ours: np.ndarray, truth: torch.Tensor) -> None:
    truth = truth.numpy()
    assert np.abs(ours - truth).max() <= 1e-5 * truth.max()
    assert truth.max() > 1.01 * truth.min(), "the truth is flat, the comparison would prove nothing"


def assert_maps_equal_without_a_grid(maps, products, row: int) -> None:
    """As the oracle's own comparison; G2R is in the rows, since tokens without a grid make no map."""
    assert list(maps.layers) == LAYERS
    for name, each in products.items():
        logits = torch.stack([p.logits([row], slice(None), REFERENCE)[0] for p in each])
        assert_equal(maps.r2g.by_layer[name].ravel(), logits.softmax(2).mean((0, 1, 3)))
        grid, rows = maps.rows.by_layer[name]
        assert grid == GRID
        assert_equal(rows, logits.softmax(3).mean((0, 1)))
        share = torch.stack([p.weights([row])[..., REFERENCE].sum(-1).mean() for p in each]).mean()
        assert maps.reference_mass[name] == pytest.approx(float(share), rel=1e-5)


@pytest.mark.parametrize(
    "how",
    [dict(), dict(one_prompt=True), dict(one_picture=True), dict(guided=False)],
    ids=["guided", "the same prompt in both", "the same picture in both", "not guided"],
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


@pytest.mark.parametrize("guided", [False, True])
def test_output_is_bit_identical(guided):
    model = small_transformer()
    plain = generate(model, guided=guided)
    with trace(model, family=FAMILY):
        looked_at = generate(model, guided=guided)
    assert all(map(torch.equal, plain, looked_at))


@pytest.mark.parametrize(("patch", "token"), [((2, 5), 3), ((0, 1), 3), ((3, 2), 0)])
def test_a_planted_copy_is_found_where_it_was_planted(patch, token):
    """One generated token's query is made the key of one reference token: R2G peaks there, and its row at that token."""
    model = small_transformer()
    queries = 0.1 * torch.randn(2, IMAGE, 4, 8).transpose(1, 2)
    keys = 2 * F.normalize(torch.randn(2, TOKENS, 4, 8), dim=-1).transpose(1, 2)
    ours = patch[0] * GRID[1] + patch[1]
    queries[1, :, ours] = 6 * keys[1, :, token]
    processor = model.transformer_blocks[1].attn.processor
    processor.norm_q.register_forward_hook(lambda *_: queries)
    processor.norm_ip_k.register_forward_hook(lambda *_: keys)
    with trace(model, family=FAMILY) as t:
        generate(model)
    maps = t.maps()
    r2g = maps.r2g.by_layer["transformer_blocks.1"]
    assert np.unravel_index(r2g.argmax(), r2g.shape) == patch
    rows = maps.rows.by_layer["transformer_blocks.1"][1]
    assert rows[ours].argmax() == token and np.delete(rows, ours, 0).max() < 0.5 * rows[ours].max()


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
