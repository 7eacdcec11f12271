"""From queries and keys to both attribution directions and rows: pure functions, streamed.

One product of queries and keys and one exponential give everything. With P the softmax over the reference and lse_g its
logarithmic normaliser, the softmax over the generated tokens is P_gr · exp(lse_g) / D_r with D_r = Σ_g exp(lse_g) P_gr, so that
all maps are sums over P, which are thin matrix products. Centred logits have the lse of centred keys; those of the paper are
that plus q_g · mean key. Nothing of size G x R is kept: a product that doesn't fit the processor's cache is taken in chunks of
generated tokens, and formed a second time for the D of all of them.

Shapes: B batch, N heads, G generated tokens, R reference tokens, H head dim; g, r the same after pooling; U units, the heads
of some images one after the other; c a chunk of generated tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..grids import Grid
from .patches import Patches, column_patches, row_patches
from .precision import float32_products
from .product import Work, normalised, shares

_LEAST_COLUMN_SUM = 1e-25  # below it, what float32 has lost of the terms of D would be seen
_READABLE = ("cpu",)  # devices on which a look at a number keeps nothing waiting


@dataclass(frozen=True, kw_only=True)
class Rows:
    """G2R rows pooled to small grids; a row is one generated patch's distribution over reference patches, sum 1."""

    mean_Bgr: torch.Tensor
    """Weighted mean over heads, grids at most `side` on either side."""
    heads_BNgr: torch.Tensor
    """Each head, grids at most `head_side` on either side."""


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
    log_normaliser_BNG: torch.Tensor | None = None
    """Logarithm of each G2R row's sum of exponentials."""
    rows: Rows | None = None
    """Where they were asked for."""


@dataclass(frozen=True, kw_only=True)
class RowPooling:
    """How rows are pooled: averaged over patches of generated tokens, summed over patches of reference tokens.

    A grid wider or higher than `side` is reduced to it; patches are as equal as whole tokens allow.
    """

    generated: Grid
    reference: Grid
    head_weights: tuple[float, ...] | None = None
    """Of the heads looked at, for their mean; None: all alike."""
    side: int = 32
    head_side: int = 16
    """`side` must be a multiple of it."""

    def patches(self, device: torch.device) -> tuple[Patches, Patches]:
        """Of the generated and of the reference tokens."""
        sides = self.side, self.head_side
        return row_patches(self.generated, sides, device), column_patches(self.reference, sides, device)


@torch.no_grad()
def attribute(
    q_BNGH: torch.Tensor,
    k_BNRH: torch.Tensor,
    *,
    heads: Sequence[int] | None = None,
    scale: float | None = None,
    query_weight_BG: torch.Tensor | None = None,
    key_weight_BR: torch.Tensor | None = None,
    pooling: RowPooling | None = None,
    chunk_bytes: int | None = None,
) -> Attribution:
    """Both directions of one attention product (Park & Jang 2025, M_g and M_r), in float32 whatever the inputs' dtype.

    Args:
        heads: the query heads looked at, N of them in the result; default all. Keys may have fewer heads (grouped queries).
        scale: factor of the logits; default H^-0.5.
        query_weight_BG: ≥ 0, how much of each generated token lies in the query region (the hole); default all alike.
        key_weight_BR: ≥ 0, how much of each reference token lies on the object.
        pooling: of the rows; default no rows.
        chunk_bytes: size of the largest temporary; default by device.
    """
    with float32_products(q_BNGH.device.type):
        patches = None if pooling is None else pooling.patches(q_BNGH.device)
        together = 1 if patches is None else patches[0].together
        work = Work(q_BNGH, k_BNRH, heads, scale, chunk_bytes, together)
        found = _Found(work, query_weight_BG, key_weight_BR, patches, pooling and pooling.head_weights)
        for images, own in work.groups():
            found.add(images, own)
        return found.attribution()


