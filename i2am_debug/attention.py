"""From queries and keys to both attribution directions: pure functions, streamed, the only place with a softmax.

Nothing of size G x R is ever kept: queries and keys are taken in chunks, and what leaves a chunk is a sum over it.

Shapes: B batch, N heads, G generated tokens, R reference tokens, H head dim; g, r the same after pooling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F

Grid = tuple[int, int]
"""(height, width) in tokens."""

_CHUNK_BYTES = 4 * 2**20


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """What one attention product says, per image and head. Maps are float32 and sum to 1 over their last dimension."""

    r2g_BNG: torch.Tensor
    """Mean over R of softmax over G (M_g of the paper)."""
    r2g_centred_BNG: torch.Tensor
    """The same of (logits − their mean over R): unmoved by anything that shifts all logits of a generated token."""
    r2g_object_mass_BNG: torch.Tensor | None
    """Share of each generated token's G2R row on the reference object, normalised; None without an object."""
    g2r_BNR: torch.Tensor
    """Mean over G of softmax over R (M_r of the paper)."""
    g2r_region_BNR: torch.Tensor
    """The same over the query region only; equals `g2r_BNR` without one."""
    information_BN: torch.Tensor
    """Attention information of the query region in bits."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """G2R rows pooled to small grids; a row is one generated patch's distribution over reference patches, sum 1."""

    mean_Bgr: torch.Tensor
    """Weighted mean over heads, grids at most `side` on either side."""
    heads_BNgr: torch.Tensor
    """Each head, grids at most `head_side` on either side."""


@torch.no_grad()
def attribute(
    q_BNGH: torch.Tensor,
    k_BNRH: torch.Tensor,
    *,
    heads: Sequence[int] | None = None,
    scale: float | None = None,
    query_weight_BG: torch.Tensor | None = None,
    key_weight_BR: torch.Tensor | None = None,
    chunk_bytes: int = _CHUNK_BYTES,
) -> Attribution:
    """Both directions of one attention product (Park & Jang 2025, M_g and M_r), in float32 whatever the inputs' dtype.

    Args:
        heads: the query heads looked at, N of them in the result; default all. Keys may have fewer heads (grouped queries).
        scale: factor of the logits; default H^-0.5.
        query_weight_BG: ≥ 0, how much of each generated token lies in the query region (the hole); default all alike.
        key_weight_BR: ≥ 0, how much of each reference token lies on the object.
        chunk_bytes: size of the largest temporary.
    """
    with _float32(q_BNGH.device.type):
        weights: dict[str, Any] = {
            "query_weight_BG": query_weight_BG,
            "key_weight_BR": key_weight_BR,
            "chunk_bytes": chunk_bytes,
        }
        parts = [_attribute(q, k, **weights) for q, k in _in_float32(q_BNGH, k_BNRH, heads, scale, chunk_bytes)]
    if len(parts) == 1:
        return parts[0]
    found = {f.name: [getattr(part, f.name) for part in parts] for f in fields(Attribution)}
    return Attribution(**{name: None if each[0] is None else torch.cat(each, 1) for name, each in found.items()})


def _attribute(
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    query_weight_BG: torch.Tensor | None,
    key_weight_BR: torch.Tensor | None,
    chunk_bytes: int,
) -> Attribution:
    """`attribute` of scaled float32 queries and as many heads of keys."""
    B, N, G, _ = q.shape
    R = k.shape[2]
    region_BG = _normalised(torch.ones(B, G, device=q.device) if query_weight_BG is None else query_weight_BG.float())
    g2r, g2r_region, entropy, mass = (torch.zeros(B, N, n, device=q.device) for n in (R, R, 1, G))
    for rows in _chunks(G, 4 * B * N * R, chunk_bytes):
        p_BNcR = (q[:, :, rows] @ k.transpose(-1, -2)).softmax(-1)
        weight_B1c = region_BG[:, None, rows]
        g2r += p_BNcR.sum(2)
        g2r_region += (weight_B1c[:, :, None] @ p_BNcR)[:, :, 0]
        entropy += (torch.special.entr(p_BNcR).sum(-1) * weight_B1c).sum(-1, keepdim=True)
        if key_weight_BR is not None:
            mass[:, :, rows] = (p_BNcR @ key_weight_BR.float()[:, None, :, None])[..., 0]
    centred = k - k.mean(2, keepdim=True)
    information = (torch.special.entr(g2r_region).sum(-1) - entropy[..., 0]) / torch.log(torch.tensor(2.0))
    return Attribution(
        r2g_BNG=_mean_softmax_over_queries(q, k, chunk_bytes),
        r2g_centred_BNG=_mean_softmax_over_queries(q, centred, chunk_bytes),
        r2g_object_mass_BNG=None if key_weight_BR is None else _normalised(mass),
        g2r_BNR=g2r / G,
        g2r_region_BNR=g2r_region,
        information_BN=information.clamp_min(0),
    )


