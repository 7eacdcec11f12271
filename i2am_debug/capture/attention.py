"""From queries and keys to both attribution directions and rows: pure functions, streamed.

One product of queries and keys and one exponential give everything. With P the softmax over the reference and lse_g its
logarithmic normaliser, the softmax over the generated tokens is P_gr · exp(lse_g) / D_r with D_r = Σ_g exp(lse_g) P_gr, so that
all maps are sums over P, which are thin matrix products. Centred logits have the lse of centred keys; those of the paper are
that plus q_g · mean key. Nothing of size G x R is kept: a product that doesn't fit the processor's cache is taken in chunks of
generated tokens, and formed a second time for the D of all of them. Products of one shape, of several layers, say, are taken
together: the operations around small ones take longer than they do themselves.

Shapes: B batch, N heads, G generated tokens, R reference tokens, H head dim; U units, the heads of some images one after the
other; c a chunk of generated tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch

from .fused import can_fuse, form_fused
from .patches import taken
from .precision import float32_products
from .product import BITS, Buffers, chunk_room, keys_of, normalised, slices, taken_heads
from .rows import RowsTogether, RowSums

_THIN_BYTES = {"cpu": 4 * 2**20}  # of float32 queries, keys and maps that are worked on at once, by device
_THIN_BYTES_ELSEWHERE = 32 * 2**20
_WHOLE = 2  # times the room of a chunk, a single head may take rather than be formed twice
_LEAST_COLUMN_SUM = 1e-25  # below it, what float32 has lost of the terms of D would be seen
_READABLE = ("cpu",)  # devices on which a look at a number keeps nothing waiting


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """What one attention product says, per image and head. Maps are float32 and sum to 1 over their last dimension."""

    maps_BNX: torch.Tensor
    """All maps and the information, one after the other."""
    places: Mapping[str, slice]
    """Where each of them lies: "r2g", "r2g_centred", "g2r", "g2r_region", "information" and maybe "r2g_object_mass"."""
    log_normaliser_BNG: torch.Tensor
    """Logarithm of each G2R row's sum of exponentials."""

    @property
    def r2g_BNG(self) -> torch.Tensor:
        """Mean over R of softmax over G (M_g of the paper)."""
        return self._of("r2g")

    @property
    def r2g_centred_BNG(self) -> torch.Tensor:
        """The same of (logits − their mean over R): unmoved by anything that shifts all logits of a generated token."""
        return self._of("r2g_centred")

    @property
    def r2g_object_mass_BNG(self) -> torch.Tensor | None:
        """Share of each generated token's G2R row on the reference object, normalised; None without an object."""
        return self._of("r2g_object_mass") if "r2g_object_mass" in self.places else None

    @property
    def g2r_BNR(self) -> torch.Tensor:
        """Mean over G of softmax over R (M_r of the paper)."""
        return self._of("g2r")

    @property
    def g2r_region_BNR(self) -> torch.Tensor:
        """The same over the query region only; equals `g2r_BNR` without one."""
        return self._of("g2r_region")

    @property
    def information_BN(self) -> torch.Tensor:
        """Attention information of the query region in bits."""
        return self._of("information")[..., 0]

    def _of(self, name: str) -> torch.Tensor:
        return self.maps_BNX[..., self.places[name]]


@lru_cache(maxsize=256)
def map_places(G: int, R: int, with_object: bool) -> dict[str, slice]:
    """`Attribution.places`."""
    sizes = {"r2g": G, "r2g_centred": G, "g2r": R, "g2r_region": R, "information": 1}
    sizes |= {"r2g_object_mass": G} if with_object else {}
    ends = list(accumulate(sizes.values()))
    return {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}


