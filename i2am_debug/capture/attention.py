"""From queries and keys to both attribution directions: pure functions, streamed, the only place with a softmax.

Nothing of size G x R is ever kept: queries and keys are taken in chunks, and what leaves a chunk is a sum over it.

Shapes: B batch, N heads, G generated tokens, R reference tokens, H head dim; g, r the same after pooling.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch

from ..grids import Grid, pooled_grid

_CHUNK_BYTES = {"cpu": 4 * 2**20}  # of the largest temporary, by device
_CHUNK_BYTES_ELSEWHERE = 16 * 2**20  # fewer, larger kernels


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
    chunk_bytes: int | None = None,
) -> Attribution:
    """Both directions of one attention product (Park & Jang 2025, M_g and M_r), in float32 whatever the inputs' dtype.

    Args:
        heads: the query heads looked at, N of them in the result; default all. Keys may have fewer heads (grouped queries).
        scale: factor of the logits; default H^-0.5.
        query_weight_BG: ≥ 0, how much of each generated token lies in the query region (the hole); default all alike.
        key_weight_BR: ≥ 0, how much of each reference token lies on the object.
        chunk_bytes: size of the largest temporary; default by device.
    """
    with _float32(q_BNGH.device.type):
        work = _Workspace(q_BNGH, k_BNRH, heads, scale, chunk_bytes)
        parts = [_attribute(work, q, k, query_weight_BG, key_weight_BR) for q, k in work.heads()]
    if len(parts) == 1:
        return parts[0]
    found = {f.name: [getattr(part, f.name) for part in parts] for f in fields(Attribution)}
    return Attribution(**{name: None if each[0] is None else torch.cat(each, 1) for name, each in found.items()})


def _attribute(
    work: _Workspace,
    q: torch.Tensor,
    k: torch.Tensor,
    query_weight_BG: torch.Tensor | None,
    key_weight_BR: torch.Tensor | None,
) -> Attribution:
    """`attribute` of the workspace's queries and keys of some heads; changes the keys."""
    B, N, G, _ = q.shape
    R = k.shape[2]
    region_BG = _normalised(torch.ones(B, G, device=q.device) if query_weight_BG is None else query_weight_BG.float())
    g2r, g2r_region, entropy, mass = (torch.zeros(B, N, n, device=q.device) for n in (R, R, 1, G))
    for rows in work.chunks(q, k, over=q):
        p_BNcR = work.softmax(q[:, :, rows], k, -1)
        weight_B1c = region_BG[:, None, rows]
        g2r += p_BNcR.sum(2)
        g2r_region += (weight_B1c[:, :, None] @ p_BNcR)[:, :, 0]
        if key_weight_BR is not None:
            mass[:, :, rows] = (p_BNcR @ key_weight_BR.float()[:, None, :, None])[..., 0]
        entropy += (work.entropy(p_BNcR) * weight_B1c).sum(-1, keepdim=True)
    information = (torch.special.entr(g2r_region).sum(-1) - entropy[..., 0]) / torch.log(torch.tensor(2.0))
    r2g = _mean_softmax_over_queries(work, q, k)
    centred = k.sub_(k.mean(2, keepdim=True))
    return Attribution(
        r2g_BNG=r2g,
        r2g_centred_BNG=_mean_softmax_over_queries(work, q, centred),
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
    chunk_bytes: int | None = None,
) -> Rows:
    """G2R rows averaged over patches of generated tokens and summed over patches of reference tokens.

    A grid wider or higher than `side` is reduced to it; patches are as equal as whole tokens allow.
    """
    with _float32(q_BNGH.device.type):
        B, N = q_BNGH.shape[0], q_BNGH.shape[1] if heads is None else len(heads)
        device = q_BNGH.device
        share = _normalised(torch.ones(N, device=device) if head_weight_N is None else head_weight_N.to(device))
        bins = [
            (_patch_index(generated_grid, s, device), _patch_index(reference_grid, s, device))
            for s in (side, head_side)
        ]
        mean = torch.zeros(B, *(_count(i) for i in bins[0]), device=device)
        each = torch.zeros(B, N, *(_count(i) for i in bins[1]), device=device)
        done, work = 0, _Workspace(q_BNGH, k_BNRH, heads, scale, chunk_bytes)
        for q, k in work.heads():
            these = slice(done, done + q.shape[1])
            done = these.stop
            for rows in work.chunks(q, k, over=q):
                p_BNcR = work.softmax(q[:, :, rows], k, -1)
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
    chunk_bytes: int | None = None,
) -> torch.Tensor:
    """Share of the model's own attention rows that falls on each reference: (references, B, N, G), in [0, 1].

    Args:
        k_BNSH: all S keys of the product, of which `references` are index expressions (slices or index tensors).
        mask: the model's own, broadcastable to (B, N, G, S): True = seen, or added to the logits.
    """
    with _float32(q_BNGH.device.type):
        parts, work = [], _Workspace(q_BNGH, k_BNSH, heads, scale, chunk_bytes)
        for q, k in work.heads():
            B, N, G, _ = q.shape
            shares = torch.zeros(len(references), B, N, G, device=q.device)
            for rows in work.chunks(q, k, over=q):
                own = mask[..., rows, :] if mask is not None and mask.shape[-2] > 1 else mask
                p_BNcS = work.softmax(q[:, :, rows], k, -1, own)
                for i, tokens in enumerate(references):
                    shares[i, :, :, rows] = p_BNcS[..., tokens].sum(-1)
            parts.append(shares)
    return torch.cat(parts, 2)


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


