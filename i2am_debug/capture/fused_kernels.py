"""Kernels for CUDA that form each product three times and keep none of it: rows, then columns, then what needs both.

Shapes: U units, the heads looked at of some images one after the other; G generated tokens, R reference tokens, H head dim,
each in blocks of BG, BR and BH. Queries and keys stay in their own dtype, whose products are exact in float32. No two
programs add to one number: what they give does not depend on the order in which they run.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _places(block, size: tl.constexpr, length, order, ORDERED: tl.constexpr):
    """Numbers of a block's tokens in the order wanted, of the same tokens in their own, and which there are."""
    numbers = block * size + tl.arange(0, size)
    there = numbers < length
    own = tl.load(order + numbers, mask=there, other=0) if ORDERED else numbers
    return numbers, own, there


@triton.jit
def _vectors(start, tokens, there, token_stride, channel_stride, H, BH: tl.constexpr):
    channels = tl.arange(0, BH)
    where = start + tokens[:, None].to(tl.int64) * token_stride + channels[None, :] * channel_stride
    return tl.load(where, mask=there[:, None] & (channels[None, :] < H), other=0.0)


@triton.jit
def _of_unit(q, k, first, squ, sku):
    """Number of the unit, and where its queries and keys begin."""
    unit = (first + tl.program_id(0)).to(tl.int64)
    return unit, q + unit * squ, k + unit * sku


