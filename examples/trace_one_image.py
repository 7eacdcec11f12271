"""What does one generated picture draw from its reference? No training loop needed.

python examples/trace_one_image.py OUT_FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from i2am_debug import CapturePlan, imacs, trace
from i2am_debug.demo.inpainting.pairs import validation_pairs
from i2am_debug.demo.inpainting.pipeline import load_tiny_pipeline
from i2am_debug.report.explain import explain
from i2am_debug.report.render import heat


def main(folder: Path) -> None:
    pipeline = load_tiny_pipeline()
    pair = validation_pairs(1, seed=1)[0]
    with trace(pipeline, plan=CapturePlan.full(), mask=pair.mask, reference_mask=pair.reference_mask) as t:
        image = pipeline(image=pair.target, mask_image=pair.mask_image, example_image=pair.reference).images[0]
    maps = t.maps()

    print("IMACS_g", imacs(maps.r2g.unified, pair.mask))
    print("IMACS_r", imacs(maps.g2r.unified, pair.reference_mask))
    for layer, bits in maps.layer_information.items():
        print(f"{layer}: {bits:.2f} bit of attention information")
    row, col = np.argwhere(pair.mask).mean(0).astype(int) // 2  # the middle of the hole: 32 pixels, 16 patches
    drawn_from = maps.specific(row, col)
    found = divmod(int(drawn_from.argmax()), drawn_from.shape[1])
    print(f"the generated patch {(int(row), int(col))} draws most from the reference patch {found}")

    folder.mkdir(parents=True, exist_ok=True)
    files = {"reference": pair.reference, "image": pair.target, "mask": pair.mask_image}
    explain(pipeline, **files, reference_mask=pair.reference_mask, name=pair.name).save(folder / "panel.png")
    heat(image, maps.r2g.unified, size=(512, 512)).save(folder / "r2g.png")
    heat(pair.reference, maps.g2r.unified, size=(512, 512)).save(folder / "g2r.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/explain"))