@torch.no_grad()
def pooled_rows(
    q_BNGH: torch.Tensor,
    k_BNRH: torch.Tensor,
    generated_grid: Grid,
    reference_grid: Grid,
    *,
    heads: Sequence[int] | None = None,
    scale: float | None = None,
    head_weight_N: torch.Tensor | None = None,
    side: int = 32,
    head_side: int = 16,
    chunk_bytes: int = _CHUNK_BYTES,
) -> Rows:
    """G2R rows averaged over patches of generated tokens and summed over patches of reference tokens.

    A grid wider or higher than `side` is reduced to it; patches are as equal as whole tokens allow.
    """
    with _float32(q_BNGH.device.type):
        B, N, G = q_BNGH.shape[0], q_BNGH.shape[1] if heads is None else len(heads), q_BNGH.shape[2]
        device = q_BNGH.device
        share = _normalised(torch.ones(N, device=device) if head_weight_N is None else head_weight_N.to(device))
        bins = [
            (_patch_index(generated_grid, s, device), _patch_index(reference_grid, s, device))
            for s in (side, head_side)
        ]
        mean = torch.zeros(B, *(_count(i) for i in bins[0]), device=device)
        each = torch.zeros(B, N, *(_count(i) for i in bins[1]), device=device)
        done = 0
        for q, k in _in_float32(q_BNGH, k_BNRH, heads, scale, chunk_bytes):
            these = slice(done, done + q.shape[1])
            done = these.stop
            for rows in _chunks(G, 4 * B * q.shape[1] * k.shape[2], chunk_bytes):
                p_BNcR = (q[:, :, rows] @ k.transpose(-1, -2)).softmax(-1)
                p_BcR = torch.einsum("bncr,n->bcr", p_BNcR, share[these])
                mean.index_add_(1, bins[0][0][rows], _sum_columns(p_BcR, bins[0][1]))
                each[:, these].index_add_(2, bins[1][0][rows], _sum_columns(p_BNcR, bins[1][1]))
        return Rows(mean_Bgr=_normalised(mean), heads_BNgr=_normalised(each))


@torch.no_grad()
def reference_mass(
    q_BNGH: torch.Tensor,
    k_BNSH: torch.Tensor,
    references: Sequence[Any],
    *,
    heads: Sequence[int] | None = None,
    scale: float | None = None,
    mask: torch.Tensor | None = None,
    chunk_bytes: int = _CHUNK_BYTES,
) -> torch.Tensor:
    """Share of the model's own attention rows that falls on each reference: (references, B, N), in [0, 1].

    Args:
        k_BNSH: all S keys of the product, of which `references` are index expressions (slices or index tensors).
        mask: the model's own, broadcastable to (B, N, G, S): True = seen, or added to the logits.
    """
    with _float32(q_BNGH.device.type):
        parts = []
        for q, k in _in_float32(q_BNGH, k_BNSH, heads, scale, chunk_bytes):
            B, N, G, _ = q.shape
            total = torch.zeros(len(references), B, N, device=q.device)
            for rows in _chunks(G, 4 * B * N * k.shape[2], chunk_bytes):
                logits = q[:, :, rows] @ k.transpose(-1, -2)
                if mask is not None:
                    own = mask[..., rows, :] if mask.shape[-2] > 1 else mask
                    logits = logits.masked_fill(~own, -torch.inf) if own.dtype == torch.bool else logits + own.float()
                p_BNcS = logits.softmax(-1)
                for i, tokens in enumerate(references):
                    total[i] += p_BNcS[..., tokens].sum((-1, -2))
            parts.append(total / G)
    return torch.cat(parts, -1)


