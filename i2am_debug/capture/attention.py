"""From queries and keys to both attribution directions and rows: pure functions, streamed.

One product of queries and keys and one exponential give everything. With P the softmax over the reference and lse_g its
logarithmic normaliser, the softmax over the generated tokens is P_gr · exp(lse_g) / D_r with D_r = Σ_g exp(lse_g) P_gr, so that
all maps are sums over P, which are thin matrix products. Centred logits have the lse of centred keys; those of the paper are
that plus q_g · mean key. Nothing of size G x R is kept: a product that doesn't fit the processor's cache is taken in chunks of
generated tokens, and formed a second time for the D of all of them.

Shapes: B batch, N heads, G generated tokens, R reference tokens, H head dim; U units, the heads of some images one after the
other; c a chunk of generated tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from .fused import can_fuse, form_fused
from .patches import taken
from .precision import float32_products
from .product import Buffers, chunk_room, groups, normalised, slices, units
from .rows import RowSums

_THIN_BYTES = 8 * 2**20  # of float32 queries, keys and maps that are worked on at once
_WHOLE = 2  # times the room of a chunk, a single head may take rather than be formed twice
_LEAST_COLUMN_SUM = 1e-25  # below it, what float32 has lost of the terms of D would be seen
_READABLE = ("cpu",)  # devices on which a look at a number keeps nothing waiting


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
    log_normaliser_BNG: torch.Tensor
    """Logarithm of each G2R row's sum of exponentials."""


@torch.no_grad()
def attribute(
    q_BNGH: torch.Tensor,
    k_BNRH: torch.Tensor,
    *,
    heads: Sequence[int] | None = None,
    scale: float | None = None,
    query_weight_BG: torch.Tensor | None = None,
    key_weight_BR: torch.Tensor | None = None,
    rows: RowSums | None = None,
    chunk_bytes: int | None = None,
    buffers: Buffers | None = None,
) -> Attribution:
    """Both directions of one attention product (Park & Jang 2025, M_g and M_r), in float32 whatever the inputs' dtype.

    Args:
        heads: the query heads looked at, N of them in the result; default all. Keys may have fewer heads (grouped queries).
        scale: factor of the logits; default H^-0.5.
        query_weight_BG: ≥ 0, how much of each generated token lies in the query region (the hole); default all alike.
        key_weight_BR: ≥ 0, how much of each reference token lies on the object.
        rows: where the rows are added; default nowhere.
        chunk_bytes: size of the largest temporary; default by device.
        buffers: memory to work in; default new.
    """
    (B, all_heads, G, H), R = q_BNGH.shape, k_BNRH.shape[2]
    chosen, share = range(all_heads) if heads is None else heads, all_heads // k_BNRH.shape[1]
    patches = (None, None) if rows is None else rows.patches
    orders = [p and p.order for p in patches]
    region = None if query_weight_BG is None else taken(normalised(query_weight_BG.float()), orders[0])
    on_object = None if key_weight_BR is None else taken(key_weight_BR.float(), orders[1])
    scale = H**-0.5 if scale is None else scale
    found = None
    if chunk_bytes is None and can_fuse(q_BNGH, k_BNRH, rows):
        found = form_fused(q_BNGH, k_BNRH, chosen, scale, region, on_object, rows)
    if found is None:
        room, whole = chunk_bytes or chunk_room(q_BNGH.device), chunk_bytes or _WHOLE * chunk_room(q_BNGH.device)
        parts: list[tuple[torch.Tensor, ...]] = []
        buffers = buffers or Buffers()
        with float32_products(q_BNGH.device.type):
            for images, own in groups(B, len(chosen), 4 * (G + R) * (H + 10), _THIN_BYTES):
                q = units(q_BNGH, images, own, chosen, 1, orders[0]).mul(scale)
                k = units(k_BNRH, images, own, chosen, share, orders[1])
                part = _Part(q, k, (images, own), buffers, room)
                part.weigh(region, on_object)
                part.form_whole(rows) if whole >= 4 * G * R else part.form_in_chunks(rows)
                parts.append(part.found())
        found = parts[0] if len(parts) == 1 else tuple(torch.cat(each) for each in zip(*parts, strict=True))
    if rows is not None:
        rows.finish()
    on_generated, on_reference, bits = (x.unflatten(0, (B, len(chosen))) for x in found)
    generated_back, reference_back = (p and p.back for p in patches)
    on_generated, on_reference = taken(on_generated, generated_back), taken(on_reference, reference_back)
    return Attribution(
        r2g_BNG=on_generated[:, :, 0],
        r2g_centred_BNG=on_generated[:, :, 1],
        r2g_object_mass_BNG=None if on_object is None else normalised(on_generated[:, :, 2]),
        g2r_BNR=on_reference[:, :, 0],
        g2r_region_BNR=on_reference[:, :, 1],
        information_BN=bits,
        log_normaliser_BNG=on_generated[:, :, -1],
    )


