"""Parts of the evidence in short; and that a figure which follows quality is told from one that does not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.evidence import detection, trust
from benchmarks.evidence.__main__ import PARTS, document
from benchmarks.evidence.section import FOUND, Section
from benchmarks.evidence.sizes import SHORT
from i2am_debug.figures.declaration import COPYING_LAYER
from i2am_debug.figures.declared import FIGURES


def test_detection_in_short() -> None:
    section = detection.measure(SHORT, Path())
    for found in section.values.values():
        best = max(one["iou_65"][0] for name, one in found.items() if name.startswith("the best box"))
        drawn = found["a random box of 30 to 50 % of the picture"]["iou_65"][0]
        maps = [one["iou_80"][0] for one in found.values() if "iou_80" in one]
        assert all(drawn < value <= best for value in maps), found
    assert "| the whole picture |" in section.markdown()


def made_up(folder: Path, kind: str, seed: int, worse: float) -> None:
    """A run whose loss rises and whose gap falls as its quality does; its IMACS goes its own way."""
    noise = np.random.default_rng(seed + 100 * len(kind)).normal(0, 0.3, 4)
    rows = [
        {"loss": [0.1 + 0.1 * w], "reference_gap": [1 - 0.2 * w], "imacs_g": [0.2 + own]}
        for w, own in ((0, 0), *((worse * step / 3, noise[step]) for step in (1, 2, 3)))
    ]
    run = folder / f"{kind}_{seed}"
    (run / "plugins/i2am_debug").mkdir(parents=True)
    (run / "plugins/i2am_debug/index.jsonl").write_text(
        "".join(
            json.dumps({"global_step": 16 * n, "watched_layer": "up", "means": means}) + "\n"
            for n, means in enumerate(rows)
        )
    )
    psnr = {str(16 * n): 20.0 - 3 * worse * n / 3 for n in range(4)}
    (run / "done.json").write_text(json.dumps({"psnr": psnr}))


def test_a_figure_that_follows_quality_is_told_from_one_that_does_not(tmp_path: Path) -> None:
    for model in trust.MODELS:
        for seed in range(6):
            made_up(tmp_path / model, "healthy", seed, worse=0.01 * seed)
            made_up(tmp_path / model, "zero", seed, worse=1 + 0.2 * seed)
    section = trust.measure(SHORT, tmp_path)
    for found in section.values.values():
        assert found["loss"]["rho"][0] == pytest.approx(1) and found["reference_gap"]["rho"][0] == pytest.approx(1)
        assert abs(found["imacs_g"]["rho"][0]) < 0.8
        assert found["loss"]["seen"] == 6 and found["loss"]["before_loss"] == found["loss"]["after_loss"] == 0


def test_what_stands_in_front_is_worth_something() -> None:
    """Of every figure in the log, on panels, with a chart of its own or shown where there is room for one alone."""
    found = json.loads((FOUND / "trust.json").read_text(encoding="utf-8"))["values"]
    front = [f for f in FIGURES if f.in_log or f.on_panel or f.band or f.prominence]
    judged = 0
    for figure in front:
        tag = "copying_layer" if figure.tag.startswith(COPYING_LAYER) else figure.tag
        rhos = [of_model[tag]["rho"][0] for of_model in found.values() if tag in of_model]
        assert not rhos or max(rhos) > 0.5, (figure.tag, rhos)
        judged += bool(rhos)
    assert judged >= 6


def test_the_front_page_quotes_five_numbers_at_most_as_they_were_found() -> None:
    found = {name: json.loads((FOUND / f"{name}.json").read_text(encoding="utf-8"))["values"] for name in PARTS}
    boxes, moved = found["detection"]["the object in the reference"], found["editing"]["by_layer"]["all layers"]
    quoted = [
        max(one["iou_80"][0] for one in boxes.values() if "iou_80" in one),
        boxes["a random box of 30 to 50 % of the picture"]["iou_65"][0],
        moved["moved"][0],
        moved["moved_prompt"][0],
        found["inpainting"]["rank_correlation"]["patch_tokens"]["imacs_g"]["equal"][0],
    ]
    page = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (told,) = re.findall(r"^## Whether the maps tell the truth$(.*?)^## ", page, re.DOTALL | re.MULTILINE)
    assert re.findall(r"-?\d[\d.]*\d", told) == [f"{value:.2f}" for value in quoted]


def test_the_document_is_of_what_was_found() -> None:
    page = document()
    assert page == (Path(__file__).parents[2] / "docs/evidence.md").read_text(encoding="utf-8")
    for name in PARTS:
        section = Section.kept(name)
        assert section is not None and section.title in page