class _Workspace:
    """Float32 queries and keys of a few heads at a time, and buffers for their softmax that all chunks share.

    A float32 copy of all heads would not stay small, and a new block for every chunk would scatter over the heap, which then
    keeps it.
    """

    def __init__(
        self,
        q_BNGH: torch.Tensor,
        k_BNRH: torch.Tensor,
        heads: Sequence[int] | None,
        scale: float | None,
        chunk_bytes: int | None,
    ) -> None:
        B, N, G, H = q_BNGH.shape
        R, device = k_BNRH.shape[2], q_BNGH.device
        self._q, self._k = q_BNGH, k_BNRH
        self._heads = range(N) if heads is None else heads
        self._scale = H**-0.5 if scale is None else scale
        self._bytes = chunk_bytes or _CHUNK_BYTES.get(device.type, _CHUNK_BYTES_ELSEWHERE)
        together = min(len(self._heads), max(1, self._bytes // (4 * B * (G + R) * H)))
        self._groups = [self._heads[i : i + together] for i in range(0, len(self._heads), together)]
        self._own_q, self._own_k = (torch.empty(B * together * tokens * H, device=device) for tokens in (G, R))
        largest = min(max(self._bytes // 4, B * together * max(G, R)), B * together * G * R)
        self._logits, self._weights = (torch.empty(largest, device=device) for _ in range(2))

    def heads(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Scaled queries and their keys, a group of heads at a time; overwritten by the next group."""
        share = self._q.shape[1] // self._k.shape[1]  # query heads that share a key head
        B, _, G, H = self._q.shape
        for group in self._groups:
            q = _view(self._own_q, (B, len(group), G, H))
            k = _view(self._own_k, (B, len(group), self._k.shape[2], H))
            for i, head in enumerate(group):
                q[:, i].copy_(self._q[:, head])
                k[:, i].copy_(self._k[:, head // share])
            yield q.mul_(self._scale), k

    def chunks(self, q: torch.Tensor, k: torch.Tensor, *, over: torch.Tensor) -> list[slice]:
        """Slices of the tokens of `over` (q or k) whose product with all of the other fits the buffers."""
        other = k if over is q else q
        return _chunks(over.shape[2], 4 * q.shape[0] * q.shape[1] * other.shape[2], self._bytes)

    def softmax(self, q: torch.Tensor, k: torch.Tensor, dim: int, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Softmax of q·k over `dim`, (B, N, queries, keys); overwritten by the next."""
        shape = (*q.shape[:3], k.shape[2])
        logits, weights = _view(self._logits, shape), _view(self._weights, shape)
        torch.bmm(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), out=logits.flatten(0, 1))
        if mask is not None:
            logits.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else logits.add_(mask)
        return torch.softmax(logits, dim, out=weights)

    def entropy(self, weights: torch.Tensor) -> torch.Tensor:
        """Of each row of what `softmax` gave last, in nats: (B, N, queries)."""
        return torch.special.entr(weights, out=_view(self._logits, weights.shape)).sum(-1)


def _view(buffer: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    return buffer[: math.prod(shape)].view(*shape)


def _mean_softmax_over_queries(work: _Workspace, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Mean over R of softmax over G: (B, N, G)."""
    total = torch.zeros(q.shape[:3], device=q.device)
    for keys in work.chunks(q, k, over=k):
        total += work.softmax(q, k[:, :, keys], 2).sum(-1)
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