@dataclass(frozen=True, kw_only=True)
class LookedAt:
    """The part of one attention product that is looked at, and where its rows are added."""

    q_BNGH: torch.Tensor
    k_BNRH: torch.Tensor
    """Each head's own: keys that several heads share are there for each."""
    scale: float
    query_weight_BG: torch.Tensor | None = None
    key_weight_BR: torch.Tensor | None = None
    rows: RowSums | None = None

    @property
    def units(self) -> int:
        return self.q_BNGH.shape[0] * self.q_BNGH.shape[1]

    @property
    def thin_bytes(self) -> int:
        """Of what is worked with, but for the product."""
        return self.units * _thin_bytes(self.q_BNGH, self.k_BNRH)


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
    chosen = range(q_BNGH.shape[1]) if heads is None else heads
    own = LookedAt(
        q_BNGH=taken_heads(q_BNGH, chosen),
        k_BNRH=taken_heads(k_BNRH, keys_of(chosen, q_BNGH, k_BNRH)),
        scale=q_BNGH.shape[3] ** -0.5 if scale is None else scale,
        query_weight_BG=query_weight_BG,
        key_weight_BR=key_weight_BR,
        rows=rows,
    )
    return attribute_together([own], chunk_bytes=chunk_bytes, buffers=buffers)[0]


@torch.no_grad()
def attribute_together(
    each: Sequence[LookedAt], *, chunk_bytes: int | None = None, buffers: Buffers | None = None
) -> list[Attribution]:
    """`attribute` of several products, alike in all but their images and heads, in the operations of one."""
    first = each[0]
    rows = None if first.rows is None else RowsTogether([(one.units, one.rows) for one in each if one.rows is not None])
    orders = (None, None) if rows is None else tuple(p.order for p in rows.patches)
    region_UG = None if first.query_weight_BG is None else _of_units(each, "query_weight_BG", orders[0], normalised)
    object_UR = None if first.key_weight_BR is None else _of_units(each, "key_weight_BR", orders[1])
    q_UGH, k_URH = (_joined([getattr(one, name).flatten(0, 1) for one in each]) for name in ("q_BNGH", "k_BNRH"))
    found = None
    if chunk_bytes is None and can_fuse(q_UGH, k_URH, rows):
        found = form_fused(q_UGH, k_URH, first.scale, region_UG, object_UR, rows)
    if found is None:
        found = _form(q_UGH, k_URH, first.scale, region_UG, object_UR, rows, chunk_bytes, buffers or Buffers())
    if rows is not None:
        rows.finish()
    backs = (None, None) if rows is None else tuple(p.back for p in rows.patches)
    on_generated, on_reference, bits = taken(found[0], backs[0]), taken(found[1], backs[1]), found[2]
    maps = [on_generated[:, 0], on_generated[:, 1], on_reference[:, 0], on_reference[:, 1], bits[:, None]]
    if object_UR is not None:
        maps.append(normalised(on_generated[:, 2]))
    maps_UX, log_normaliser_UG = torch.cat(maps, 1), on_generated[:, -1]
    places = map_places(q_UGH.shape[1], k_URH.shape[1], object_UR is not None)
    attributions, start = [], 0
    for one in each:
        u, shape = slice(start, start + one.units), one.q_BNGH.shape[:2]
        start += one.units
        attributions.append(
            Attribution(
                maps_BNX=maps_UX[u].unflatten(0, shape),
                places=places,
                log_normaliser_BNG=log_normaliser_UG[u].unflatten(0, shape),
            )
        )
    return attributions


def _of_units(
    each: Sequence[LookedAt], name: str, order: torch.Tensor | None, change: Callable[[Any], Any] = lambda x: x
) -> torch.Tensor:
    """The weights of tokens of that name, of each unit, their tokens in that order: (U, tokens)."""
    made: dict[int, torch.Tensor] = {}  # products of one grid share them
    of_units = []
    for one in each:
        given = getattr(one, name)
        if id(given) not in made:
            made[id(given)] = taken(change(given.float()), order)
        of_units.append(made[id(given)][:, None].expand(-1, one.q_BNGH.shape[1], -1).flatten(0, 1))
    return _joined(of_units)


def _joined(each: Sequence[torch.Tensor]) -> torch.Tensor:
    return each[0] if len(each) == 1 else torch.cat(list(each))


def thin_room(device: torch.device) -> int:
    """Bytes of queries, keys and maps that are worked on at once."""
    return _THIN_BYTES.get(device.type, _THIN_BYTES_ELSEWHERE)


