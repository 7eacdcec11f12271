"""How good the pictures of a demo's model are."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..pairs.pair import ValidationPair

SAMPLER_STEPS = 5
"""Enough to measure the pictures."""


def mean_psnr(made: Iterable[np.ndarray], pairs: Iterable[ValidationPair], *, in_hole: bool = False) -> float:
    """Mean over pairs of the peak signal-to-noise ratio, dB, of whole pictures or inside the pairs' masks.

    `made` are pictures (H, W, 3) in [0, 1] of the targets' size.
    """
    errors = []
    for picture, pair in zip(made, pairs, strict=True):
        squares = (picture - np.asarray(pair.target) / 255) ** 2
        errors.append(float((squares[pair.mask] if in_hole else squares).mean()))
    return float(np.mean(-10 * np.log10(errors)))
