"""What changes a model's arithmetic (trained LoRA, fused projections, autocast, slicing, other backends), against an oracle.

Capture is exact, or says what to do. What leaves the arithmetic alone is in test_family_variants.py.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from builders.flux_kontext import KEYS, QUERIES, blocks, denoise, inputs, tiny_transformer
from oracle import assert_maps_equal, recorded_products
from peft import LoraConfig
from test_capture import left_behind, small_unet

from i2am_debug import trace
from i2am_debug.errors import NothingCaptured
from i2am_debug.families.flux_kontext import FluxKontext
from i2am_debug.families.unet_cross_attention import UNetCrossAttention


class UNet:
    """A cross-attention UNet on a 6x10 latent with 3x4 reference tokens."""

    family = UNetCrossAttention(reference_grid=(3, 4))
    queries, keys = slice(None), slice(None)

    def __init__(self) -> None:
        self.model = small_unet()
        random = torch.Generator().manual_seed(1)
        self.given = torch.randn(2, 4, 6, 10, generator=random), torch.randn(2, 12, 12, generator=random)

    def modules(self) -> dict[str, torch.nn.Module]:
        found = {n: m for n, m in self.model.named_modules() if n.endswith("attn2")}
        return {n.removesuffix(".transformer_blocks.0.attn2"): m for n, m in found.items()}

    def run(self) -> list[torch.Tensor]:
        return [self.model(self.given[0], t, self.given[1]).sample for t in (800, 400)]


class Kontext:
    """Joint attention over 5 text, 4x6 generated and 3x5 reference tokens."""

    family = FluxKontext()
    queries, keys = QUERIES, KEYS

    def __init__(self) -> None:
        self.model = tiny_transformer()

    def modules(self) -> dict[str, torch.nn.Module]:
        return blocks(self.model)

    def run(self) -> list[torch.Tensor]:
        return denoise(self.model, inputs(2), guidance=False)


def assert_exact(case, around=contextlib.nullcontext) -> None:
    """Maps of both images equal the recorded products' float64 softmax, and the output is what it was."""
    with around(), torch.no_grad(), recorded_products(case.modules()) as products:
        plain = case.run()
    with around(), torch.no_grad(), trace(case.model, family=case.family) as t:
        seen = case.run()
    assert all(map(torch.equal, plain, seen))
    for image in (0, 1):
        rows = slice(image, image + 1)
        logits = {n: [p.logits(rows, case.queries, case.keys)[0] for p in found] for n, found in products.items()}
        assert_maps_equal(t.maps(image), logits)
    assert left_behind(case.model) == []


CASES = pytest.mark.parametrize("case", [UNet, Kontext], ids=["cross-attention", "joint attention"])


@CASES
def test_lora_adapters_are_part_of_what_is_seen(case):
    case = case()
    before = {n: p.clone() for n, p in case.model.named_parameters()}
    torch.manual_seed(3)
    case.model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False))
    assert len(list(case.model.parameters())) > len(before)
    assert_exact(case)


@CASES
def test_fused_projections_are_seen(case):
    case = case()
    case.model.fuse_qkv_projections()
    assert_exact(case)
    case.model.unfuse_qkv_projections()


@CASES
def test_what_autocast_hands_over_is_what_is_attributed(case):
    assert_exact(case(), around=lambda: torch.autocast("cpu", torch.bfloat16))


@CASES
def test_gradient_checkpointing_is_counted_once(case):
    case = case()
    with recorded_products(case.modules()) as products, torch.no_grad():
        case.run()
    case.model.train()
    case.model.enable_gradient_checkpointing()
    with trace(case.model, family=case.family) as t, torch.enable_grad():
        run = denoise.__wrapped__ if isinstance(case, Kontext) else None
        outputs = run(case.model, inputs(2), guidance=False) if run else case.run()
        sum(o.square().mean() for o in outputs).backward()  # runs the blocks a second time
    assert any(p.grad is not None for p in case.model.parameters())
    rows = slice(0, 1)
    logits = {n: [p.logits(rows, case.queries, case.keys)[0] for p in found] for n, found in products.items()}
    assert_maps_equal(t.maps(0), logits)


def test_sliced_attention_is_read_off_its_projections():
    case = UNet()
    with torch.no_grad(), recorded_products(case.modules()) as products:
        case.run()
    case.model.set_attention_slice("max")
    processors = {n: type(p) for n, p in case.model.attn_processors.items()}
    assert all(kind.__name__ == "SlicedAttnProcessor" for kind in processors.values())
    with torch.no_grad():
        plain = case.run()
        with trace(case.model, family=case.family) as t:
            seen = case.run()
    assert all(map(torch.equal, plain, seen))
    logits = {n: [p.logits(slice(0, 1))[0] for p in found] for n, found in products.items()}
    assert_maps_equal(t.maps(0), logits)
    assert {n: type(p) for n, p in case.model.attn_processors.items()} == processors


def test_a_backend_that_bypasses_torch_is_an_error_that_names_the_cure():
    case = Kontext()
    with torch.no_grad():
        expected = case.run()
    case.model.set_attention_backend("flex")
    with (
        pytest.raises(NothingCaptured, match=r'transformer_blocks.0.*backend flex.*set_attention_backend\("native"\)'),
        torch.no_grad(),
        trace(case.model, family=case.family),
    ):
        case.run()
    assert left_behind(case.model) == []
    case.model.set_attention_backend("native")
    with torch.no_grad(), trace(case.model, family=case.family) as t:
        assert all(map(torch.equal, expected, case.run()))
    assert t.maps().layers