@triton.jit
def rows_kernel(
    q, k, order_g, order_r, spread, entropy, shift,
    G, R, H, scale,
    squ, sqg, sqh, sku, skr, skh,
    ORDERED_G: tl.constexpr, ORDERED_R: tl.constexpr, BG: tl.constexpr, BR: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Of each generated token: the logarithmic normaliser of its row, in the last of `spread` (U, 4, G); the row's `entropy`,
    nats, and its mean logit `shift`, (U, G)."""
    unit, queries, keys = _of_unit(q, k, 0, squ, sku)
    g, own_g, g_there = _places(tl.program_id(1), BG, G, order_g, ORDERED_G)
    x = _vectors(queries, own_g, g_there, sqg, sqh, H, BH)
    top = tl.full((BG,), float("-inf"), tl.float32)
    total = tl.zeros((BG,), tl.float32)
    under_row = tl.zeros((BG,), tl.float32)
    plain = tl.zeros((BG,), tl.float32)
    for block in range(0, tl.cdiv(R, BR)):
        _numbers, own_r, r_there = _places(block, BR, R, order_r, ORDERED_R)
        y = _vectors(keys, own_r, r_there, skr, skh, H, BH)
        logits = tl.dot(x, tl.trans(y), input_precision="ieee") * scale
        higher = tl.maximum(top, tl.max(tl.where(r_there[None, :], logits, float("-inf")), 1))
        e = tl.where(r_there[None, :], tl.exp(logits - higher[:, None]), 0.0)
        less = tl.exp(top - higher)
        total = total * less + tl.sum(e, 1)
        under_row = under_row * less + tl.sum(e * logits, 1)
        plain += tl.sum(tl.where(r_there[None, :], logits, 0.0), 1)
        top = higher
    at = unit * G + g
    lse = top + tl.log(total)
    tl.store(spread + unit * 4 * G + 3 * G + g, lse, mask=g_there)
    tl.store(entropy + at, lse - under_row / total, mask=g_there)
    tl.store(shift + at, plain / R, mask=g_there)


@triton.jit
def columns_kernel(
    q, k, order_g, order_r, spread, shift, region, sums, column_lse,
    G, R, H, scale,
    squ, sqg, sqh, sku, skr, skh,
    ORDERED_G: tl.constexpr, ORDERED_R: tl.constexpr, REGION: tl.constexpr,
    BG: tl.constexpr, BR: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Of each reference token: the mean of its weights in all rows and in the region's, `sums` (U, 2, R); and the logarithmic
    normalisers of its column, of the paper's logits and of centred ones, `column_lse` (U, 2, R)."""
    unit, queries, keys = _of_unit(q, k, 0, squ, sku)
    r, own_r, r_there = _places(tl.program_id(1), BR, R, order_r, ORDERED_R)
    y = _vectors(keys, own_r, r_there, skr, skh, H, BH)
    of_all = tl.zeros((BR,), tl.float32)
    of_region = tl.zeros((BR,), tl.float32)
    top = tl.full((BR,), float("-inf"), tl.float32)
    top_centred = tl.full((BR,), float("-inf"), tl.float32)
    total = tl.zeros((BR,), tl.float32)
    total_centred = tl.zeros((BR,), tl.float32)
    for block in range(0, tl.cdiv(G, BG)):
        g, own_g, g_there = _places(block, BG, G, order_g, ORDERED_G)
        x = _vectors(queries, own_g, g_there, sqg, sqh, H, BH)
        at = unit * G + g
        row_lse = tl.load(spread + unit * 4 * G + 3 * G + g, mask=g_there, other=float("inf"))
        row_shift = tl.load(shift + at, mask=g_there, other=0.0)
        logits = tl.where(g_there[:, None], tl.dot(x, tl.trans(y), input_precision="ieee") * scale, float("-inf"))
        p = tl.exp(logits - row_lse[:, None])
        of_all += tl.sum(p, 0)
        if REGION:
            weight = tl.load(region + unit * G + g, mask=g_there, other=0.0)
            of_region += tl.sum(p * weight[:, None], 0)
        higher = tl.maximum(top, tl.max(logits, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(logits - higher[None, :]), 0)
        top = higher
        centred = logits - row_shift[:, None]
        higher = tl.maximum(top_centred, tl.max(centred, 0))
        total_centred = total_centred * tl.exp(top_centred - higher) + tl.sum(tl.exp(centred - higher[None, :]), 0)
        top_centred = higher
    at = unit * 2 * R + r
    tl.store(sums + at, of_all / G, mask=r_there)
    tl.store(sums + at + R, of_region if REGION else of_all / G, mask=r_there)
    tl.store(column_lse + at, top + tl.log(total), mask=r_there)
    tl.store(column_lse + at + R, top_centred + tl.log(total_centred), mask=r_there)


@triton.jit
def spread_kernel(
    q, k, order_g, order_r, spread, shift, column_lse, on_object, wide,
    first, G, R, H, scale,
    squ, sqg, sqh, sku, skr, skh,
    ORDERED_G: tl.constexpr, ORDERED_R: tl.constexpr, OBJECT: tl.constexpr, WIDE: tl.constexpr,
    FG: tl.constexpr, FR: tl.constexpr, BG: tl.constexpr, BR: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Of each generated token of the units from `first` on: R2G, of centred logits too, and its row's share on the object, the
    first three of `spread` (U, 4, G); and its row summed over patches of FG consecutive generated tokens and of the FR
    reference tokens that lie R / FR apart, `wide` (units from `first` on, G / FG, R / FR)."""
    unit, queries, keys = _of_unit(q, k, first, squ, sku)
    g, own_g, g_there = _places(tl.program_id(1), BG, G, order_g, ORDERED_G)
    x = _vectors(queries, own_g, g_there, sqg, sqh, H, BH)
    at = unit * 4 * G + g
    row_lse = tl.load(spread + at + 3 * G, mask=g_there, other=float("inf"))
    row_shift = tl.load(shift + unit * G + g, mask=g_there, other=0.0)
    r2g = tl.zeros((BG,), tl.float32)
    centred = tl.zeros((BG,), tl.float32)
    share = tl.zeros((BG,), tl.float32)
    patches = R // FR
    for block in range(0, tl.cdiv(patches, BR)):
        patch = block * BR + tl.arange(0, BR)
        pooled = tl.zeros((BG, BR), tl.float32)
        for part in range(0, FR):
            r = part * patches + patch
            there = patch < patches
            own_r = tl.load(order_r + r, mask=there, other=0) if ORDERED_R else r
            y = _vectors(keys, own_r, there, skr, skh, H, BH)
            logits = tl.dot(x, tl.trans(y), input_precision="ieee") * scale
            of_column = unit * 2 * R + r
            # Infinite where no token lies, which leaves weights of 0.
            paper = tl.load(column_lse + of_column, mask=there, other=float("inf"))
            own = tl.load(column_lse + of_column + R, mask=there, other=float("inf"))
            r2g += tl.sum(tl.exp(logits - paper[None, :]), 1)
            centred += tl.sum(tl.exp(logits - row_shift[:, None] - own[None, :]), 1)
            if OBJECT or WIDE:
                p = tl.where(there[None, :], tl.exp(logits - row_lse[:, None]), 0.0)
                if OBJECT:
                    weight = tl.load(on_object + unit * R + r, mask=there, other=0.0)
                    share += tl.sum(p * weight[None, :], 1)
                pooled += p
        if WIDE:
            rows = tl.program_id(1) * (BG // FG) + tl.arange(0, BG // FG)
            summed = tl.sum(tl.reshape(pooled, (BG // FG, FG, BR)), 1)
            where = (tl.program_id(0).to(tl.int64) * (G // FG) + rows[:, None]) * patches + patch[None, :]
            tl.store(wide + where, summed, mask=(rows[:, None] < G // FG) & (patch[None, :] < patches))
    tl.store(spread + at, r2g / R, mask=g_there)
    tl.store(spread + at + G, centred / R, mask=g_there)
    if OBJECT:
        tl.store(spread + at + 2 * G, share, mask=g_there)