class _Found:
    """What comes of one product, filled in some heads of some images at a time."""

    def __init__(
        self,
        work: Work,
        query_weight_BG: torch.Tensor | None,
        key_weight_BR: torch.Tensor | None,
        patches: tuple[Patches, Patches] | None,
        head_weights: tuple[float, ...] | None,
    ) -> None:
        self._work, device = work, work.device
        self.generated, self.reference = patches or (None, None)
        self._region = None if query_weight_BG is None else normalised(query_weight_BG.float())
        self._object = None if key_weight_BR is None else key_weight_BR.float()
        if patches is not None:
            self._region, self._object = _taken(self._region, patches[0].order), _taken(self._object, patches[1].order)
            (g, r), (small_g, small_r) = zip(*((p.to_wide.count, p.to_small.count) for p in patches), strict=True)
            self._mean = torch.zeros(work.B, g, r, device=device)
            self._each = torch.zeros(work.B, work.N, small_g, small_r, device=device)
            self._share = shares(head_weights or (1.0,) * work.N, device)
        maps = 2 if self._object is None else 3
        self._on_generated = torch.empty(work.B, work.N, maps, work.G, device=device)  # R2G, centred, object mass
        self._on_reference = torch.empty(work.B, work.N, 1 if self._region is None else 2, work.R, device=device)
        self._entropy = torch.empty(work.B, work.N, device=device)
        self._lse = torch.empty(work.B, work.N, work.G, device=device)

    def add(self, images: slice, heads: slice) -> None:
        """Takes in some heads of some images."""
        work = self._work
        q = work.queries(images, heads, self.generated and self.generated.order)
        k = work.keys(images, heads, self.reference and self.reference.order)
        mean_key = k.mean(1, keepdim=True)
        k.sub_(mean_key)
        one = _Units(work, q, k, (mean_key @ q.transpose(1, 2))[:, 0], self._weights(images, heads))
        chunks = work.query_chunks(len(q))
        for rows in chunks:
            one.add(rows)
            if self.generated is not None:
                self._pool(images, heads, one.p, rows.start)
        shape = images.stop - images.start, heads.stop - heads.start
        self._on_reference[images, heads] = one.on_reference.unflatten(0, shape)
        self._entropy[images, heads] = one.entropy.view(shape)
        self._lse[images, heads] = one.lse[:, 0].unflatten(0, shape)
        one_pass, mass = one.sums_hold(), None if self._object is None else self._object[images]
        for rows in chunks if one_pass or mass is not None else ():
            if len(chunks) > 1:
                one.form(rows)
            spread = one.spread(rows, one_pass, mass).unflatten(0, shape)
            self._on_generated[images, heads, -spread.shape[2] :, rows] = spread
        if not one_pass:
            for i, keys in enumerate((k + mean_key, k)):
                self._on_generated[images, heads, i] = _mean_softmax_over_queries(work, q, keys).unflatten(0, shape)

    def _weights(self, images: slice, heads: slice) -> torch.Tensor:
        """How much each generated token counts in the maps over the reference, all of them and the region's: (U, 1 or 2, G)."""
        even = shares((1.0,) * self._work.G, self._work.device)
        count = heads.stop - heads.start
        if self._region is None:
            return even.expand((images.stop - images.start) * count, 1, -1)
        region = self._region[images]
        both = torch.stack([even.expand_as(region), region], 1)
        return both[:, None].expand(-1, count, -1, -1).flatten(0, 1)

    def _pool(self, images: slice, heads: slice, p: torch.Tensor, start: int) -> None:
        """Adds the rows of the generated tokens from number `start` on."""
        assert self.generated is not None and self.reference is not None
        shape = images.stop - images.start, heads.stop - heads.start
        wide, first = self.generated.to_wide.rows(p, start)
        wide = self.reference.to_wide.columns(wide)
        mean = self._mean[images, first : first + wide.shape[1]].flatten(1)[:, None]
        mean.baddbmm_(self._share[heads].expand(shape[0], 1, -1), wide.reshape(*shape, -1))
        small, first = self.generated.to_small.rows(wide, first)
        small = self.reference.to_small.columns(small)
        self._each[images, heads, first : first + small.shape[1]] += small.unflatten(0, shape)

    def attribution(self) -> Attribution:
        """Reads it out."""
        on_generated = _taken(self._on_generated, self.generated and self.generated.back)
        on_reference = _taken(self._on_reference, self.reference and self.reference.back)
        region = on_reference[:, :, -1]
        information = (torch.special.entr(region).sum(-1) - self._entropy) / math.log(2)
        return Attribution(
            r2g_BNG=on_generated[:, :, 0],
            r2g_centred_BNG=on_generated[:, :, 1],
            r2g_object_mass_BNG=None if self._object is None else normalised(on_generated[:, :, 2]),
            g2r_BNR=on_reference[:, :, 0],
            g2r_region_BNR=region,
            information_BN=information.clamp_min(0),
            log_normaliser_BNG=_taken(self._lse, self.generated and self.generated.back),
            rows=self._rows(),
        )

    def _rows(self) -> Rows | None:
        if self.generated is None or self.reference is None:
            return None
        mean = _taken(_taken(self._mean, self.reference.wide_back), self.generated.wide_back, 1)
        return Rows(mean_Bgr=normalised(mean), heads_BNgr=normalised(self._each))


