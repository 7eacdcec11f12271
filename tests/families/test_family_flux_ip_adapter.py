"""Flux and Chroma with IP-Adapters: the maps are those of each adapter's own product in the double blocks.

The adapters are loaded as `load_ip_adapter` loads them, from state dicts, into tiny transformers inside the real pipelines;
the pipelines are called with the features that their image encoder would give.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
)
from diffusers.models.embeddings import ImageProjection
from diffusers.models.transformers import transformer_flux
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from oracle import recorded_products, sharpened
from peft import LoraConfig
from PIL import Image

from i2am_debug import trace
from i2am_debug.errors import NothingCaptured, UnsupportedModel
from i2am_debug.families.family import Product
from i2am_debug.families.flux_ip_adapter import FluxIPAdapter

GRID, TEXT, TOKENS, FEATURES = (4, 6), 5, 4, 9
IMAGE = GRID[0] * GRID[1]
LAYERS = ["transformer_blocks.0", "transformer_blocks.1"]
FAMILY = FluxIPAdapter()
COMMON = dict(
    patch_size=1,
    in_channels=16,
    num_layers=2,
    num_single_layers=1,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=12,
    axes_dims_rope=(4, 6, 6),
)


def flux(**changes):
    return FluxTransformer2DModel(**{**COMMON, "pooled_projection_dim": 8, "guidance_embeds": True, **changes}).eval()


def chroma():
    settings = dict(approximator_num_channels=16, approximator_hidden_dim=8, approximator_layers=1)
    return ChromaTransformer2DModel(**COMMON, **settings).eval()


def with_adapters(make=flux, adapters: int = 1):
    """As `load_ip_adapter` does it, from state dicts in the layout of the files."""
    torch.manual_seed(0)
    model = make()
    files = []
    for _ in range(adapters):
        fresh = [FluxIPAdapterAttnProcessor(hidden_size=32, cross_attention_dim=12) for _ in LAYERS]
        weights = {f"{i}.{n.replace('.0.', '.')}": v for i, p in enumerate(fresh) for n, v in p.state_dict().items()}
        projection = ImageProjection(FEATURES, 12, TOKENS).state_dict()
        projection = {n.replace("image_embeds", "proj"): value for n, value in projection.items()}
        files.append({"ip_adapter": weights, "image_proj": projection})
    model._load_ip_adapter_weights(files)
    return sharpened(model, "norm_q", *(f"to_k_ip.{i}" for i in range(adapters)), factor=2.5).eval()


def modules(model) -> dict[str, torch.nn.Module]:
    return {name: model.transformer_blocks[i].attn for i, name in enumerate(LAYERS)}


def pipeline_of(kind, model):
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
    names = ("text_encoder", "tokenizer") + (() if kind is ChromaPipeline else ("text_encoder_2", "tokenizer_2"))
    pipeline = kind(scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, transformer=model, **dict.fromkeys(names))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline, images: int = 1, *, guided: bool = False, pictures: tuple[int, ...] = (1,), **changes):
    """Two sampler steps at `images` prompts; `pictures`: how many each adapter gets."""
    draw = torch.Generator().manual_seed(4)
    is_chroma = isinstance(pipeline, ChromaPipeline)
    arguments = dict(height=16 * GRID[0], width=16 * GRID[1], num_inference_steps=2, output_type="pt")
    for sign in ("", "negative_"):
        arguments[f"{sign}prompt_embeds"] = torch.randn(images, TEXT, 12, generator=draw)
        features = [torch.randn(1, n, FEATURES, generator=draw) for n in pictures]
        arguments[f"{sign}ip_adapter_image_embeds"] = features
        if is_chroma:  # the last two text tokens are padding
            arguments[f"{sign}prompt_attention_mask"] = torch.tensor([[True] * 3 + [False] * 2]).repeat(images, 1)
        else:
            arguments[f"{sign}pooled_prompt_embeds"] = torch.randn(images, 8, generator=draw)
    arguments["guidance_scale" if is_chroma else "true_cfg_scale"] = 2.0 if guided else 1.0
    return pipeline(**{**arguments, **changes}, generator=torch.Generator().manual_seed(5)).images


def looked_at(pipeline, family=None, **how):
    """The trace and the products, module by module, of two equal calls, whose outputs must not differ in a bit."""
    with recorded_products(modules(pipeline.transformer)) as products:
        plain = generate(pipeline, **how)
    with trace(pipeline, family=family or FAMILY) as t:
        seen = generate(pipeline, **how)
    assert torch.equal(plain, seen)
    return t, products


def assert_equal(ours: np.ndarray, truth: torch.Tensor) -> None:
    truth = truth.numpy()
    assert np.abs(ours - truth).max() <= 1e-5 * truth.max()
    assert truth.max() > 1.01 * truth.min(), "the truth is flat, the comparison would prove nothing"


def assert_maps_equal_without_a_grid(maps, products, keys=slice(None), row=0, layers=LAYERS, queries=slice(None)):
    """As the oracle's own comparison; `products` are the adapter's. The tokens have no grid, so G2R is in the rows too."""
    assert list(maps.layers) == list(layers)
    assert maps.undefined_place == "the reference tokens have no grid"
    for name in layers:
        logits = torch.stack([p.logits([row], queries, keys)[0] for p in products[name]])
        assert maps.r2g.by_layer[name].shape == GRID
        assert_equal(maps.r2g.by_layer[name].ravel(), logits.softmax(2).mean((0, 1, 3)))
        assert_equal(maps.g2r.by_layer[name].ravel(), logits.softmax(3).mean((0, 1, 2)))
        grid, rows = maps.rows.by_layer[name]
        assert grid == GRID
        assert_equal(rows, logits.softmax(3).mean((0, 1)))


def conditional(products, adapter=0, *, adapters=1, guided=False):
    """Layer → one adapter's product of each sampler step's first forward."""
    return {n: found[1 + adapter :: (1 + adapters) * (1 + guided)] for n, found in products.items()}


@pytest.mark.parametrize("kind, make", [(FluxPipeline, flux), (ChromaPipeline, chroma)])
@pytest.mark.parametrize("guided", [False, True], ids=["one forward", "two forwards"])
@pytest.mark.parametrize("images", [1, 3])
def test_maps_are_those_of_the_adapters_product_in_the_conditional_forward(kind, make, guided, images):
    pipeline = pipeline_of(kind, with_adapters(make))
    t, products = looked_at(pipeline, images=images, guided=guided)
    assert [p.k.shape[2] for p in products[LAYERS[0]]] == [TEXT + IMAGE, TOKENS] * (2 + 2 * guided)
    assert t.images == images and t.references == (0,)
    for image in range(images):
        maps = t.maps(image)
        assert_maps_equal_without_a_grid(maps, conditional(products, guided=guided), row=image)
        assert maps.total_steps == 2 and not maps.reference_mass and not maps.branch_share


def test_pictures_are_numbered_across_adapters_and_those_of_one_share_a_product():
    pipeline = pipeline_of(FluxPipeline, with_adapters(adapters=3))
    t, products = looked_at(pipeline, pictures=(1, 2, 1))
    assert t.references == (0, 1, 2, 3)
    for number, (adapter, keys) in enumerate([(0, None), (1, slice(0, TOKENS)), (1, slice(TOKENS, None)), (2, None)]):
        own = conditional(products, adapter, adapters=3)
        maps = t.maps(reference=number)
        assert_maps_equal_without_a_grid(maps, own, keys or slice(None))
        assert set(maps.reference_mass) == (set(LAYERS) if keys else set())
        for layer, share in maps.reference_mass.items():
            truth = torch.stack([p.weights()[..., keys].sum(-1).mean() for p in own[layer]]).mean()
            assert share == pytest.approx(float(truth), rel=1e-5)


def test_an_adapter_at_scale_0_in_a_block_is_not_looked_at_there_and_numbers_stay():
    pipeline = pipeline_of(FluxPipeline, with_adapters(adapters=2))
    pipeline.set_ip_adapter_scale([[0, 0.4], [0.7, 0.6]])
    t, products = looked_at(pipeline, pictures=(2, 1))
    assert t.references == (0, 1, 2)
    for number, adapter, keys, layers in [
        (1, 0, slice(TOKENS, None), LAYERS[1:]),
        (2, 1, slice(None), LAYERS),
    ]:
        own = conditional(products, adapter, adapters=2)
        assert_maps_equal_without_a_grid(t.maps(reference=number), own, keys, layers=layers)
    pipeline.set_ip_adapter_scale([0.0, 0.0])
    with trace(pipeline, family=FAMILY) as t:
        generate(pipeline, pictures=(2, 1))
    with pytest.raises(NothingCaptured, match="is its scale above 0"):
        t.maps()


@pytest.mark.parametrize("generated, token", [((1, 4), 2), ((3, 0), 0)])
def test_the_row_of_a_planted_copy_peaks_at_its_key(monkeypatch, generated, token):
    pipeline = pipeline_of(FluxPipeline, with_adapters())
    real = transformer_flux.dispatch_attention_fn
    query = generated[0] * GRID[1] + generated[1]

    def planted(q, k, v, **kwargs):  # (B, tokens, heads, d)
        if k.shape[1] == TOKENS:
            q = q.clone()
            q[:, query] = 20 * (k[:, token] - k.mean(1))  # less what all keys have in common
        return real(q, k, v, **kwargs)

    monkeypatch.setattr(transformer_flux, "dispatch_attention_fn", planted)
    with trace(pipeline, family=FAMILY) as t:
        generate(pipeline, guided=True)
    for layer in LAYERS:
        row = t.maps().specific(*generated, layer=layer).ravel()
        assert row.argmax() == token and row.max() > 0.9
        received = t.maps().r2g.by_layer[layer]
        assert np.unravel_index(received.argmax(), GRID) == generated


def positions(picture: int, grid: tuple[int, int]) -> torch.Tensor:
    return torch.tensor([(picture, y, x) for y in range(grid[0]) for x in range(grid[1])]).float()


@torch.no_grad()
def denoise(model, ids: torch.Tensor, given: dict) -> torch.Tensor:
    """One forward as FluxPipeline's."""
    draw = torch.Generator().manual_seed(1)
    return model(
        hidden_states=torch.randn(1, ids.shape[-2], 16, generator=draw),
        encoder_hidden_states=torch.randn(1, TEXT, 12, generator=draw),
        pooled_projections=torch.randn(1, 8, generator=draw),
        timestep=torch.tensor([0.7]),
        guidance=torch.tensor([3.5]),
        img_ids=ids,
        txt_ids=torch.zeros(TEXT, 3),
        joint_attention_kwargs=given,
        return_dict=False,
    )[0]


