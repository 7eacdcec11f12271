"""The reference mass from the kernel's own normaliser is that of a product of one's own, the way where there is none."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from builders.flux_kontext import denoise, inputs, tiny_transformer
from torch.nn.attention import SDPBackend, sdpa_kernel

from i2am_debug import trace
from i2am_debug.capture import taps
from i2am_debug.capture.mass import reference_mass
from i2am_debug.families.flux_kontext import FluxKontext


@pytest.mark.parametrize("kernel", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH], ids=["fused", "math"])
def test_both_ways_give_one_mass_and_leave_the_output_as_it_was(kernel: SDPBackend) -> None:
    model, given = tiny_transformer(), inputs(2)
    plain = denoise(model, given, guidance=False)
    with trace(model, family=FluxKontext()) as fused:
        assert all(map(torch.equal, plain, denoise(model, given, guidance=False)))
    assert fused.notes == ()
    with sdpa_kernel(kernel):
        plain = denoise(model, given, guidance=False)
        with trace(model, family=FluxKontext()) as t:
            assert all(map(torch.equal, plain, denoise(model, given, guidance=False)))
    assert bool(t.notes) == (kernel is SDPBackend.MATH)
    assert all("transformer_blocks.0" in note and "second product" in note for note in t.notes)
    assert t.maps().notes == t.notes and len(" ".join(t.notes)) < 300, "of many layers the first are named"
    for image in (0, 1):
        found, expected = t.maps(image).reference_mass, fused.maps(image).reference_mass
        assert found == pytest.approx(expected, abs=1e-6) and all(0 < mass < 1 for mass in found.values())


@pytest.mark.parametrize("mask", [None, "one", "each"])
@pytest.mark.parametrize("chunk_bytes", [1000, 2**20])
def test_the_product_of_ones_own_equals_a_materialised_softmax(mask: str | None, chunk_bytes: int) -> None:
    random = torch.Generator().manual_seed(0)
    q, k = torch.randn(3, 4, 10, 8, generator=random), torch.randn(3, 2, 21, 8, generator=random)
    hidden = None
    if mask is not None:
        hidden = torch.rand(3 if mask == "each" else 1, 1, 10, 21, generator=random) > 0.3
        hidden[..., :9] = True
    logits = q.double() @ k.double().repeat_interleave(2, 1).transpose(-1, -2) / 8**0.5
    if hidden is not None:
        logits = logits.masked_fill(~hidden, -torch.inf)
    expected = logits.softmax(-1)
    tokens = [slice(0, 4), torch.tensor([5, 7])]
    found = reference_mass(q, k, tokens, heads=(0, 3), mask=hidden, chunk_bytes=chunk_bytes)
    for i, own in enumerate(tokens):
        torch.testing.assert_close(found[i].double(), expected[:, [0, 3]][..., own].sum(-1), atol=1e-6, rtol=0)


def test_a_model_in_training_gives_its_normaliser_too() -> None:
    model, given = tiny_transformer(), inputs(1)
    with torch.enable_grad(), contextlib.ExitStack() as stack:
        t = stack.enter_context(trace(model, family=FluxKontext()))
        outputs = denoise.__wrapped__(model, given, guidance=False)
    assert outputs[0].requires_grad and t.notes == () and t.maps().reference_mass


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("hidden", [False, True])
def test_a_kernel_that_gives_none_is_asked_for_the_heads_alone(monkeypatch, mode: Any, hidden: bool) -> None:
    """As CUDA's efficient and cuDNN's give none where no gradient will ask for it."""
    random = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 4, 10, 8, generator=random), torch.randn(2, 4, 21, 8, generator=random)
    mask = None
    if hidden:
        mask = torch.rand(2, 1, 10, 21, generator=random) > 0.3
        mask[..., :2] = True
    logits = q.double() @ k.double().transpose(-1, -2) / 8**0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    with mode():
        found = taps.normaliser_of(q.clone(), k.clone(), None, mask)
    assert found is not None and not found.requires_grad
    torch.testing.assert_close(found.double(), logits.logsumexp(-1), atol=1e-5, rtol=0)
    assert taps._of_queries(None, 10) is None and taps._of_queries(torch.empty(2, 4, 0), 10) is None

    model, given = tiny_transformer(), inputs(2)
    with trace(model, family=FluxKontext()) as expected:
        denoise(model, given, guidance=False)
    own = taps.ModuleRun._tell
    monkeypatch.setattr(
        taps.ModuleRun, "_tell", lambda run, seen, layout: own(run, replace(seen, log_normaliser=None), layout)
    )
    with trace(model, family=FluxKontext()) as asked:
        denoise(model, given, guidance=False)
    assert asked.notes == ()
    assert asked.maps().reference_mass == pytest.approx(expected.maps().reference_mass, abs=1e-6)
