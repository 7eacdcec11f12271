"""Draws one pair's predicted picture and maps, before and after what its output does not feel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from i2am_debug.demo.pixel_vae import to_pixels
from i2am_debug.figures.scores import imacs
from i2am_debug.grids import Grid
from i2am_debug.pairs.pair import ValidationPair
from i2am_debug.report.render import heat

from .curve_picture import keep

_SIDE = 192  # pixels of a tile


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Of one pair, by one model."""

    predicted: torch.Tensor
    """(G, C) cells of the predicted picture, in [-1, 1]."""
    grid: Grid
    maps: dict[str, np.ndarray]


def draw(pair: ValidationPair, before: Seen, after: Seen, name: str) -> None:
    """Two rows: as shipped, and with a bias on the keys."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = (("as shipped", before), ("with a bias on its keys", after))
    figure, axes = plt.subplots(
        2, 1 + len(before.maps), figsize=(2.1 * (1 + len(before.maps)), 5.0), layout="constrained"
    )
    for line, (label, seen) in zip(axes, rows, strict=True):
        picture = _picture(pair, seen)
        line[0].imshow(picture.resize((_SIDE, _SIDE), Image.Resampling.NEAREST))
        line[0].set_ylabel(label, fontsize=10)
        line[0].set_title("predicted picture", fontsize=9)
        for axis, (title, one) in zip(line[1:], seen.maps.items(), strict=True):
            of_reference = title.startswith("G2R")
            under, mask = (pair.reference, pair.reference_mask) if of_reference else (picture, pair.mask)
            axis.imshow(heat(under, one, size=(_SIDE, _SIDE), vmax=float(before.maps[title].max())))
            axis.contour(np.kron(mask, np.ones((_SIDE // 32, _SIDE // 32))), [0.5], colors="white", linewidths=0.8)
            axis.set_title(f"{title}\nIMACS {imacs(one, mask):.2f}", fontsize=9)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    keep(figure, name)


def _picture(pair: ValidationPair, seen: Seen) -> Image.Image:
    """The prediction in the hole of the picture it belongs to."""
    cells = seen.predicted.T.reshape(1, -1, *seen.grid)
    made = ((to_pixels(cells)[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert pair.mask is not None
    return Image.fromarray(np.where(pair.mask[..., None], made, np.asarray(pair.target)))
