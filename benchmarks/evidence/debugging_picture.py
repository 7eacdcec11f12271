"""Draws the figures of models trained from scratch against the quality of what they sample."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from i2am_debug.figures.values import Undefined

from .curve_picture import keep

_COLOURS = ("#d1495b", "#edae49", "#00798c")


def draw(
    quality: Mapping[str, np.ndarray],
    figures: Mapping[str, Mapping[str, np.ndarray | Undefined]],
    name: str,
) -> None:
    """A panel for each figure: a line for each training, its end a dot.

    Args:
        quality: design → dB of each training's checkpoints, (T, C).
        figures: what is drawn → design → the same of that figure.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(figures), figsize=(2.7 * len(figures), 3.1), layout="constrained")
    for axis, (title, of_designs) in zip(axes, figures.items(), strict=True):
        for (design, values), colour in zip(of_designs.items(), _COLOURS, strict=True):
            if isinstance(values, Undefined):
                continue
            for i, (x, y) in enumerate(zip(quality[design], values, strict=True)):
                axis.plot(x, y, color=colour, lw=0.8, alpha=0.6, marker="o", ms=1.8)
                axis.plot(x[-1], y[-1], color=colour, marker="o", ms=6, mec="black", mew=0.7, ls="", zorder=3)
                if i == 0:
                    axis.plot([], [], color=colour, marker="o", ms=6, mec="black", mew=0.7, label=design)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("PSNR in the hole, dB", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncol=3, fontsize=8, frameon=False)
    keep(figure, name)