class _Part:
    """Some heads of some images: what is thin of them, and their product in chunks that fit `room`."""

    def __init__(
        self, q: torch.Tensor, k: torch.Tensor, where: tuple[slice, slice], buffers: Buffers, room: int
    ) -> None:
        self._q, self._where, self._buffers, self._room = q, where, buffers, room
        self._shape = tuple(s.stop - s.start for s in where)
        (U, G, H), R = q.shape, k.shape[1]
        means = k.new_zeros(U, 2, H)
        self._mean_key = torch.mean(k, 1, keepdim=True, out=means[:, :1])
        self._k = k - self._mean_key
        self._shift = torch.bmm(means, q.transpose(1, 2))  # from centred logits to the paper's, and to the centred ones
        # All alike, the region's, and exp(lse) of the paper's and the centred logits; and those weights times P.
        self._weights, self._sums = q.new_empty(U, 4, G), q.new_empty(U, 4, R)
        self._lse, self._mean_logit = q.new_empty(U, G), q.new_empty(U, G)  # of centred logits

    def weigh(self, region_BG: torch.Tensor | None, object_BR: torch.Tensor | None) -> None:
        """How much each generated token counts in the region's figures, and each reference token in the object's mass."""
        (U, _, G), R, images = self._weights.shape, self._sums.shape[2], self._where[0]
        self._weights[:, :2].fill_(1 / G)
        if region_BG is not None:
            self._weights.unflatten(0, self._shape)[:, :, 1] = region_BG[images, None]
        rows = 2 if object_BR is None else 4  # a matrix product of 3 rows takes longer than one of 4
        self._factors = self._q.new_zeros(U, rows, R)  # 1 / D of the paper's and the centred logits, the object
        self._spread = self._q.new_empty(U, rows, G)  # P times those factors
        if object_BR is not None:
            self._factors.unflatten(0, self._shape)[:, :, 2] = object_BR[images, None]

    def _chunks(self) -> Iterator[tuple[slice, slice, slice]]:
        """Units that fit the room together, at least one, and which images and heads they are."""
        count, heads = self._shape
        for images, own in groups(count, heads, 4 * self._q.shape[1] * self._k.shape[1], self._room):
            of_units = slice(images.start * heads + own.start, (images.stop - 1) * heads + own.stop)
            yield of_units, _shifted(images, self._where[0]), _shifted(own, self._where[1])

    def form_whole(self, rows: RowSums | None) -> None:
        """Some heads at a time, each product once."""
        for u, images, own in self._chunks():
            logits, p = self._buffers.form(self._q[u], self._k[u])
            lse = torch.sub(logits.amax(-1), p.amax(-1).log_(), out=self._lse[u])
            by_lse = torch.add(lse[:, None], self._shift[u], out=self._weights[u, 2:])
            by_lse.sub_(by_lse.amax(-1, keepdim=True)).exp_()
            torch.bmm(self._weights[u], p, out=self._sums[u])
            torch.reciprocal(self._sums[u, 2:], out=self._factors[u, :2])
            torch.bmm(self._factors[u], p.transpose(1, 2), out=self._spread[u])
            if rows is not None:
                rows.add(images, own, p, 0)
            torch.sum(logits.mul_(p), -1, out=self._mean_logit[u])

    def form_in_chunks(self, rows: RowSums | None) -> None:
        """One head at a time and of it some generated tokens, each product twice."""
        G, R = self._q.shape[1], self._k.shape[1]
        together = 1 if rows is None else rows.patches[0].together
        chunks = slices(G, max(1, self._room // (4 * R * together)) * together)
        for u, images, own in self._chunks():
            self._sums[u].zero_()
            top = torch.full_like(self._sums[u, 2:, :1], -torch.inf)
            for c in chunks:
                logits, p = self._buffers.form(self._q[u, c], self._k[u])
                lse = self._lse[u, c] = logits.amax(-1) - p.amax(-1).log_()
                by_lse = lse[:, None] + self._shift[u, :, c]
                before, top = top, torch.maximum(top, by_lse.amax(-1, keepdim=True))
                self._weights[u, 2:, c] = by_lse.sub_(top).exp_()
                self._sums[u, 2:] *= torch.exp(before - top)
                self._sums[u] += torch.bmm(self._weights[u, :, c], p)
                if rows is not None:
                    rows.add(images, own, p, c.start)
                self._mean_logit[u, c] = logits.mul_(p).sum(-1)
            self._weights[u, 2:] = torch.exp(self._lse[u, None] + self._shift[u] - top)
            self._factors[u, :2] = self._sums[u, 2:].reciprocal()
            for c in chunks:
                _, p = self._buffers.form(self._q[u, c], self._k[u])
                self._spread[u, :, c] = torch.bmm(self._factors[u], p.transpose(1, 2))

    def found(self) -> tuple[torch.Tensor, ...]:
        """R2G, centred R2G, with an object its mass, and the logarithmic normaliser: (U, 3 or 4, G); G2R of all and of the
        region: (U, 2, R); the attention information: (U,)."""
        spread, R = self._spread, self._k.shape[1]
        spread[:, :2].mul_(self._weights[:, 2:]).div_(R)
        for u in self._lost():
            for i, k in enumerate((self._k[u] + self._mean_key[u], self._k[u])):
                spread[u, i] = self._mean_softmax_over_queries(self._q[u], k)
        log_normaliser = torch.add(self._lse[:, None], self._shift[:, :1])
        if spread.shape[1] == 4:
            spread[:, 3:] = log_normaliser
        else:
            spread = torch.cat([spread, log_normaliser], 1)
        entropy = (self._lse - self._mean_logit).mul_(self._weights[:, 1]).sum(-1)
        bits = torch.special.entr(self._sums[:, 1]).sum(-1).sub_(entropy).div_(math.log(2)).clamp_min_(0)
        return spread, self._sums[:, :2], bits

    def _lost(self) -> list[slice]:
        """Units whose R2G does not follow from the sums, because a column's sum left float32's range.

        Where asking would keep a device waiting, all of them.
        """
        if self._q.device.type not in _READABLE:
            return [u for u, *_ in self._chunks()]
        least = self._sums[:, 2:].amin((1, 2))
        if float(least.amin()) >= _LEAST_COLUMN_SUM:  # False of NaN
            return []
        return [slice(i, i + 1) for i, value in enumerate(least.tolist()) if not value >= _LEAST_COLUMN_SUM]

    def _mean_softmax_over_queries(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """Mean over R of softmax over G, formed directly: (U, G)."""
        total = q.new_zeros(q.shape[:2])
        for keys in slices(k.shape[1], self._room // (4 * len(q) * q.shape[1])):
            total += self._buffers.form(q, k[:, keys], 1)[1].sum(-1)
        return total / k.shape[1]


def _shifted(own: slice, by: slice) -> slice:
    return slice(own.start + by.start, own.stop + by.start)