class _Units:
    """One group's product, formed in chunks of generated tokens."""

    def __init__(
        self, work: Work, q: torch.Tensor, k: torch.Tensor, shift: torch.Tensor, weights: torch.Tensor
    ) -> None:
        self._work, self._q, self._k, self._shift, self._weights = work, q, k, shift, weights
        U, maps, G, R, device = len(q), weights.shape[1], work.G, work.R, work.device
        self.on_reference, self.entropy = torch.zeros(U, maps, R, device=device), torch.zeros(U, device=device)
        self._readable = device.type in _READABLE
        self.lse = torch.empty(U, 2, G, device=device)  # of the paper's logits and of the centred ones
        self._top = torch.full((U, 2, 1), -torch.inf, device=device)
        self._columns = torch.zeros(U, 2, R, device=device)  # D, each over exp(top)

    def form(self, rows: slice) -> None:
        """Forms the product of these generated tokens."""
        self._logits, self.p = self._work.softmax(self._q[:, rows], self._k)

    def add(self, rows: slice) -> None:
        """Takes in what the product of these generated tokens says about the reference."""
        self.form(rows)
        maximum, weights = self._logits.amax(-1), self._weights[:, :, rows]
        centred = maximum - self.p.amax(-1).log_()
        maps = weights.shape[1]
        lse = self.lse[:, :, rows] = torch.stack([centred + self._shift[:, rows], centred], 1)
        if self._readable:
            top = torch.maximum(self._top, lse.amax(-1, keepdim=True))
            weights = torch.cat([weights, torch.exp(lse - top)], 1)
        sums = torch.bmm(weights, self.p)
        self.on_reference += sums[:, :maps]
        if self._readable:
            self._columns = self._columns * torch.exp(self._top - top) + sums[:, maps:]
            self._top = top
        entropy = centred - self._logits.mul_(self.p).sum(-1)
        self.entropy += (entropy * weights[:, maps - 1]).sum(-1)

    def sums_hold(self) -> bool:
        """Whether softmaxes over the generated tokens follow from the sums: no column's sum has left float32's range.

        Where asking would keep a device waiting the answer is no.
        """
        return self._readable and float(self._columns.amin()) >= _LEAST_COLUMN_SUM

    def spread(self, rows: slice, one_pass: bool, object_BR: torch.Tensor | None) -> torch.Tensor:
        """Of the product formed last: R2G and centred R2G (where `one_pass`), object mass (where given), (U, maps, c)."""
        factors = [self._columns.reciprocal()] if one_pass else []
        if object_BR is not None:
            heads = len(self._q) // len(object_BR)
            factors.append(object_BR[:, None, None].expand(-1, heads, 1, -1).flatten(0, 1))
        spread = torch.bmm(torch.cat(factors, 1), self.p.transpose(1, 2))
        if one_pass:
            spread[:, :2] *= torch.exp(self.lse[:, :, rows] - self._top) / self._work.R
        return spread


def _mean_softmax_over_queries(work: Work, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Mean over R of softmax over G, formed directly: (U, G)."""
    total = torch.zeros(q.shape[:2], device=q.device)
    for keys in work.key_chunks(len(q)):
        total += work.softmax(q, k[:, keys], 1)[1].sum(-1)
    return total / work.R


def _taken(x: torch.Tensor | None, order: torch.Tensor | None, dim: int = -1) -> Any:
    return x if x is None or order is None else x.index_select(dim, order)
