"""Pictures of the pairs to blame in a verdict, from what the run and the baseline have stored. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..report.panels import comparison
from ..store.evaluation_file import pairs_file_name, read_arrays
from ..store.packing import unpack_picture
from .baseline import MAPS, PICTURES
from .check import Verdict

MOST = 4


def draw_worst_pairs(verdict: Verdict, folder: Path) -> dict[str, Path]:
    """Writes one picture for each of the worst pairs, at most four; pair → file. None for a verdict without regressions.

    Raises:
        OSError: the folder can't be written.
    """
    if not verdict.pairs or verdict.baseline is None or verdict.evaluation_file is None:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for pair in list(verdict.pairs)[:MOST]:
        number = verdict.baseline.pairs.index(pair)  # the run may name the same pictures otherwise
        path = folder / f"pair_{number:02d}.png"
        _draw(verdict, pair, number).save(path)
        drawn[pair] = path
    return drawn


def _draw(verdict: Verdict, pair: str, number: int) -> Image.Image:
    assert verdict.evaluation is not None and verdict.evaluation_file is not None and verdict.baseline is not None
    own = [f"{number}/{name}" for name in PICTURES]
    # The pairs are the same on both sides, so either file will do; a baseline made elsewhere may have none.
    stored = read_arrays(verdict.evaluation_file.with_name(pairs_file_name(verdict.evaluation)), own)
    stored = {**read_arrays(verdict.baseline_file, own), **stored}
    pictures = {name.partition("/")[2]: unpack_picture(array) for name, array in stored.items()}
    grey = Image.new("RGB", (256, 256), (128, 128, 128))
    what = "; ".join((verdict.pairs or {})[pair])
    return comparison(
        name=pair,
        subtitle=f"step {verdict.baseline.global_step} and step {verdict.evaluation.global_step}: {what}",
        reference=pictures.get("reference", grey),
        truth=pictures.get("target", grey),
        before=_seen(verdict.baseline_file, number),
        now=_seen(verdict.evaluation_file, number),
        hole=_mask(pictures.get("mask")),
        reference_object=_mask(pictures.get("reference_mask")),
    )


def _seen(path: Path, number: int) -> tuple[Image.Image | None, Any, Any]:
    """(generated, R2G, what the hole draws from the reference)."""
    arrays = {n.partition("/")[2]: a for n, a in read_arrays(path, [f"{number}/{name}" for name in MAPS]).items()}
    generated = unpack_picture(arrays["generated"]) if "generated" in arrays else None
    missing = "no map of it is stored"
    g2r = arrays.get("g2r_region/unified", arrays.get("g2r/unified", missing))
    return generated, arrays.get("r2g/unified", missing), g2r


def _mask(picture: Image.Image | None) -> np.ndarray | None:
    return None if picture is None else np.asarray(picture.convert("L")) > 127
