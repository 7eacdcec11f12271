"""What `trace` sees is what the model did, the model never notices, and nothing is left behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from oracle import assert_maps_equal
from torch.overrides import _get_current_function_mode_stack
from training import untrained_pipeline

from i2am_debug import CapturePlan, trace
from i2am_debug.demo.inpainting.pairs import validation_pairs
from i2am_debug.errors import NothingCaptured, UndefinedFigure, UnsupportedModel
from i2am_debug.families.unet_cross_attention import UNetCrossAttention


class Materialising(AttnProcessor2_0):
    """Keeps, in float64, the logits of what the model's own projections give; attends as the model does."""

    def __init__(self) -> None:
        super().__init__()
        self.logits: list[torch.Tensor] = []

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
        def heads(x):
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2).double()

        q, k = heads(attn.to_q(hidden_states)), heads(attn.to_k(encoder_hidden_states))
        self.logits.append(q @ k.transpose(-1, -2) * attn.scale)
        return super().__call__(attn, hidden_states, encoder_hidden_states, **kwargs)


def small_unet(**changes) -> UNet2DConditionModel:
    torch.manual_seed(0)
    settings = dict(
        sample_size=None,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    unet = UNet2DConditionModel(**{**settings, **changes}).eval()
    with torch.no_grad():  # random weights attend almost evenly; larger ones make the maps uneven enough to compare
        for name, weight in unet.named_parameters():
            if "attn2.to_q" in name or "attn2.to_k" in name:
                weight.mul_(4)
    return unet


def run_twice(unet, sample, states) -> list[torch.Tensor]:
    with torch.no_grad():
        return [unet(sample, t, states).sample for t in (800, 400)]


def materialised(unet, sample, states) -> dict[str, list[torch.Tensor]]:
    """Layer → float64 logits (B, N, G, R) of each forward."""
    ours = {n: m for n, m in unet.named_modules() if n.endswith("attn2")}
    before = {n: m.processor for n, m in ours.items()}
    for module in ours.values():
        module.set_processor(Materialising())
    run_twice(unet, sample, states)
    logits = {n.removesuffix(".transformer_blocks.0.attn2"): m.processor.logits for n, m in ours.items()}
    for name, module in ours.items():
        module.set_processor(before[name])
    return logits


def assert_maps_equal_oracle(maps, logits, row: int, reference: slice) -> None:
    assert_maps_equal(maps, {layer: [call[row, :, :, reference] for call in calls] for layer, calls in logits.items()})


def test_maps_equal_a_materialised_softmax_on_uneven_grids():
    unet = small_unet()
    sample, states = torch.randn(2, 4, 6, 10), torch.randn(2, 12, 12)
    family = UNetCrossAttention(reference_grid=(3, 4))
    with trace(unet, family=family) as t:
        run_twice(unet, sample, states)
    logits = materialised(unet, sample, states)
    for image in (0, 1):
        maps = t.maps(image)
        assert_maps_equal_oracle(maps, logits, image, slice(None))
        assert maps.r2g.unified.shape == (6, 10) and maps.g2r.unified.shape == (3, 4)
        assert {maps.r2g.by_layer[la].shape for la in maps.layers} == {(6, 10), (3, 5)}


@pytest.mark.parametrize("images", [1, 3])
def test_guidance_batches_show_their_conditional_rows_and_a_class_token_is_left_out(images):
    unet = small_unet()
    latents = torch.randn(images, 4, 8, 8).repeat(2, 1, 1, 1)
    states = torch.cat([torch.zeros(images, 10, 12), torch.randn(images, 10, 12)])  # [uncond, cond]; class token + 3x3
    with trace(unet) as t:
        run_twice(unet, latents, states)
    assert t.images == images
    logits = materialised(unet, latents, states)
    for image in range(images):
        assert_maps_equal_oracle(t.maps(image), logits, images + image, slice(1, None))


def test_one_reference_token_has_r2g_but_no_g2r():
    unet = small_unet()
    with trace(unet) as t:
        run_twice(unet, torch.randn(1, 4, 8, 8), torch.randn(1, 1, 12))
    maps = t.maps()
    assert maps.r2g.unified.sum() == pytest.approx(1, abs=1e-5)
    for ask in (lambda: maps.g2r, lambda: maps.g2r_region, lambda: maps.specific(0, 0), lambda: maps.r2g_object_mass):
        with pytest.raises(UndefinedFigure, match="one reference token"):
            ask()


def test_the_specific_map_of_a_planted_copy_peaks_at_its_key():
    """Make one generated token's query the key of one reference token: its row must peak exactly there."""
    unet = small_unet()
    layer = "down_blocks.0.attentions.0"
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    key = 2 * F.normalize(torch.randn(12, 2, 4), dim=-1).flatten(1)  # 3x4 reference tokens, 2 heads
    query = torch.randn(1, 60, 8) * 0.1
    query[0, 3 * 10 + 7] = 6 * key[2 * 4 + 1]
    attention.to_q.forward = lambda x: query
    attention.to_k.forward = lambda x: key[None]
    with trace(unet, family=UNetCrossAttention(reference_grid=(3, 4))) as t:
        run_twice(unet, torch.randn(1, 4, 6, 10), torch.randn(1, 12, 12))
    row = t.maps().specific(3, 7, layer=layer)
    assert np.unravel_index(row.argmax(), row.shape) == (2, 1)
    other = t.maps().specific(2, 7, layer=layer)
    assert other.max() < 0.5 * row.max()


def pipeline_call(pipeline, **changes):
    pair = validation_pairs(1, seed=11)[0]
    arguments = dict(
        image=pair.target,
        mask_image=pair.mask_image,
        example_image=pair.reference,
        num_inference_steps=4,
        output_type="pt",
    )
    return pipeline(**{**arguments, **changes}, generator=torch.Generator().manual_seed(0)).images


def test_output_is_bit_identical_and_the_plan_chooses_steps():
    pipeline = untrained_pipeline()
    plain = pipeline_call(pipeline)
    with trace(pipeline, plan=CapturePlan(sampler_steps=2)) as t:
        looked_at = pipeline_call(pipeline)
    assert torch.equal(plain, looked_at)
    maps = t.maps()
    assert maps.total_steps == 4 and maps.steps == CapturePlan(sampler_steps=2).draw_steps(4)
    with trace(pipeline) as t:
        pipeline_call(pipeline)
    assert t.maps().steps == (0, 1, 2, 3)


def test_modules_carry_hooks_only_while_a_step_is_looked_at():
    pipeline, hooks = untrained_pipeline(), []
    attention = next(m for n, m in pipeline.unet.named_modules() if n.endswith("attn2"))
    pipeline.unet.conv_in.register_forward_hook(lambda *_: hooks.append(len(attention._forward_hooks)))
    plan = CapturePlan(sampler_steps=2)
    with trace(pipeline, plan=plan):
        pipeline_call(pipeline)
    assert [bool(count) for count in hooks] == [step in plan.draw_steps(4) for step in range(4)]


def test_bf16_and_autocast_outputs_are_bit_identical_too():
    unet = small_unet()
    sample, states = torch.randn(1, 4, 8, 8), torch.randn(1, 9, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = run_twice(unet, sample, states)
        with trace(unet) as t:
            looked_at = run_twice(unet, sample, states)
    assert all(map(torch.equal, plain, looked_at))
    assert t.maps().g2r.unified.sum() == pytest.approx(1, abs=1e-5)


def test_a_compiled_attention_module_is_captured():
    unet = small_unet()
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    sample, states = torch.randn(1, 4, 8, 8), torch.randn(1, 9, 12)
    with trace(unet) as t:
        run_twice(unet, sample, states)
    expected = t.maps().g2r.unified
    attention.compile(backend="eager")
    run_twice(unet, sample, states)
    with trace(unet) as t:
        run_twice(unet, sample, states)
    assert np.array_equal(t.maps().g2r.unified, expected)


def left_behind(module: torch.nn.Module) -> list[str]:
    """Hooks, patched methods and modes that should not be there."""
    found = [f"mode {m}" for m in _get_current_function_mode_stack()]
    for name, part in module.named_modules():
        found += [f"pre-hook on {name}"] * len(part._forward_pre_hooks) + [f"hook on {name}"] * len(part._forward_hooks)
        found += [f"patched forward on {name}"] * ("forward" in part.__dict__)
    if "scaled_dot_product_attention" not in repr(F.scaled_dot_product_attention):
        found.append("patched attention")
    return found


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_behind(error):
    unet = small_unet()
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    sample, states = torch.randn(1, 4, 8, 8), torch.randn(1, 9, 12)
    plain = run_twice(unet, sample, states)

    class Fails(AttnProcessor2_0):
        def __call__(self, *args, **kwargs):
            raise error("planted")

    t = trace(unet)
    if error is None:
        with t:
            assert left_behind(unet), "the check itself finds nothing while hooks are there"
            run_twice(unet, sample, states)
    else:
        healthy = attention.processor
        attention.set_processor(Fails())
        with pytest.raises(error, match="planted"), t:
            run_twice(unet, sample, states)
        attention.set_processor(healthy)
    assert left_behind(unet) == []
    assert all(map(torch.equal, plain, run_twice(unet, sample, states)))


def test_maps_may_be_read_before_the_end_and_after_an_error():
    unet, sample, states = small_unet(), torch.randn(1, 4, 8, 8), torch.randn(1, 9, 12)
    with torch.no_grad(), trace(unet) as whole:
        unet(sample, 1, states)
    with pytest.raises(RuntimeError, match="planted"), torch.no_grad(), trace(unet) as t:
        unet(sample, 1, states)
        before = t.maps()
        unet(-sample, 0, states)
        raise RuntimeError("planted")
    after = t.maps()
    assert before.steps == whole.maps().steps == (0,) and after.steps == (0, 1)
    np.testing.assert_allclose(before.r2g.unified, whole.maps().r2g.unified, rtol=1e-5)
    np.testing.assert_allclose(after.r2g.by_step[0], whole.maps().r2g.by_step[0], rtol=1e-5)


@pytest.mark.parametrize("processor", [AttnProcessor(), SlicedAttnProcessor(1)], ids=["einsum", "sliced"])
def test_attention_that_bypasses_torch_is_read_off_its_projections(processor):
    unet = small_unet()
    sample, states = torch.randn(1, 4, 12, 20), torch.randn(1, 12, 12)
    logits = materialised(unet, sample, states)
    unet.set_attn_processor(processor)
    plain = run_twice(unet, sample, states)
    with trace(unet, family=UNetCrossAttention(reference_grid=(3, 4))) as t:
        captured = run_twice(unet, sample, states)
    assert_maps_equal_oracle(t.maps(), logits, 0, slice(0, 12))
    assert all(map(torch.equal, plain, captured)) and left_behind(unet) == []


class FusedElsewhere:
    """Attends without its module's to_q and without torch's attention."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
        return hidden_states


def test_a_module_whose_attention_can_not_be_seen_is_an_error_that_names_module_and_cure():
    unet = small_unet()
    unet.mid_block.attentions[0].transformer_blocks[0].attn2.set_processor(FusedElsewhere())
    with (
        pytest.raises(NothingCaptured, match=r"'mid_block.attentions.0'.*FusedElsewhere\..*AttnProcessor2_0.*exclude"),
        trace(unet),
    ):
        run_twice(unet, torch.randn(1, 4, 8, 8), torch.randn(1, 9, 12))
    assert left_behind(unet) == []
    with trace(unet, plan=CapturePlan.full(exclude=("mid_block*",))) as t:  # the cure works
        run_twice(unet, torch.randn(1, 4, 8, 8), torch.randn(1, 9, 12))
    assert "mid_block.attentions.0" not in t.maps().layers


def test_a_trace_without_a_call_or_with_two_says_so():
    pipeline = untrained_pipeline()
    with trace(pipeline) as t:
        pass
    with pytest.raises(NothingCaptured, match="call the pipeline inside `with trace"):
        t.maps()
    with pytest.raises(NothingCaptured, match="new `with trace"), trace(pipeline):
        pipeline_call(pipeline, num_inference_steps=1)
        pipeline_call(pipeline, num_inference_steps=2)


def test_models_without_a_reference_are_refused():
    class TextPipeline:
        def __init__(self):
            self.unet = small_unet()
            self.components = {"unet": self.unet, "text_encoder": object()}

    with pytest.raises(UnsupportedModel, match=r"reads text.*channel concatenation.*UNetCrossAttention\("):
        trace(TextPipeline())
    with pytest.raises(UnsupportedModel, match="no cross-attention module"):
        trace(torch.nn.Linear(2, 2))
    with pytest.raises(UnsupportedModel, match="neither a unet nor a transformer"):
        trace(object())
    with (
        pytest.raises(UnsupportedModel, match="match none of"),
        trace(small_unet(), plan=CapturePlan(layers=("nothing*",))),
    ):
        pass
    with (
        pytest.raises(UnsupportedModel, match=r"has 20 tokens, the model's cross-attention reads 9"),
        trace(small_unet(), family=UNetCrossAttention(reference_grid=(4, 5))) as t,
    ):
        run_twice(t.denoiser, torch.randn(1, 4, 8, 8), torch.randn(1, 9, 12))


def test_a_pilot_choice_weights_the_heads_it_stands_for():
    unet = small_unet()
    sample, states = torch.randn(1, 4, 8, 8), torch.randn(1, 9, 12)
    layers = list(UNetCrossAttention().layers(unet))
    with trace(unet, heads={la: {1: 2.0} for la in layers}) as t:
        run_twice(unet, sample, states)
    logits = materialised(unet, sample, states)
    for layer, calls in logits.items():
        theirs = torch.stack([call[0, 1] for call in calls]).softmax(-1).mean((0, 1)).numpy()
        assert np.abs(t.maps().g2r.by_layer[layer].ravel() - theirs).max() <= 1e-5 * theirs.max()
        assert np.isnan(t.maps().information[layer][0])
    assert np.isnan(t.maps().g2r.by_head[0]).all() and np.isfinite(t.maps().g2r.by_head[1]).all()
