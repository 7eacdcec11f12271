"""The share of a branch in what is added up, formed some heads at a time, against the norms of the whole in float64."""

from __future__ import annotations

import pytest
import torch

from i2am_debug.capture import product
from i2am_debug.capture.mass import branch_share

B, N, Q, H = 3, 5, 12, 4


@pytest.mark.parametrize("room", [1, 4 * B * 2 * Q * H, 2**24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_branch_is_compared_with_the_sum_of_all(
    room: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(product._CHUNK_BYTES, "cpu", room)
    rng = torch.Generator().manual_seed(0)
    text, picture, other = (torch.randn(B, N, Q, H, generator=rng).to(dtype) for _ in range(3))
    at_tokens = torch.rand(1, Q, 1, generator=rng)
    outputs = [(1, text), (0.5, picture), (at_tokens, other)]
    images, tokens = slice(1, None), slice(2, 10)
    parts = [(factor * x.double())[images][:, :, tokens].flatten(1) for factor, x in outputs]
    for own in (1, 2):
        expected = parts[own].norm(dim=1) / sum(parts).norm(dim=1)
        found = branch_share(outputs, own, (images, tokens))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


def test_it_takes_a_fraction_of_the_memory_of_a_float32_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.real_sizes import Counted

    whole = [(1, torch.empty(1, 40, 4096, 128, dtype=torch.bfloat16, device="meta")) for _ in range(2)]
    with Counted() as counter:
        branch_share(whole, 1, (slice(None), slice(None)))
    outputs = sum(x.nbytes for _, x in whole)
    assert counter.peak - outputs < outputs / 2


def test_without_anything_added_it_is_zero_and_not_undefined() -> None:
    nothing = torch.zeros(1, 2, 3, 4)
    assert float(branch_share([(1, nothing), (1, nothing)], 1, (slice(None), slice(None)))) == 0
