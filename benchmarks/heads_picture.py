"""The heads of three layers of the inpainting demo, for docs/reading-the-maps.md: `python -m benchmarks.heads_picture F`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from benchmarks.evidence.looked_at import held_out, look
from i2am_debug.report.panels import strip

LAYERS = ("up_blocks.0.attentions.1", "up_blocks.1.attentions.0", "up_blocks.1.attentions.1")
PAIRS, SHOWN = 16, 4


def _short(layer: str) -> str:
    return layer.replace("_blocks", "").replace(".attentions", "")


def main() -> int:
    pairs = held_out("inpainting", PAIRS, seed=0)
    _, seen = look("inpainting", pairs)
    bits = {layer: np.mean([one.maps.information[layer] for one in seen], 0) for layer in LAYERS}
    maps = seen[SHOWN].maps.g2r.by_layer_head
    drawn = strip(
        title="What each head draws from the reference (G2R)",
        picture=pairs[SHOWN].reference,
        region=pairs[SHOWN].reference_mask,
        maps=[head for layer in LAYERS for head in maps[layer]],
        labels=[f"{_short(la)} head {n}: {bits[la][n]:.1f} bit" for la in LAYERS for n in range(len(bits[la]))],
        note=f"Outlined: the object. Bits: the mean over {PAIRS} pairs.",
    )
    drawn.save(Path(sys.argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
