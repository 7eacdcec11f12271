"""What users do to a model, on every family: the maps are those of the plain model, which the contract holds against an
oracle; or an error says what to do. Never nothing without a word.

Changes that leave the arithmetic alone (compiling, checkpointing, fresh LoRA) must give the very same maps.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import CASES
from peft import LoraConfig, inject_adapter_in_model
from test_capture import left_behind

from i2am_debug import trace
from i2am_debug.capture.trace import find_denoiser

FAMILIES = pytest.mark.parametrize("family", CASES)
KINDS_OF_ATTENTION = (
    "unet_cross_attention",
    "flux_kontext",
    "key_concatenation",
    "ldm_cross_attention",
    "flux_ip_adapter",
)
"""Cross-attention, joint attention, self-attention with more keys, attention that is written out, an adapter in a pipeline."""


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


def altered(model, change):
    """The model changed, or the pipeline with its denoiser changed."""
    if isinstance(model, torch.nn.Module):
        return change(model)
    model.transformer = change(model.transformer)
    return model


# Compiling takes seconds, and knows no family but only how attention is computed.
CHANGES = [
    *((family, change) for family in CASES for change in (fresh_lora, checkpointing)),
    *((family, whole) for family in KINDS_OF_ATTENTION if family != "key_concatenation"),  # which takes longest
    *((family, change) for family in ("key_concatenation", "flux_kontext") for change in (in_place, repeated_blocks)),
]


@pytest.mark.parametrize(
    ("family", "change"), CHANGES, ids=[f"{family}-{change.__name__}" for family, change in CHANGES]
)
def test_changes_that_leave_the_arithmetic_alone_leave_the_maps_alone(family, change):
    torch.compiler.reset()
    case = CASES[family]()
    model = case.model()
    before, _ = case.looked_at(model)
    assert max(float(m.max() / m.mean()) for m in before.r2g.by_layer.values()) > 1.01, "flat maps prove nothing"
    model = altered(model, change)
    if change in (whole, in_place, repeated_blocks):
        case.run(model, 1, case.ways[0])  # compiled before anybody looks: hooks added now are skipped by compiled code
    after, _ = case.looked_at(model)
    assert_same_maps(after, before)
    torch.compiler.reset()


@FAMILIES
def test_autocast_is_looked_at_without_a_trace_in_the_output(family):
    case = CASES[family]()
    model = case.model()
    exact, _ = case.looked_at(model)
    with torch.autocast("cpu", torch.bfloat16):
        plain = case.run(model, 1, case.ways[0])
        maps, seen = case.looked_at(model)
    assert all(map(torch.equal, plain, seen)) and left_behind(find_denoiser(model)) == []
    for layer in exact.layers:  # bf16 queries and keys are near the exact ones
        a, b = maps.g2r.by_layer[layer], exact.g2r.by_layer[layer]
        assert abs(a.sum() - 1) < 1e-4 and np.abs(a - b).sum() < 0.2, layer


@FAMILIES
def test_nothing_is_left_behind_after_an_error_in_the_model(family):
    case = CASES[family]()
    model = case.model()
    denoiser, plain = find_denoiser(model), case.run(model, 1, case.ways[0])
    handle = list(denoiser.modules())[-1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), trace(model, family=case.family):
        case.run(model, 1, case.ways[0])
        raise ZeroDivisionError  # the last module may be one that this model never runs
    handle.remove()
    assert left_behind(denoiser) == []
    assert all(map(torch.equal, plain, case.run(model, 1, case.ways[0])))