def embedded(model):
    features = torch.randn(1, 2, FEATURES, generator=torch.Generator().manual_seed(2))
    return model.encoder_hid_proj([features])[0].detach()


@pytest.mark.parametrize(
    "given, pictures",
    [
        (lambda m: {"ip_adapter_image_embeds": torch.ones(1, FEATURES)}, 1),
        (lambda m: {"ip_hidden_states": [embedded(m)]}, 2),
        (lambda m: {"ip_hidden_states": [embedded(m).flatten(1, 2)]}, 1),
    ],
    ids=["older form", "tokens of pictures", "tokens"],
)
def test_a_transformer_alone_and_other_ways_to_pass_a_picture(given, pictures):
    model = with_adapters()
    given, ids = given(model), positions(0, GRID)
    with recorded_products(modules(model)) as products:
        plain = denoise(model, ids[None], dict(given))  # batched positions are the older form
    with trace(model, family=FAMILY) as t:
        seen = denoise(model, ids[None], dict(given))
    assert torch.equal(plain, seen) and t.references == tuple(range(pictures))
    for number in range(pictures):
        size = products[LAYERS[0]][1].k.shape[2] // pictures
        keys = slice(number * size, (number + 1) * size)
        assert_maps_equal_without_a_grid(t.maps(reference=number), conditional(products), keys)