def _thin_bytes(q: torch.Tensor, k: torch.Tensor) -> int:
    """Of the float32 queries, keys and maps of one unit."""
    return 4 * (q.shape[-2] + k.shape[-2]) * (q.shape[-1] + 10)


def _form(
    q_UGH: torch.Tensor,
    k_URH: torch.Tensor,
    scale: float,
    region_UG: torch.Tensor | None,
    object_UR: torch.Tensor | None,
    rows: RowsTogether | None,
    chunk_bytes: int | None,
    buffers: Buffers,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """R2G, centred R2G, with an object its mass, and the logarithmic normaliser: (U, 3 or 4, G); G2R of all and of the region:
    (U, 2, R); the attention information in bits: (U,). Tokens, `region_UG` (sum 1) and `object_UR` in the order of `rows`'
    patches."""
    device, product_bytes = q_UGH.device, 4 * q_UGH.shape[1] * k_URH.shape[1]
    room, whole = chunk_bytes or chunk_room(device), chunk_bytes or _WHOLE * chunk_room(device)
    orders = (None, None) if rows is None else tuple(p.order for p in rows.patches)
    parts = []
    with float32_products(device.type):
        for u in slices(len(q_UGH), thin_room(device) // _thin_bytes(q_UGH, k_URH)):
            q, k = taken(q_UGH[u], orders[0], 1).float().mul(scale * BITS), taken(k_URH[u], orders[1], 1).float()
            part = _Part(q, k, u.start, buffers, room)
            part.weigh(
                region_UG if region_UG is None else region_UG[u], object_UR if object_UR is None else object_UR[u]
            )
            part.form_whole(rows) if whole >= product_bytes else part.form_in_chunks(rows)
            parts.append(part.found())
    on_generated, on_reference, bits = (_joined(each) for each in zip(*parts, strict=True))
    return on_generated, on_reference, bits


class _Part:
    """Some units: what is thin of them, and their product in chunks that fit `room`. Logits and logarithms in bits."""

    def __init__(self, q: torch.Tensor, k: torch.Tensor, first: int, buffers: Buffers, room: int) -> None:
        self._q, self._first, self._buffers, self._room = q, first, buffers, room
        (U, G, H), R = q.shape, k.shape[1]
        means = k.new_zeros(U, 2, H)
        self._mean_key = torch.mean(k, 1, keepdim=True, out=means[:, :1])
        self._k = k - self._mean_key
        self._shift = torch.bmm(means, q.transpose(1, 2))  # from centred logits to the paper's, and to the centred ones
        # All alike, the region's, and powers of the lse of the paper's and the centred logits; and those weights times P.
        self._weights, self._sums = q.new_empty(U, 4, G), q.new_empty(U, 4, R)
        self._lse, self._entropy = q.new_empty(U, G), q.new_empty(U, G)  # of centred logits' rows

    def weigh(self, region_UG: torch.Tensor | None, object_UR: torch.Tensor | None) -> None:
        """How much each generated token counts in the region's figures, and each reference token in the object's mass."""
        (U, _, G), R = self._weights.shape, self._sums.shape[2]
        self._weights[:, :2].fill_(1 / G)
        if region_UG is not None:
            self._weights[:, 1] = region_UG
        rows = 2 if object_UR is None else 4  # a matrix product of 3 rows takes longer than one of 4
        self._factors = self._q.new_zeros(U, rows, R)  # 1 / D of the paper's and the centred logits, the object
        self._spread = self._q.new_empty(U, rows, G)  # P times those factors
        if object_UR is not None:
            self._factors[:, 2] = object_UR

    def _chunks(self) -> list[slice]:
        """Units that fit the room together, at least one."""
        return slices(len(self._q), self._room // (4 * self._q.shape[1] * self._k.shape[1]))

    def _of_model(self, u: slice) -> slice:
        return slice(u.start + self._first, u.stop + self._first)

    def form_whole(self, rows: RowsTogether | None) -> None:
        """Some heads at a time, each product once."""
        for u in self._chunks():
            formed = self._buffers.form(self._q[u], self._k[u])
            p = formed.weights
            lse = torch.add(formed.top, formed.log_sum, out=self._lse[u])
            by_lse = torch.add(lse[:, None], self._shift[u], out=self._weights[u, 2:])
            by_lse.sub_(by_lse.amax(-1, keepdim=True)).exp2_()
            torch.bmm(self._weights[u], p, out=self._sums[u])
            torch.reciprocal(self._sums[u, 2:], out=self._factors[u, :2])
            torch.bmm(self._factors[u], p.transpose(1, 2), out=self._spread[u])
            if rows is not None:
                rows.add(self._of_model(u), p, 0)
            torch.sub(formed.log_sum, formed.below_top.mul_(p).sum(-1), out=self._entropy[u])

    def form_in_chunks(self, rows: RowsTogether | None) -> None:
        """One head at a time and of it some generated tokens, each product twice."""
        G, R = self._q.shape[1], self._k.shape[1]
        together = 1 if rows is None else rows.patches[0].together
        chunks = slices(G, max(1, self._room // (4 * R * together)) * together)
        for u in self._chunks():
            self._sums[u].zero_()
            top = torch.full_like(self._sums[u, 2:, :1], -torch.inf)
            for c in chunks:
                formed = self._buffers.form(self._q[u, c], self._k[u])
                p = formed.weights
                lse = self._lse[u, c] = formed.top + formed.log_sum
                by_lse = lse[:, None] + self._shift[u, :, c]
                before, top = top, torch.maximum(top, by_lse.amax(-1, keepdim=True))
                self._weights[u, 2:, c] = by_lse.sub_(top).exp2_()
                self._sums[u, 2:] *= torch.exp2(before - top)
                self._sums[u] += torch.bmm(self._weights[u, :, c], p)
                if rows is not None:
                    rows.add(self._of_model(u), p, c.start)
                self._entropy[u, c] = formed.log_sum - formed.below_top.mul_(p).sum(-1)
            self._weights[u, 2:] = torch.exp2(self._lse[u, None] + self._shift[u] - top)
            self._factors[u, :2] = self._sums[u, 2:].reciprocal()
            for c in chunks:
                p = self._buffers.form(self._q[u, c], self._k[u]).weights
                self._spread[u, :, c] = torch.bmm(self._factors[u], p.transpose(1, 2))

    def found(self) -> tuple[torch.Tensor, ...]:
        """What `_form` gives, of these units."""
        spread, R = self._spread, self._k.shape[1]
        spread[:, :2].mul_(self._weights[:, 2:]).div_(R)
        for u in self._lost():
            for i, k in enumerate((self._k[u] + self._mean_key[u], self._k[u])):
                spread[u, i] = self._mean_softmax_over_queries(self._q[u], k)
        log_normaliser = torch.add(self._lse[:, None], self._shift[:, :1]).div_(BITS)
        if spread.shape[1] == 4:
            spread[:, 3:] = log_normaliser
        else:
            spread = torch.cat([spread, log_normaliser], 1)
        of_rows = self._entropy.mul_(self._weights[:, 1]).sum(-1)
        bits = torch.special.entr(self._sums[:, 1]).sum(-1).mul_(BITS).sub_(of_rows).clamp_min_(0)
        return spread, self._sums[:, :2], bits

    def _lost(self) -> list[slice]:
        """Units whose R2G does not follow from the sums, because a column's sum left float32's range.

        Where asking would keep a device waiting, all of them.
        """
        if self._q.device.type not in _READABLE:
            return self._chunks()
        least = self._sums[:, 2:].amin((1, 2))
        if float(least.amin()) >= _LEAST_COLUMN_SUM:  # False of NaN
            return []
        return [slice(i, i + 1) for i, value in enumerate(least.tolist()) if not value >= _LEAST_COLUMN_SUM]

    def _mean_softmax_over_queries(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """Mean over R of softmax over G, formed directly: (U, G)."""
        total = q.new_zeros(q.shape[:2])
        for keys in slices(k.shape[1], self._room // (4 * len(q) * q.shape[1])):
            total += self._buffers.form(q, k[:, keys], 1).weights.sum(-1)
        return total / k.shape[1]
