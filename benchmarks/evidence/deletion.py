"""One pair under deletion: how much of the picture changes as tokens go in some order, and with each of them alone.

A curve is the change as a share of that with all tokens gone (it may exceed 1 on the way), over the share of tokens gone.
Inserting a map's strongest tokens first leaves the model with the same ones as deleting in the inverse order, from the other
end: one set of calls gives both curves.

Shapes: n calls, G generated tokens, R reference tokens, K tokens in an order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from .forced import Forced
from .sizes import Sizes
from .token_maps import Looks
from .withheld import predict_withheld

GONE = np.array((0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8, 15 / 16, 1))
"""Shares of tokens that are gone at the points of a curve; symmetric, which the inverse order's being an insertion needs."""
BEST = "(the effect of each token alone)"
"""In place of a map, an order that takes what it is about to be judged by."""
RANDOM = "random"

Figures = dict[str, dict[str, Any]]
"""Name of a map → name of a figure → its value for one pair, or a curve: the change at each of `GONE`."""


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; NaN where one is constant."""
    ranked = [rankdata(each) for each in (a, b)]
    return float(np.corrcoef(*ranked)[0, 1]) if all(each.std() > 0 for each in ranked) else float("nan")


def of_reference_tokens(forced: Forced, looks: Looks, index: int, sizes: Sizes) -> tuple[Figures, Figures]:
    """Of every G2R map, then of every kind of rows."""
    own, blank, other = forced.own[index], forced.blank[index], forced.other[index]
    tokens = len(own)
    effects = {
        name: _changes(forced, index, replaced(own, by, torch.eye(tokens, dtype=torch.bool)), sizes)
        for name, by in (("blank", blank), ("other", other))
    }
    region = (forced.region_BG[index] / forced.region_BG[index].sum()).double().numpy()
    by_token = {name: effect @ region for name, effect in effects.items()}

    def gone(mask_nK: torch.Tensor) -> np.ndarray:
        return _changes(forced, index, replaced(own, blank, mask_nK), sizes) @ region

    maps = looks.g2r(index)
    found = curves({**maps, BEST: by_token["blank"]}, gone, index, sizes)
    for name, one in maps.items():
        found[name] |= {f"rho_{by}": rank_correlation(one, effect) for by, effect in by_token.items()}
    found[BEST]["rho_other"] = rank_correlation(by_token["blank"], by_token["other"])
    return found, {name: _of_rows(rows, effects["blank"].T, region) for name, rows in looks.rows(index).items()}


def of_generated_tokens(forced: Forced, looks: Looks, index: int, sizes: Sizes) -> Figures:
    """Of every R2G map: from which tokens the reference is withheld, and where a blank reference changes the picture."""
    (effect,) = _changes(forced, index, forced.blank[index][None], sizes)
    inside = forced.region_BG[index].numpy() >= 0.5

    def gone(mask_nK: torch.Tensor) -> np.ndarray:
        return np.mean(
            [
                (predict_withheld(forced, index, mask_nK, share) - _as_it_is(forced, index, share)).abs().mean((1, 2))
                for share in sizes.noise_times
            ],
            0,
        )

    maps = looks.r2g(index)
    found = curves({**maps, BEST: effect}, gone, index, sizes)
    for name, one in maps.items():
        found[name] |= {
            "rho": rank_correlation(one, effect),
            "rho_inside": rank_correlation(one[inside], effect[inside]),
        }
    return found


def curves(
    maps: dict[str, np.ndarray], gone: Callable[[torch.Tensor], np.ndarray], index: int, sizes: Sizes
) -> Figures:
    """Map → its curve of "deletion" and that of the "inverse" order; of `RANDOM` orders, their mean, as "deletion".

    Args:
        gone: masks (n, K) of tokens that are gone → change of the picture (n,).
    """
    count = len(next(iter(maps.values())))
    rng = np.random.default_rng(index)

    def curve(order: np.ndarray) -> list[float]:
        changes = gone(_masks(order))
        return [0.0, *(changes / changes[-1]).tolist()]

    random = [curve(rng.permutation(count)) for _ in range(sizes.random_orders)]
    found: Figures = {RANDOM: {"deletion": np.mean(random, 0).tolist()}}
    for name, one in maps.items():
        order = np.lexsort((rng.random(count), -one))  # ties in a random order
        found[name] = {"deletion": curve(order), "inverse": curve(order[::-1])}
    return found


def area(curve: np.ndarray) -> np.ndarray:
    """Under curves (…, points), 0.5 for changes that add up in any order."""
    return np.trapezoid(curve, GONE)


def _masks(order: np.ndarray) -> torch.Tensor:
    """(points, K): which tokens are gone at each point of a curve but the first, where none is."""
    place = np.argsort(order)
    return torch.from_numpy(place[None] < np.round(GONE[1:, None] * len(order)))


def replaced(own: torch.Tensor, by: torch.Tensor, mask_nR: torch.Tensor) -> torch.Tensor:
    """(n, R, C) the pair's own reference tokens, others in the places of the mask."""
    return torch.where(mask_nR[..., None], by, own)


def _as_it_is(forced: Forced, index: int, share: float) -> torch.Tensor:
    return forced.predict([index], forced.own[index][None], share)


def _changes(forced: Forced, index: int, tokens: torch.Tensor, sizes: Sizes) -> np.ndarray:
    """(n, G) mean absolute change of the predicted picture's tokens, in pictures of [-1, 1], mean over noise times."""
    by_time = [
        (forced.predict([index] * len(tokens), tokens, share) - _as_it_is(forced, index, share)).abs().mean(-1)
        for share in sizes.noise_times
    ]
    return torch.stack(by_time).mean(0).double().numpy()


def _of_rows(rows: np.ndarray, effect_GR: np.ndarray, region: np.ndarray) -> dict[str, float]:
    """Mean over the region's tokens: rank correlation of a row with what occluding each reference token does there, and whether
    both are strongest at the same one."""
    inside = np.flatnonzero(region > 0.5 * region.max())
    each = [rank_correlation(rows[g], effect_GR[g]) for g in inside]
    same = [rows[g].argmax() == effect_GR[g].argmax() for g in inside]
    return {"rho": float(np.nanmean(each)), "same": float(np.mean(same))}