def test_kontext_with_an_adapter_is_left_to_its_own_family_unless_asked_for():
    model = with_adapters()
    pipeline = pipeline_of(FluxKontextPipeline, model)
    assert "pass family=FluxIPAdapter()" in FAMILY.refuses(pipeline, model)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8))
    t, products = looked_at(pipeline, guided=True, image=picture, max_area=64 * 96, _auto_resize=False)
    assert {p.q.shape[2] for p in products[LAYERS[0]]} == {TEXT + IMAGE + 15, IMAGE + 15}
    assert_maps_equal_without_a_grid(t.maps(), conditional(products, guided=True), queries=slice(0, IMAGE))


def test_an_unknown_grid_and_more_products_than_adapters_are_errors():
    model = with_adapters()
    given = {"ip_adapter_image_embeds": [torch.ones(1, 1, FEATURES)]}
    with pytest.raises(UnsupportedModel, match="its 24 tokens must fill a rectangle"), trace(model, family=FAMILY):
        denoise(model, positions(0, GRID).flip(0), given)
    product = Product(
        layer="transformer_blocks.0",
        module=model.transformer_blocks[0].attn,
        arguments={"joint_attention_kwargs": given},
        forward=0,
        call=2,
        query_tokens=IMAGE,
        key_tokens=TOKENS,
    )
    with pytest.raises(UnsupportedModel, match="attends 3 times with 1 adapters and pictures for 1"):
        FAMILY.layout(product)


