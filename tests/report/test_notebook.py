"""What a notebook shows of evaluations, alerts and maps, and the example notebook, its cells run in order without a kernel."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from stored_runs import evaluation
from training import few_probes

from i2am_debug.alerts.alert import Alert
from i2am_debug.alerts.finding import Finding
from i2am_debug.figures.values import Undefined
from i2am_debug.report.notebook import alert_html, evaluation_html, maps_png

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"


class Read(HTMLParser):
    """The words of a page; refuses tags that are not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words, self.tags, self._open = "", set(), []
        self.feed(page)
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._open.append(tag)
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """As a notebook does: what the last line gives, if it is an expression."""
    *before, last = ast.parse(source).body
    if not isinstance(last, ast.Expr):
        before, last = [*before, last], None
    exec(compile(ast.Module(before, []), "cell", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_the_example_notebook_runs_and_shows_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    names, shown = {"__name__": "__main__"}, []
    with few_probes():
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                assert not cell["outputs"] and cell["execution_count"] is None, "kept without what it showed somebody"
                shown.append(run_cell("".join(cell["source"]), names))
    maps, panel, before, after, alert = [one for one in shown if one is not None]
    assert Image.open(io.BytesIO(maps._repr_png_())).width <= 1024 and isinstance(panel, Image.Image)
    assert "Evaluation at step 0" in Read(before._repr_html_()).words
    assert "Evaluation at step 100" in Read(after._repr_html_()).words
    assert "the model no longer uses its reference at step 100" in Read(alert._repr_html_()).words
    assert list((tmp_path / "runs/notebook").glob("events.out.tfevents.*"))


def test_an_evaluation_shows_its_means_and_why_there_are_none():
    told = evaluation(7)
    page = Read(evaluation_html(told))
    found = told.estimate("reference_gap")
    assert f"Evaluation at step 7, {len(told.pairs)} pairs" in page.words
    assert f"reference gap{found.mean:.3g}{found.low:.3g} … {found.high:.3g}" in page.words.replace("\n", "")
    without = replace(told, figures={"loss": (Undefined("<b>no</b> & nothing"),) * len(told.pairs)})
    assert "loss: <b>no</b> & nothing" in Read(evaluation_html(without)).words
    assert "script" not in Read(evaluation_html(without)).tags


def test_an_alert_is_escaped():
    finding = Finding(rule="own", kind="ceiling", severity="warning", figure="loss", words="is <script>high</script>")
    page = Read(alert_html(Alert(global_step=3, baseline_step=0, fine_at=0, findings=(finding,))))
    assert "loss is <script>high</script>" in page.words and "script" not in page.tags
    assert "warning: loss is beyond its limit at step 3" in page.words


def test_maps_without_a_grid_and_without_g2r_are_drawn(tiny_pipeline):
    from i2am_debug import trace
    from i2am_debug.demo.inpainting.pairs import validation_pairs

    pair = validation_pairs(1, seed=1)[0]
    with trace(tiny_pipeline) as t:
        tiny_pipeline(
            image=pair.target, mask_image=pair.mask_image, example_image=pair.reference, num_inference_steps=2
        )
    maps = t.maps()
    height = Image.open(io.BytesIO(maps_png(maps))).height
    row = replace(maps.g2r, unified=np.full((1, 5), 0.2), by_time=np.full((2, 1, 5), np.nan))
    assert Image.open(io.BytesIO(maps_png(replace(maps, _g2r=row)))).height > height / 2
    alone = Image.open(io.BytesIO(maps_png(replace(maps, _g2r=None, undefined_g2r="one reference token"))))
    assert alone.height < height, "R2G alone"


@pytest.mark.parametrize("name", ["Evaluation", "Alert", "AttributionMaps"])
def test_what_comes_through_the_front_door_can_be_shown(name):
    shows = "_repr_png_" if name == "AttributionMaps" else "_repr_html_"
    program = f"import i2am_debug, sys; assert hasattr(i2am_debug.{name}, {shows!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
