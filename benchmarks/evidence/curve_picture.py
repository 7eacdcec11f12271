"""Draws the curves of deletion and insertion of a few maps, means over pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .deletion import BEST, GONE, RANDOM, Figures

PICTURES = Path(__file__).parents[2] / "examples" / "pictures"
_SHOWN = {
    "all queries, unified": ("#d1495b", "G2R, the paper's"),
    "region, unified": ("#edae49", "G2R of the region's queries"),
    "region, copying layer": ("#00798c", "the same, copying layer"),
    "region × value norms, unified": ("#30638e", "region's queries × value norms"),
    BEST: ("#8a8d91", "the effect of each token alone"),
}
_TITLES = {"inpainting": "inpainting, change in the hole", "edit": "editing, change of what is kept"}


def draw(found: dict[str, list[Figures]], name: str) -> None:
    """A row of panels, deletion and insertion of each model.

    Args:
        found: model → of each pair its G2R curves.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2 * len(found), figsize=(5.6 * len(found), 3.4), sharex=True, layout="constrained")
    for i, (model, each) in enumerate(found.items()):
        random = np.mean([one[RANDOM]["deletion"] for one in each], 0)
        panels = (
            (axes[2 * i], "deletion", "strongest first deleted", random),
            (axes[2 * i + 1], "inverse", "strongest first inserted", random[::-1]),
        )
        for axis, kind, what, chance in panels:
            for map_name, (colour, label) in _SHOWN.items():
                curve = np.mean([one[map_name][kind] for one in each], 0)
                curve = curve if kind == "deletion" else curve[::-1]
                axis.plot(GONE, curve, color=colour, label=label, lw=1.6, marker="o", ms=2.5)
            axis.plot(GONE, chance, color="black", ls="--", lw=1.2, label="random orders")
            axis.set_title(f"{_TITLES[model]}\n{what}", fontsize=9)
            axis.set_xlabel("share of reference tokens", fontsize=8)
            axis.tick_params(labelsize=8)
            axis.set_ylim(bottom=0)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("change of the picture\n(1: no reference at all)", fontsize=8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncol=3, fontsize=8, frameon=False)
    keep(figure, name)


def keep(figure: Any, name: str) -> None:
    """In examples/pictures, as small as a PNG in all its colours can be."""
    from matplotlib import pyplot as plt

    PICTURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURES / name, dpi=75, pil_kwargs={"optimize": True})
    plt.close(figure)