def pooled_grid(grid: Grid, side: int) -> Grid:
    """The grid that `pooled_rows` reduces `grid` to."""
    return min(grid[0], side), min(grid[1], side)


def region_weight(mask: torch.Tensor, grid: Grid) -> torch.Tensor:
    """How much of each token lies inside the mask (..., H, W) in [0, 1]: (..., h·w), its mean over the token's pixels."""
    flat = mask.float().reshape(-1, 1, *mask.shape[-2:])
    return F.adaptive_avg_pool2d(flat, grid).reshape(*mask.shape[:-2], grid[0] * grid[1])


@contextmanager
def _float32(device_type: str) -> Iterator[None]:
    """Autocast off, and float32 products in float32: training scripts allow TF32 or bfloat16 ones, which are 1e-3 off."""
    matmuls: list[Any] = [getattr(backend, "matmul", None) for backend in (torch.backends.cuda, torch.backends.mkldnn)]
    matmuls = [
        m for m in matmuls if hasattr(m, "fp32_precision")
    ]  # torch 2.9; must not be mixed with the older function
    before = [m.fp32_precision for m in matmuls] or torch.get_float32_matmul_precision()
    try:
        for m in matmuls:
            m.fp32_precision = "ieee"
        if not matmuls:
            torch.set_float32_matmul_precision("highest")
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for m, value in zip(matmuls, before, strict=False):
            m.fp32_precision = value
        if not matmuls:
            torch.set_float32_matmul_precision(before)


def _in_float32(
    q_BNGH: torch.Tensor, k_BNRH: torch.Tensor, heads: Sequence[int] | None, scale: float | None, chunk_bytes: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Scaled queries and their keys in float32, a few heads at a time: float32 copies of all would not stay small."""
    B, N, G, H = q_BNGH.shape
    group = N // k_BNRH.shape[1]  # query heads that share a key head
    heads = range(N) if heads is None else heads
    scale = H**-0.5 if scale is None else scale
    for chunk in _chunks(len(heads), 4 * B * (G + k_BNRH.shape[2]) * H, chunk_bytes):
        chosen = list(heads[chunk])
        yield q_BNGH[:, chosen].float() * scale, k_BNRH[:, [n // group for n in chosen]].float()


def _mean_softmax_over_queries(q: torch.Tensor, k: torch.Tensor, chunk_bytes: int) -> torch.Tensor:
    """Mean over R of softmax over G: (B, N, G)."""
    B, N, G, _ = q.shape
    total = torch.zeros(B, N, G, device=q.device)
    for keys in _chunks(k.shape[2], 4 * B * N * G, chunk_bytes):
        total += (q @ k[:, :, keys].transpose(-1, -2)).softmax(2).sum(-1)
    return total / k.shape[2]


def _chunks(length: int, bytes_each: int, chunk_bytes: int) -> list[slice]:
    size = max(1, chunk_bytes // bytes_each)
    return [slice(a, min(a + size, length)) for a in range(0, length, size)]


def _patch_index(grid: Grid, side: int, device: torch.device) -> torch.Tensor:
    """For each token of `grid`, row by row, the number of its patch: (h·w,)."""
    (h, w), (ph, pw) = grid, pooled_grid(grid, side)
    y, x = torch.arange(h, device=device) * ph // h, torch.arange(w, device=device) * pw // w
    return (y[:, None] * pw + x).reshape(-1)


def _count(index: torch.Tensor) -> int:
    return int(index[-1]) + 1


def _sum_columns(p: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    if _count(index) == len(index):
        return p
    return p.new_zeros(*p.shape[:-1], _count(index)).index_add_(-1, index, p)


def _normalised(x: torch.Tensor) -> torch.Tensor:
    return x / x.sum(-1, keepdim=True).clamp_min(1e-30)
