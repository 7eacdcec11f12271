"""One valid file of each kind that is damaged: a run with three evaluations and two alerts, a baseline, rules, and pairs."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from i2am_debug.alerts.alert import make_alert
from i2am_debug.alerts.judge import findings
from i2am_debug.alerts.rules import Rules
from i2am_debug.gate.baseline import save_baseline
from i2am_debug.store.run_store import RunStore

SIZE = 9, 5
"""Width and height of the pairs' pictures: one is a few hundred bytes, so that damage seldom misses what matters."""


def make_folder(folder: Path) -> None:
    """Valid files of all kinds."""
    from stored_runs import evaluation, generated, maps, sick, write_run  # of the tests

    first = evaluation(0)
    margins = {"reference_gap": "10%", "imacs_g": 0.05}
    write_run(folder / "run", [first, evaluation(50), sick(100)], [{**maps(), **generated()}] * 3, pictures=True)
    store = RunStore(folder / "run")
    save_baseline(store, store.evaluations()[0], folder / "baseline.safetensors", margins=margins)
    fired = [one for one in findings(Rules(), first, [evaluation(50), sick(100)]) if one.fired]
    store.write_alert(make_alert(first, [first, evaluation(50), sick(100)], fired))
    store.write_alert(make_alert(first, [first, sick(75)], fired))
    (folder / "rules.toml").write_text(RULES, encoding="utf-8")
    (folder / "val").mkdir()
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)
    deep = rng.integers(0, 2**16, SIZE[::-1]).astype(np.uint16)
    rows = []
    for name, picture in _pictures(colours, deep).items():
        picture.save(folder / "val" / name)
        rows.append(
            {"file_name": name, "reference_file_name": "colours.png", "mask_file_name": "mask.png", "prompt": "a cup"}
        )
    mask = np.zeros(SIZE[::-1], dtype=np.uint8)
    mask[1:3, 2:5] = 255
    for name, own in {"mask.png": mask, "mask.tiff": mask.astype(np.uint16) * 257, "mask.gif": mask}.items():
        Image.fromarray(own).save(folder / "val" / name)
    rows[0].update(name="first", further_reference_file_names=["deep.png", "colours.jpg"], extra={"a": [1, 2.5, None]})
    rows[1].update(reference_mask_file_name="mask.png", mask_file_name="mask.tiff")
    rows[2].update(kept_mask_file_name="mask.gif", mask_file_name=None, guidance_scale=2.5)
    (folder / "val" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for path in folder.rglob("*.safetensors"):
        _put_in_order(path)


def _put_in_order(path: Path) -> None:
    """The library writes a header's texts in another order each time; the same damage needs the same bytes."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])


def _pictures(colours: np.ndarray, deep: np.ndarray) -> dict[str, Image.Image]:
    plain = Image.fromarray(colours)
    grey = Image.fromarray(colours[..., 0])
    return {
        **{f"colours.{ending}": plain for ending in ("png", "jpg", "bmp", "webp", "tiff", "ppm", "gif", "tga", "ico")},
        "deep.png": Image.fromarray(deep),
        "deep.tiff": Image.fromarray(deep),
        "floats.tiff": Image.fromarray((deep / 65535).astype(np.float32)),
        "whole.tiff": Image.fromarray(deep.astype(np.int32)),
        "alpha.png": plain.convert("RGBA"),
        "palette.png": plain.quantize(16),
        "bits.png": grey.convert("1"),
        "inks.jpg": plain.convert("CMYK"),
    }


RULES = """[i2am.rules]
alpha = 0.05
min_pairs = 8
defaults = true

[i2am.rules.gap-drop]
margin = "10%"
severity = "critical"
patience = 1

[i2am.rules.mine]
kind = "floor"
figure = "imacs_g"
limit = 0.1
severity = "info"

[i2am.rules.imacs-g-drop]
enabled = false

[i2am.rules.lost]
kind = "undefined"
figure = "*"
limit = 0.25
"""
