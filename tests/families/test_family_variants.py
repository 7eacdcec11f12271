"""What users do to a model, on every family: the maps are those of the plain model, which each family's own tests hold
against an oracle; or an error says what to do. Never nothing without a word.

Changes that leave the arithmetic alone (compiling, checkpointing, fresh LoRA) must give the very same maps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import test_family_added_key_value as added_key_value
import test_family_bria_fibo_edit as bria
import test_family_flux2 as flux2
import test_family_flux_ip_adapter as flux_adapter
import test_family_flux_kontext as kontext
import test_family_flux_redux as redux
import test_family_ip_adapter as ip_adapter
import test_family_ldm_cross_attention as ldm
import test_family_longcat_edit as longcat
import test_family_omnigen as omnigen
import test_family_qwen_image_edit as qwen
import test_family_sd3_ip_adapter as sd3
import test_family_self_attention_reference as self_attention
import test_family_wan_image_to_video as wan
import torch
from peft import LoraConfig, inject_adapter_in_model
from test_capture import left_behind, small_unet

from i2am_debug import trace
from i2am_debug.families.family import Family
from i2am_debug.families.ip_adapter import IPAdapter
from i2am_debug.families.registry import registered
from i2am_debug.families.self_attention_reference import KeyConcatenation, SpatialConcatenation
from i2am_debug.families.unet_cross_attention import UNetCrossAttention


@dataclass
class Case:
    """A model, how its pipeline calls it, and its family (None: found from the model)."""

    model: torch.nn.Module
    call: Callable[[Any], list[torch.Tensor]]
    family: Family | None = None


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def with_garment() -> Case:
    unet = self_attention.small()
    self_attention.give(unet, self_attention.features_for(unet))
    inputs = drawn(1, 4, 6, 10), drawn(1, 5, self_attention.TEXT)
    return Case(unet, lambda model: self_attention.run_twice(model, *inputs), KeyConcatenation())


def two_in_one_latent() -> Case:
    unet = self_attention.catvton()
    sample = self_attention.side_by_side(1, self_attention.AXES["width"][0], False)
    family = SpatialConcatenation(axis="width")
    return Case(unet, lambda model: self_attention.run_twice(model, sample, None), family)


def flux_with_adapter() -> Case:
    given = {"ip_adapter_image_embeds": [torch.ones(1, 1, flux_adapter.FEATURES)]}

    def call(model):
        with torch.no_grad():
            return [flux_adapter.denoise(model, flux_adapter.positions(0, flux_adapter.GRID), dict(given))]

    return Case(flux_adapter.with_adapters(), call)


def cross_attention() -> Case:
    def call(model):
        with torch.no_grad():
            return [model(drawn(1, 4, 6, 10), t, drawn(1, 12, 12)).sample for t in (800, 400)]

    return Case(small_unet(), call, UNetCrossAttention(reference_grid=(3, 4)))


def adapter() -> Case:
    tokens = 1 + ip_adapter.PATCHES[0] * ip_adapter.PATCHES[1]
    embeds = [drawn(1, 1, tokens, ip_adapter.ENCODER)]
    inputs = drawn(1, 4, 6, 10), drawn(1, 7, ip_adapter.TEXT), embeds
    family = IPAdapter(reference_grid=ip_adapter.PATCHES)
    return Case(ip_adapter.unet_with("full"), lambda model: ip_adapter.run(model, *inputs), family)


def omnigen_edit() -> Case:
    data = omnigen.batch([{"length": 9, "references": [(3, 5)]}])
    return Case(omnigen.small_transformer(), lambda model: omnigen.generate(model, data))


def wan_video() -> Case:
    torch.manual_seed(1)
    inputs = wan.video(), wan.text(), wan.picture()
    return Case(wan.small(), lambda model: wan.run(model, *inputs), wan.FAMILY)


def latent_diffusion() -> Case:
    inputs = drawn(1, 4, 6, 10), drawn(1, 9, ldm.small().context_dim if hasattr(ldm.small(), "context_dim") else 12)
    return Case(ldm.small(), lambda model: ldm.run_twice(model, *inputs))


CASES = {
    "unet_cross_attention": cross_attention,
    "ip_adapter": adapter,
    "flux_kontext": lambda: Case(
        kontext.tiny_transformer(), lambda model: kontext.denoise(model, kontext.inputs(), guidance=False)
    ),
    "flux2": lambda: Case(flux2.tiny_transformer(), lambda model: flux2.denoise(model, flux2.Inputs())),
    "flux_redux": lambda: Case(
        redux.tiny_transformer(), lambda model: redux.denoise(model, (redux.TEXT + 15,)), redux.FAMILY
    ),
    "flux_ip_adapter": flux_with_adapter,
    "added_key_value": lambda: Case(
        added_key_value.small_unet(), lambda model: added_key_value.generate(model, "image_proj", guided=False)
    ),
    "spatial_concatenation": two_in_one_latent,
    "longcat_edit": lambda: Case(
        longcat.tiny_transformer(), lambda model: longcat.denoise(model, longcat.inputs(), guidance=False)
    ),
    "bria_fibo_edit": lambda: Case(
        bria.tiny_transformer(), lambda model: bria.denoise(model, bria.inputs(), guidance=False)
    ),
    "qwen_image_edit": lambda: Case(qwen.small_transformer(), qwen.edit),
    "omnigen": omnigen_edit,
    "sd3_ip_adapter": lambda: Case(sd3.small_transformer(), sd3.generate),
    "wan_image_to_video": wan_video,
    "key_concatenation": with_garment,
    "ldm_cross_attention": latent_diffusion,
}


def test_every_registered_family_has_a_case():
    assert set(CASES) == {family.name for family in registered()}


def looked_at(case: Case, model: Any = None) -> tuple[Any, list[torch.Tensor]]:
    model = case.model if model is None else model
    with trace(model, family=case.family) as t:
        outputs = case.call(model)
    return t.maps(), outputs


def assert_same_maps(ours, theirs) -> None:
    assert ours.layers == theirs.layers and ours.layers
    for layer in theirs.layers:
        for direction in ("r2g", "g2r"):
            a, b = (getattr(maps, direction).by_layer[layer] for maps in (ours, theirs))
            assert np.abs(a - b).max() <= 1e-5 * b.max(), (layer, direction)
    assert ours.reference_mass == pytest.approx(theirs.reference_mass, rel=1e-5)
    assert ours.branch_share == pytest.approx(theirs.branch_share, rel=1e-5)


def whole(model):
    return torch.compile(model, backend="eager")


def in_place(model):
    model.compile(backend="eager")
    return model


def repeated_blocks(model):
    kinds = {type(m).__name__ for m in model.modules()}
    if not kinds & set(getattr(model, "_repeated_blocks", None) or ()):
        pytest.skip("the model has none of the blocks that diffusers compiles one by one")
    model.compile_repeated_blocks(backend="eager")
    return model


def fresh_lora(model):
    """Adapters as training starts with them: they add nothing yet."""
    return inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q", "to_k"]), model)


def checkpointing(model):
    if not getattr(model, "_supports_gradient_checkpointing", False):
        pytest.skip("the model has no gradient checkpointing")
    model.enable_gradient_checkpointing()
    return model.train()


@pytest.mark.parametrize("change", [whole, in_place, repeated_blocks, fresh_lora, checkpointing])
@pytest.mark.parametrize("family", CASES)
def test_changes_that_leave_the_arithmetic_alone_leave_the_maps_alone(family, change):
    torch.compiler.reset()
    case = CASES[family]()
    before, _ = looked_at(case)
    assert max(float(m.max() / m.mean()) for m in before.r2g.by_layer.values()) > 1.01, "flat maps prove nothing"
    model = change(case.model)
    if change in (whole, in_place, repeated_blocks):
        case.call(model)  # compiled before anybody looks: hooks added now are skipped by compiled code
    after, _ = looked_at(case, model)
    assert_same_maps(after, before)
    torch.compiler.reset()


@pytest.mark.parametrize("family", CASES)
def test_autocast_is_looked_at_without_a_trace_in_the_output(family):
    case = CASES[family]()
    exact, _ = looked_at(case)
    with torch.autocast("cpu", torch.bfloat16):
        plain = case.call(case.model)
        maps, seen = looked_at(case)
    assert all(map(torch.equal, plain, seen)) and left_behind(case.model) == []
    for layer in exact.layers:
        a, b = maps.g2r.by_layer[layer], exact.g2r.by_layer[layer]
        assert abs(a.sum() - 1) < 1e-4 and np.abs(a - b).sum() < 0.2, (
            layer
        )  # bf16 queries and keys are near the exact ones


@pytest.mark.parametrize("family", CASES)
def test_nothing_is_left_behind_after_an_error_in_the_model(family):
    case = CASES[family]()
    plain = case.call(case.model)
    handle = list(case.model.modules())[-1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), trace(case.model, family=case.family):
        case.call(case.model)
        raise ZeroDivisionError  # the last module may be one that this model never runs
    handle.remove()
    assert left_behind(case.model) == []
    assert all(map(torch.equal, plain, case.call(case.model)))
