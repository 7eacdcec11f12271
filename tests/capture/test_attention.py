"""Streamed attribution against a float64 softmax over materialised logits, written from SPEC and not from the code.

Shapes: B batch, N heads, G generated tokens, R reference tokens, H head dim.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from row_sums import pooled_rows, row_sums
from torch.overrides import TorchFunctionMode

from i2am_debug.capture import attention
from i2am_debug.capture.attention import Attribution, attribute
from i2am_debug.grids import pooled_grid, region_weight

MAPS = ("r2g_BNG", "r2g_centred_BNG", "r2g_object_mass_BNG", "g2r_BNR", "g2r_region_BNR")
SIZES = [(2, 3, 35, 24, 8), (1, 2, 35, 1, 8), (2, 1, 1, 24, 8), (1, 1, 1, 1, 1), (1, 4, 7, 50, 3)]


def make(B: int, N: int, G: int, R: int, H: int, *, seed: int = 0, size: float = 2.0) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(seed)
    q, k = (size * torch.randn(B, N, n, H, generator=rng) for n in (G, R))
    return q, k, torch.rand(B, G, generator=rng) + 0.01, torch.rand(B, R, generator=rng) + 0.01


def softmax(logits: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(logits - logits.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log2(np.where(p > 0, p, 1))).sum(-1)


def oracle(
    q: torch.Tensor,
    k: torch.Tensor,
    query_weight: torch.Tensor | None = None,
    key_weight: torch.Tensor | None = None,
    scale: float | None = None,
) -> dict[str, np.ndarray]:
    """SPEC's two directions, in float64, with every G x R array in memory."""
    q, k = q.double().numpy(), k.double().numpy()
    logits = q @ np.swapaxes(k, -1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    rows = softmax(logits, -1)
    B, _, G, _ = logits.shape
    w = np.ones((B, G)) if query_weight is None else query_weight.double().numpy()
    w = (w / w.sum(-1, keepdims=True))[:, None, :, None]
    out = {
        "r2g_BNG": softmax(logits, -2).mean(-1),
        "r2g_centred_BNG": softmax(logits - logits.mean(-1, keepdims=True), -2).mean(-1),
        "g2r_BNR": rows.mean(-2),
        "g2r_region_BNR": (rows * w).sum(-2),
        "information_BN": entropy((rows * w).sum(-2)) - (entropy(rows) * w[..., 0]).sum(-1),
    }
    if key_weight is not None:
        mass = (rows * key_weight.double().numpy()[:, None, None, :]).sum(-1)
        out["r2g_object_mass_BNG"] = mass / mass.sum(-1, keepdims=True)
    return out


def assert_same(found: torch.Tensor, expected: np.ndarray, name: str = "", tolerance: float = 1e-5) -> None:
    assert found.dtype == torch.float32, name
    assert tuple(found.shape) == expected.shape, name
    error = np.abs(found.double().cpu().numpy() - expected).max() / np.abs(expected).max()
    assert error <= tolerance, f"{name}: off by {error:.1e} of its maximum"


def assert_attribution(found: Attribution, expected: dict[str, np.ndarray]) -> None:
    for name in MAPS:
        if name in expected:
            assert_same(getattr(found, name), expected[name], name)
    # bits are a difference of two entropies of up to log2 R, so the error is measured against that
    bits = found.information_BN.double().cpu().numpy()
    R = expected["g2r_BNR"].shape[-1]
    assert np.abs(bits - expected["information_BN"]).max() <= 1e-5 * max(1.0, np.log2(R))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_both_directions_equal_the_materialised_softmax(sizes: tuple[int, ...], scale: float | None) -> None:
    q, k, qw, kw = make(*sizes)
    found = attribute(q, k, scale=scale, query_weight_BG=qw, key_weight_BR=kw, chunk_bytes=1000)
    assert_attribution(found, oracle(q, k, qw, kw, scale))


def test_the_default_scale_is_one_over_the_root_of_the_head_dim() -> None:
    q, k, *_ = make(1, 2, 6, 5, 16)
    assert_same(attribute(q, k).g2r_BNR, oracle(q, k, scale=0.25)["g2r_BNR"])


@pytest.mark.parametrize("chunk_bytes", [1, 500, 4096, 2**24])
def test_the_chunk_size_changes_nothing(chunk_bytes: int) -> None:
    q, k, qw, kw = make(2, 3, 35, 24, 8, seed=1)
    found = attribute(q, k, query_weight_BG=qw, key_weight_BR=kw, chunk_bytes=chunk_bytes)
    assert_attribution(found, oracle(q, k, qw, kw))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_computed_in_float32(dtype: torch.dtype) -> None:
    q, k, qw, kw = (x.to(dtype) for x in make(2, 2, 35, 24, 8, seed=2))
    found = attribute(q, k, query_weight_BG=qw, key_weight_BR=kw, chunk_bytes=2000)
    assert_attribution(found, oracle(q, k, qw, kw))


def test_a_region_may_be_given_as_booleans() -> None:
    q, k, qw, kw = make(2, 2, 12, 9, 4)
    qw, kw = qw > 0.5, kw > 0.5
    assert_attribution(attribute(q, k, query_weight_BG=qw, key_weight_BR=kw), oracle(q, k, qw, kw))


def test_autocast_outside_makes_no_difference() -> None:
    q, k, qw, kw = make(1, 2, 20, 12, 8)
    plain = attribute(q, k, query_weight_BG=qw, key_weight_BR=kw)
    rows = pooled_rows(q, k, (4, 5), (3, 4), side=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (q[0, 0] @ k[0, 0].T).dtype == torch.bfloat16  # autocast is really on
        cast = attribute(q, k, query_weight_BG=qw, key_weight_BR=kw)
        cast_rows = pooled_rows(q, k, (4, 5), (3, 4), side=2)
    for name in (*MAPS, "information_BN"):
        assert torch.equal(getattr(plain, name), getattr(cast, name)), name
    assert torch.equal(rows.mean_Bgr, cast_rows.mean_Bgr)
    assert torch.equal(rows.heads_BNgr, cast_rows.heads_BNgr)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_a_lower_matmul_precision_outside_makes_no_difference_and_stays(precision: str) -> None:
    """Training scripts allow TF32 or bfloat16 products; they can be seen on CPUs that have such instructions."""
    q, k, qw, kw = make(1, 1, 300, 200, 64, size=1.0)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        found = attribute(q, k, query_weight_BG=qw, key_weight_BR=kw)
        rows = pooled_rows(q, k, (15, 20), (10, 20), side=32, head_side=32)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert_attribution(found, oracle(q, k, qw, kw))
    logits = q[0].double().numpy() @ k[0].double().numpy().swapaxes(-1, -2) / 8
    assert_same(rows.mean_Bgr, softmax(logits, -1))
    assert_same(rows.heads_BNgr, softmax(logits, -1)[None])


def test_every_map_sums_to_one_and_nothing_asks_for_gradients() -> None:
    q, k, qw, kw = make(2, 3, 35, 24, 8, seed=3)
    found = attribute(q.requires_grad_(), k.requires_grad_(), query_weight_BG=qw, key_weight_BR=kw)
    for name in MAPS:
        value = getattr(found, name)
        assert not value.requires_grad
        np.testing.assert_allclose(value.sum(-1), 1, atol=1e-6)


def test_without_regions_g2r_region_is_g2r_and_there_is_no_object_mass() -> None:
    q, k, *_ = make(1, 2, 10, 6, 4)
    found = attribute(q, k)
    np.testing.assert_allclose(found.g2r_region_BNR, found.g2r_BNR, atol=1e-7)
    assert found.r2g_object_mass_BNG is None


def test_a_shift_of_all_logits_of_a_generated_token_moves_only_the_papers_r2g() -> None:
    q, k, qw, kw = make(1, 2, 35, 24, 8, seed=4, size=1.0)
    f = 3 * torch.randn(1, 2, 35, 1, generator=torch.Generator().manual_seed(5))
    scale = 8**-0.5
    shifted_q, shifted_k = torch.cat([q, f / scale], -1), torch.cat([k, torch.ones(1, 2, 24, 1)], -1)
    before = attribute(q, k, scale=scale, query_weight_BG=qw, key_weight_BR=kw)
    after = attribute(shifted_q, shifted_k, scale=scale, query_weight_BG=qw, key_weight_BR=kw)
    for name in set(MAPS) - {"r2g_BNG"}:
        assert_same(getattr(after, name), getattr(before, name).double().numpy(), name)
    np.testing.assert_allclose(after.information_BN, before.information_BN, atol=1e-5)
    moved = (after.r2g_BNG - before.r2g_BNG).abs().amax(-1) / before.r2g_BNG.amax(-1)
    assert (moved > 0.5).all()
    assert_attribution(after, oracle(shifted_q, shifted_k, qw, kw, scale))


@pytest.mark.parametrize("R", [2, 16, 24])
def test_a_one_to_one_map_carries_log2_R_bits(R: int) -> None:
    q = 100 * torch.eye(R)[None, None]
    information = attribute(q, torch.eye(R)[None, None], scale=1.0).information_BN
    np.testing.assert_allclose(information, [[np.log2(R)]], atol=1e-5)


def test_equal_rows_carry_no_information() -> None:
    _, k, *_ = make(1, 3, 1, 24, 8)
    q = torch.randn(1, 3, 1, 8, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 35, -1)
    information = attribute(q, k).information_BN
    assert (information >= 0).all()
    assert information.max() < 1e-5


def test_the_query_region_decides_which_rows_count() -> None:
    """Half of the queries look at one token, half map one-to-one; each half alone has a known information."""
    q = torch.cat([100 * torch.eye(8), 100 * torch.eye(8)[:1].expand(8, -1)])[None, None]
    k = torch.eye(8)[None, None]
    first = torch.cat([torch.ones(8), torch.zeros(8)])[None]
    there, elsewhere = (attribute(q, k, scale=1.0, query_weight_BG=w) for w in (first, 1 - first))
    assert there.information_BN.item() == pytest.approx(3, abs=1e-5)
    assert elsewhere.information_BN.item() == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(there.g2r_region_BNR[0, 0], np.full(8, 1 / 8), atol=1e-6)
    np.testing.assert_allclose(elsewhere.g2r_region_BNR[0, 0], np.eye(8)[0], atol=1e-6)
    np.testing.assert_allclose(there.g2r_BNR[0, 0], np.eye(8)[0] / 2 + 1 / 16, atol=1e-6)


def test_the_weight_of_a_region_has_no_unit() -> None:
    q, k, qw, kw = make(1, 2, 10, 6, 4)
    a, b = (attribute(q, k, query_weight_BG=s * qw, key_weight_BR=s * kw) for s in (1, 50))
    for name in MAPS:
        assert_same(getattr(b, name), getattr(a, name).double().numpy(), name, 1e-6)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(*(st.integers(1, n) for n in (2, 3, 12, 12, 6))),
    size=st.floats(0, 6),
    chunk_bytes=st.integers(1, 3000),
    seed=st.integers(0, 99),
)
def test_any_small_size_and_chunk(sizes: tuple[int, ...], size: float, chunk_bytes: int, seed: int) -> None:
    q, k, qw, kw = make(*sizes, seed=seed, size=size)
    found = attribute(q, k, query_weight_BG=qw, key_weight_BR=kw, chunk_bytes=chunk_bytes)
    assert_attribution(found, oracle(q, k, qw, kw))
    bits = found.information_BN
    assert (bits >= 0).all()
    assert (bits <= np.log2(sizes[3]) + 1e-5).all()


@pytest.mark.parametrize("size", [3.0, 8.0, 24.0])  # logits' standard deviations of about 9, 64 and 576
@pytest.mark.parametrize("chunk_bytes", [2000, 2**20])
def test_columns_whose_sums_leave_the_range_of_float32_are_formed_directly(size: float, chunk_bytes: int) -> None:
    """A column's largest logit may lie hundreds below the largest row normaliser: its terms are then 0 in float32."""
    q, k, qw, kw = make(2, 3, 35, 24, 8, seed=7, size=size)
    scale = 0.353
    found = attribute(q, k, scale=scale, query_weight_BG=qw, key_weight_BR=kw, chunk_bytes=chunk_bytes)
    expected = oracle(q, k, qw, kw, scale)
    for name in MAPS:  # float32 logits of size 2000 are 1e-4 off, and so are their exponentials
        assert_same(getattr(found, name), expected[name], name, 1e-5 * max(1, size**2 / 25))
    lost = []
    with pytest.MonkeyPatch.context() as patched:
        direct = attention._Part._mean_softmax_over_queries
        patched.setattr(attention._Part, "_mean_softmax_over_queries", lambda *a: lost.append(1) or direct(*a))
        attribute(q, k, scale=scale, chunk_bytes=chunk_bytes)
    assert bool(lost) == (size > 4)


@pytest.mark.parametrize("sizes", SIZES)
def test_where_asking_would_keep_a_device_waiting_all_is_formed_directly(
    sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, qw, kw = make(*sizes, seed=8)
    one_pass = attribute(q, k, query_weight_BG=qw, key_weight_BR=kw)
    monkeypatch.setattr(attention, "_READABLE", ())
    direct = attribute(q, k, query_weight_BG=qw, key_weight_BR=kw)
    assert_attribution(direct, oracle(q, k, qw, kw))
    for name in MAPS:
        assert_same(getattr(one_pass, name), getattr(direct, name).double().numpy(), name, 2e-6)


@pytest.mark.parametrize("chunk_bytes", [1500, 2**20])
@pytest.mark.parametrize(("generated", "reference"), [((8, 16), (16, 8)), ((5, 9), (7, 6))])
def test_the_order_in_which_rows_are_pooled_changes_no_map(
    generated: tuple[int, int], reference: tuple[int, int], chunk_bytes: int
) -> None:
    q, k, qw, kw = make(2, 3, math.prod(generated), math.prod(reference), 8, seed=9)
    rows = row_sums(generated, reference, dict.fromkeys(range(3), 1.0), images=2, all_heads=3, sides=(4, 2))
    assert any(p.order is not None for p in rows.patches) or generated == (5, 9)
    found = attribute(q, k, query_weight_BG=qw, key_weight_BR=kw, rows=rows, chunk_bytes=chunk_bytes)
    assert_attribution(found, oracle(q, k, qw, kw))
    lse = torch.logsumexp(q.double() @ k.double().transpose(-1, -2) * 8**-0.5, -1)
    assert_same(found.log_normaliser_BNG, lse.numpy())


def test_chosen_heads_are_those_of_the_whole() -> None:
    q, k, qw, kw = make(2, 6, 20, 12, 4, seed=10)
    k = k[:, :3]  # each key head serves two query heads
    whole = oracle(q, k.repeat_interleave(2, 1), qw, kw)
    for heads in ((1, 4), (2, 3, 5), (5, 0)):
        rows = row_sums((4, 5), (3, 4), dict.fromkeys(heads, 1.0), images=2, all_heads=6)
        found = attribute(q, k, heads=heads, query_weight_BG=qw, key_weight_BR=kw, rows=rows, chunk_bytes=1500)
        assert_attribution(found, {n: v[:, list(heads)] for n, v in whole.items()})
        p = softmax(q.double().numpy() @ np.swapaxes(k.repeat_interleave(2, 1).double().numpy(), -1, -2) / 2, -1)
        others = [h for h in range(6) if h not in heads]
        assert_same(rows.heads_BNgr[:, list(heads)], p[:, list(heads)])
        assert not rows.heads_BNgr[:, others].any()


class LargestTensor(TorchFunctionMode):
    """Remembers the size of the largest tensor that any operation returned."""

    bytes = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.bytes = max(self.bytes, out.numel() * out.element_size())
        return out


def test_nothing_of_size_G_times_R_is_ever_made() -> None:
    q, k, qw, kw = make(1, 2, 300, 200, 4)
    inputs = max(4 * q.numel(), 4 * 2 * (3 * 300 + 2 * 200 + 1))  # or what is given back
    with LargestTensor() as largest:
        attribute(q, k, query_weight_BG=qw, key_weight_BR=kw, chunk_bytes=8000)
        assert 0 < largest.bytes <= max(8000, inputs) < 4 * 300 * 200 // 8
        largest.bytes = 0
        pooled_rows(q, k, (15, 20), (10, 20), side=4, head_side=4, chunk_bytes=8000)
        assert 0 < largest.bytes <= max(8000, inputs)


def patch_of(i: int, length: int, side: int) -> int:
    """The last patch that begins at or before token i, patches being length / side tokens long."""
    patches = min(length, side)
    return max(p for p in range(patches) if p * length <= i * patches)


def rows_oracle(
    p: np.ndarray, generated: tuple[int, int], reference: tuple[int, int], side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pools (…, G, R) rows token by token; returns them and the number of tokens in each generated patch."""
    g, r = ((min(h, side), min(w, side)) for h, w in (generated, reference))
    out, tokens = np.zeros((*p.shape[:-2], g[0] * g[1], r[0] * r[1])), np.zeros(g[0] * g[1])
    for i in range(p.shape[-2]):
        gp = patch_of(i // generated[1], generated[0], side) * g[1] + patch_of(i % generated[1], generated[1], side)
        tokens[gp] += 1
        for j in range(p.shape[-1]):
            y, x = divmod(j, reference[1])
            rp = patch_of(y, reference[0], side) * r[1] + patch_of(x, reference[1], side)
            out[..., gp, rp] += p[..., i, j]
    return out / tokens[:, None], tokens


@pytest.mark.parametrize(
    ("generated", "reference", "side", "head_side"),
    [
        ((5, 7), (4, 6), 32, 16),  # nothing to pool
        ((4, 8), (8, 4), 4, 2),  # divisible, non-square
        ((7, 5), (5, 8), 4, 2),  # not divisible
        ((2, 9), (6, 1), 6, 3),  # one side pooled, the other kept
        ((8, 8), (6, 6), 4, 2),  # divisible in two steps, and not in the first
        ((12, 8), (16, 8), 8, 4),  # not in the first, and in both
        ((3, 4), (1, 1), 2, 2),  # one reference token
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk_bytes", [700, 2**20])
def test_pooled_rows_equal_pooling_of_the_materialised_rows(
    generated: tuple[int, int], reference: tuple[int, int], side: int, head_side: int, weighted: bool, chunk_bytes: int
) -> None:
    q, k, *_ = make(2, 3, generated[0] * generated[1], reference[0] * reference[1], 4, seed=6)
    p = softmax(q.double().numpy() @ np.swapaxes(k.double().numpy(), -1, -2) * 0.5, -1)
    weight = (1.0, 1.0, 4.0) if weighted else None
    found = pooled_rows(
        q, k, generated, reference, head_weights=weight, side=side, head_side=head_side, chunk_bytes=chunk_bytes
    )
    share = np.array([1, 1, 4]) / 6 if weighted else np.ones(3) / 3
    assert_same(found.mean_Bgr, rows_oracle(np.einsum("bngr,n->bgr", p, share), generated, reference, side)[0])
    assert_same(found.heads_BNgr, rows_oracle(p, generated, reference, head_side)[0])
    for rows, s in ((found.mean_Bgr, side), (found.heads_BNgr, head_side)):
        grids = [pooled_grid(g, s) for g in (generated, reference)]
        assert tuple(rows.shape[-2:]) == tuple(h * w for h, w in grids)
        np.testing.assert_allclose(rows.sum(-1), 1, atol=1e-6)


def test_patches_hold_equally_many_tokens_as_far_as_possible() -> None:
    """A uniform attention shows how many reference tokens each patch holds."""
    q = torch.zeros(1, 1, 1, 2)
    for length in range(1, 12):
        k = torch.zeros(1, 1, length, 2)
        tokens = pooled_rows(q, k, (1, 1), (1, length), side=4).mean_Bgr[0, 0] * length
        assert len(tokens) == min(4, length)
        assert tokens.max() - tokens.min() < 1 + 1e-5


def test_pooled_rows_of_bfloat16_inputs_are_computed_in_float32() -> None:
    q, k, *_ = (x.bfloat16() for x in make(1, 2, 12, 12, 4))
    p = softmax(q.double().numpy() @ np.swapaxes(k.double().numpy(), -1, -2) * 0.5, -1)
    assert_same(pooled_rows(q, k, (3, 4), (4, 3), side=2).mean_Bgr, rows_oracle(p.mean(1), (3, 4), (4, 3), 2)[0])


def test_region_weight_is_the_share_of_each_token_inside_the_mask() -> None:
    mask = torch.zeros(2, 8, 12)
    mask[0, 2:4, 3:8] = 1
    mask[1, :4] = 0.5
    expected = mask.double().numpy().reshape(2, 4, 2, 3, 4).mean((2, 4)).reshape(2, 12)
    np.testing.assert_allclose(region_weight(mask, (4, 3)), expected, atol=1e-6)
    np.testing.assert_allclose(region_weight(mask[0] > 0, (4, 3)), expected[0], atol=1e-6)
    assert expected[0].tolist() == [0, 0, 0, 0.25, 1, 0, *[0] * 6]
