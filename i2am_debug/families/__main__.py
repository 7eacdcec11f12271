"""Prints the table of families, as Markdown: `python -m i2am_debug.families`."""

from __future__ import annotations

from dataclasses import fields

from .family import About
from .registry import registered

_TITLES = {"models": "models", "r2g": "R2G", "g2r": "G2R", "specific": "SRAM", "imacs": "IMACS"}


def table() -> str:
    """One line a family, in the order they are asked; what the registry says and nothing else."""
    columns = [f.name for f in fields(About)]
    titles = ["family", *(_TITLES.get(c, c.replace("_", " ")) for c in columns)]
    rows = [[f"`{family.name}`", *(getattr(family.about, c) for c in columns)] for family in registered()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows))


if __name__ == "__main__":
    print(table())
