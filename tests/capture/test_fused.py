"""The kernels for CUDA against the same float64 truth; where there is no CUDA, as Triton's interpreter runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from row_sums import row_sums
from test_attention import assert_attribution, make, oracle

from i2am_debug.capture import fused
from i2am_debug.capture.attention import attribute
from i2am_debug.capture.rows import RowSums

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
# On the CPU: interpreters before 3.9 fail on today's numpy.
pytest.importorskip("triton", minversion=None if CUDA else "3.9")
fused_kernels = pytest.importorskip("i2am_debug.capture.fused_kernels")


@pytest.fixture(autouse=True)
def _fused(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On any device, and never the other way unseen."""
    monkeypatch.setattr(fused, "_DEVICES", ("cuda", "cpu"))
    yield
    assert not fused._failed


@pytest.mark.parametrize("sizes", [(2, 3, 35, 24, 8), (1, 2, 70, 1, 8), (1, 2, 1, 24, 20), (1, 4, 7, 130, 3)])
@pytest.mark.parametrize("regions", [True, False])
def test_both_directions_equal_the_materialised_softmax(sizes: tuple[int, ...], regions: bool) -> None:
    q, k, qw, kw = (x.to(DEVICE) for x in make(*sizes))
    weights = (qw, kw) if regions else (None, None)
    found = attribute(q, k, query_weight_BG=weights[0], key_weight_BR=weights[1])
    assert_attribution(found, oracle(q.cpu(), k.cpu(), *(w if w is None else w.cpu() for w in weights)))


@pytest.mark.parametrize(("generated", "reference"), [((8, 8), (4, 4)), ((4, 8), (8, 4)), ((8, 4), (1, 3))])
def test_rows_and_maps_are_those_of_the_other_way(generated: tuple[int, int], reference: tuple[int, int]) -> None:
    """Pooled to 4 and then 2 a side, in the order of their patches, of grouped queries of some heads of four."""
    q, k, qw, kw = make(2, 4, generated[0] * generated[1], reference[0] * reference[1], 8)
    k = k[:, :2]
    heads = {0: 3.0, 2: 0.5, 3: 0.5}
    found = []
    for device, chunk_bytes in ((DEVICE, None), ("cpu", 2**20)):
        rows = row_sums(generated, reference, heads, images=2, all_heads=4, sides=(4, 2), device=device)
        given = (x.to(device) for x in (q, k))
        weights = {"query_weight_BG": qw.to(device), "key_weight_BR": kw.to(device)}
        maps = attribute(*given, heads=tuple(heads), scale=0.9, rows=rows, chunk_bytes=chunk_bytes, **weights)
        found.append([maps.maps_BNX, maps.log_normaliser_BNG, rows.mean_Bgr, rows.heads_BNgr, rows.step_Bgr])
    for fused_, other in zip(*found, strict=True):
        torch.testing.assert_close(fused_.cpu(), other, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])])  # not interpreted
def test_other_dtypes_are_added_up_in_float32(dtype: torch.dtype) -> None:
    q, k, qw, kw = make(1, 2, 35, 24, 16)
    q, k = q.to(dtype), k.to(dtype)
    found = attribute(q.to(DEVICE), k.to(DEVICE), query_weight_BG=qw.to(DEVICE), key_weight_BR=kw.to(DEVICE))
    assert_attribution(found, oracle(q, k, qw, kw))


def test_columns_that_nobody_looks_at_are_not_lost() -> None:
    """Logits of standard deviation 64, of which float32 can't hold the columns' sums."""
    q, k, *_ = make(1, 1, 48, 40, 16, size=8.0)
    found, expected = attribute(q.to(DEVICE), k.to(DEVICE)), oracle(q, k)
    for name in ("r2g_BNG", "r2g_centred_BNG", "g2r_BNR"):
        torch.testing.assert_close(
            getattr(found, name).cpu().double(), torch.from_numpy(expected[name]), rtol=1e-4, atol=1e-7
        )


def test_what_the_kernels_do_not_know_is_left_to_the_other_way() -> None:
    def rows(grid: tuple[int, int]) -> RowSums:
        return row_sums(grid, (4, 4), {0: 1.0}, images=1, all_heads=1, sides=(4, 2))

    q = torch.empty(1, 24, 8)
    assert fused.can_fuse(q, q, None) and fused.can_fuse(q, q, rows((8, 4)))
    assert not fused.can_fuse(q, q, rows((6, 4))), "patches of unequal size"
    assert not fused.can_fuse(q, q, rows((12, 4))), "of three tokens"
    assert not fused.can_fuse(q.double(), q.double(), None)
    assert not fused.can_fuse(torch.empty(1, 24, 300), torch.empty(1, 24, 300), None)
    assert not fused.can_fuse(q.to("meta"), q.to("meta"), None)


def test_kernels_that_can_not_be_made_are_said_once_and_done_without(monkeypatch, caplog) -> None:
    def no_compiler(*args, **kwargs):
        raise RuntimeError("Failed to find C compiler.")

    class Kernel:
        def __init__(self, launched) -> None:
            self.launched = launched

        def __getitem__(self, programs):
            return self.launched

    monkeypatch.setattr(fused_kernels, "rows_kernel", Kernel(no_compiler))
    monkeypatch.setattr(fused, "_failed", set())
    q, k, *_ = (x.to(DEVICE) for x in make(1, 2, 12, 9, 4))
    with caplog.at_level("WARNING", "i2am_debug.capture.fused"):
        for _ in range(2):
            assert_attribution(attribute(q, k), oracle(q.cpu(), k.cpu()))
    [said] = caplog.records
    assert "Failed to find C compiler" in said.message

    def no_memory(*args, **kwargs):
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(fused_kernels, "rows_kernel", Kernel(no_memory))
    monkeypatch.setattr(fused, "_failed", set())
    with pytest.raises(torch.OutOfMemoryError):  # an evaluation then takes fewer pairs at once
        attribute(q, k)


def test_the_kernels_compile_for_cuda(tmp_path) -> None:
    """Without a GPU: what the interpreter lets pass, the compiler may not."""
    code = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from i2am_debug.capture import fused_kernels as kernels
shape = dict(ORDERED_G=True, ORDERED_R=True, BG=64, BR=64, BH=64)
pointers = {"q": "*bf16", "k": "*bf16", "order_g": "*i64", "order_r": "*i64"}
sums = "entropy shift region sums column_lse on_object spread wide".split()
kinds = {**pointers, **dict.fromkeys(sums, "*fp32"), "scale": "fp32"}
for kernel, more in (
    (kernels.rows_kernel, {}),
    (kernels.columns_kernel, dict(REGION=True)),
    (kernels.spread_kernel, dict(OBJECT=True, WIDE=True, FG=4, FR=4)),
):
    constants = {**shape, **more}
    signature = {n: "constexpr" if n in constants else kinds.get(n, "i32") for n in kernel.arg_names}
    named = {(kernel.arg_names.index(n),): value for n, value in constants.items()}
    made = triton.compile(ASTSource(kernel, signature, constexprs=named), target=GPUTarget("cuda", 80, 32))
    assert made.asm["cubin"]
"""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