def with_lora(model):
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "add_k_proj"], init_lora_weights=False))


def fused(model):
    model.fuse_qkv_projections()


def compiled(model):
    model.compile_repeated_blocks(backend="eager")


def compiled_parts(model):
    model.transformer_blocks[0].attn = torch.compile(model.transformer_blocks[0].attn, backend="eager")
    model.transformer_blocks[1] = torch.compile(model.transformer_blocks[1], backend="eager")


@pytest.mark.parametrize("change", [with_lora, fused, compiled, compiled_parts])
def test_changed_transformers_are_captured_under_the_same_names(change):
    model = with_adapters()
    attention = modules(model)
    change(model)
    given = {"ip_adapter_image_embeds": [torch.ones(1, 1, FEATURES)]}
    with torch.compiler.set_stance("force_eager"), recorded_products(attention) as products:
        plain = denoise(model, positions(0, GRID), given)
    assert FAMILY.refuses(model, model) is None
    with trace(model, family=FAMILY) as t:
        seen = denoise(model, positions(0, GRID), given)
    assert torch.equal(plain, seen)
    assert_maps_equal_without_a_grid(t.maps(), conditional(products))


def test_what_the_family_refuses():
    model = with_adapters()
    pipeline = pipeline_of(FluxPipeline, model)
    assert FAMILY.refuses(model, model) is None and FAMILY.refuses(pipeline, model) is None
    pipeline.unload_ip_adapter()
    assert "pipeline.load_ip_adapter" in FAMILY.refuses(pipeline, model)
    assert "pipeline.load_ip_adapter" in FAMILY.refuses(None, chroma())
    sd3 = SD3Transformer2DModel(sample_size=8, num_layers=1, attention_head_dim=8, num_attention_heads=2)
    assert "neither FluxTransformer2DModel nor Chroma" in FAMILY.refuses(sd3, sd3)
