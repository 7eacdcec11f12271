"""What the tab says of figures it reads off the run: names, hints, which way is worse; also of one that only the run knows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stored_runs import column, evaluation, mark, write_run
from tab_page import Tab

from benchmarks.browser import tensorboard
from i2am_debug import DeclaredFigure
from i2am_debug.figures.declared import COPYING_LAYER_IMACS_R_HOLE, FIGURES, PROBES
from i2am_debug.figures.values import Undefined
from i2am_debug.store.run_store import RunStore
from i2am_debug.tab import index_file
from i2am_debug.tab.refusal import Refusal

OLD = Path(__file__).parents[1] / "fixtures" / "written_by_0.1.0" / "run"
MARKUP = "<img src=x onerror=parent.hacked=1>"
STATIC = Path(index_file.__file__).parent / "static"


def own_figure(**changes: Any) -> DeclaredFigure:
    given: dict[str, Any] = {
        "tag": "blur",
        "title": f"blur {MARKUP}",
        "meaning": f"How flat the map is. {MARKUP}",
        "unit": "tokens",
        "worse": "up",
        "compute": lambda view: 0.0,
        "compute_of_layer": lambda view, layer: 0.0,
    }
    return DeclaredFigure(**{**given, **changes})


def write_with_own_figure(folder: Path, figure: DeclaredFigure) -> Path:
    """Two evaluations; the figure rises most in the last pair."""
    evaluations = []
    for step, rise in ((0, 0.0), (10, 1.0)):
        values = tuple(2.0 + rise * i for i in range(4))
        figures = {
            figure.tag: values,
            f"layer/up/{figure.tag}": values,
            "layer/down/imacs_r_hole": column(0.3, count=4),
            "probe/mirrored": column(0.05, count=4),
        }
        figures["drift/js_r2g"] = (Undefined("no baseline"),) * 4 if step == 0 else column(0.1, count=4)
        evaluations.append(evaluation(step, figures, count=4, declared={figure.tag: figure}))
    write_run(folder, evaluations, pictures=True)
    return mark(folder)


def timeline(run: Path) -> dict[str, Any]:
    with open(RunStore(run).index, "rb") as file:
        return index_file.timeline(file, "index.jsonl", None)


# -- what the backend answers ----------------------------------------------------------------------------------------


def test_the_figures_of_this_package_and_those_of_the_run_are_told(tmp_path: Path) -> None:
    found = timeline(write_with_own_figure(tmp_path, own_figure()))["declared"]
    assert set(found) == {"blur", *(figure.tag for figure in FIGURES)}
    assert (found["blur"]["worse"], found["blur"]["of_layer"], found["blur"]["unit"]) == ("up", True, "tokens")


def test_words_and_numbers_of_figures_are_bounded(tmp_path: Path) -> None:
    run = write_with_own_figure(tmp_path, own_figure(title="t" * 10**5, meaning="m" * 10**5, unit="u" * 10**5))
    found = timeline(run)["declared"]["blur"]
    assert (len(found["title"]), len(found["meaning"]), len(found["unit"])) == (200, 1000, 60)
    line = json.loads(RunStore(run).index.read_text().splitlines()[-1])
    short = {**line["declared"][0], "title": "t", "meaning": "m", "unit": "u"}
    line["declared"] = [{**short, "tag": f"blur_{i}"} for i in range(500)]
    RunStore(run).index.write_text(json.dumps(line) + "\n")
    assert len(timeline(run)["declared"]) == len(FIGURES) + index_file.DECLARED


@pytest.mark.parametrize("broken", [{}, [1], [{"tag": "x"}], "text", [{"tag": "layer/x"}], [[]], {"a": 1}])
def test_a_broken_declaration_is_refused(tmp_path: Path, broken: Any) -> None:
    run = write_with_own_figure(tmp_path, own_figure())
    line = json.loads(RunStore(run).index.read_text().splitlines()[-1])
    RunStore(run).index.write_text(json.dumps({**line, "declared": broken}) + "\n")
    with pytest.raises(Refusal, match="has a line that can't be read"):
        timeline(run)


def test_a_run_can_not_say_otherwise_of_a_figure_of_this_package(tmp_path: Path) -> None:
    found = timeline(write_with_own_figure(tmp_path, own_figure(tag="loss", title="profit", worse="down")))["declared"]
    assert found["loss"]["title"] == "loss" and found["loss"]["worse"] == "up"


def test_the_page_knows_no_figure_by_name() -> None:
    names = {f.tag.rpartition("/")[2] for f in FIGURES if f not in PROBES} - {"loss"}  # which, as theirs, are words
    for path in sorted(STATIC.glob("*.js")):
        assert not [name for name in names if f"'{name}'" in path.read_text()], path.name


# -- what a person sees ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(OLD, folder / "old")
    mark(folder / "old")
    write_with_own_figure(folder / "own", own_figure())
    with tensorboard("--logdir", str(folder)) as (started, _):
        yield started


def opened(browser: Any, address: str, state: str) -> Tab:
    tab = Tab(browser, address, state)
    assert unexpected(tab) == []
    return tab


def unexpected(tab: Tab) -> list[str]:
    """What went wrong unseen, but for arrays that these small runs do not have."""
    return [error for error in tab.errors if "404" not in error]


def heading(tab: Tab) -> tuple[str, str, str]:
    """Title, hint and tag of the large chart."""
    title = tab.page.locator(".timeline h2")
    return title.inner_text(), title.get_attribute("title") or "", tab.page.locator(".timeline .tag").inner_text()


@pytest.mark.browser
def test_a_run_of_version_0_1_0_is_shown(browser: Any, address: str) -> None:
    tab = opened(browser, address, "p.i2am_debug.run=old")
    tab.is_at(24)
    assert heading(tab)[2] == "reference_gap", "what fired last, and is critical"
    assert "fine at step 8" in tab.words()
    watched = COPYING_LAYER_IMACS_R_HOLE
    tab.page.get_by_label("Score", exact=True).select_option(watched.tag)
    tab.page.wait_for_function("title => document.querySelector('.timeline h2').innerText === title", arg=watched.title)
    assert heading(tab) == (watched.title, f"{watched.meaning} ({watched.tag})", watched.tag)
    tab.screenshot("run_of_0.1.0")
    assert unexpected(tab) == []


@pytest.mark.browser
def test_a_figure_that_only_the_run_knows_is_shown_as_text(browser: Any, address: str) -> None:
    tab = opened(browser, address, "p.i2am_debug.run=own&p.i2am_debug.figure=blur")
    tab.is_at(10)
    assert heading(tab) == (f"blur {MARKUP}", f"How flat the map is. {MARKUP} (blur)", "blur")
    assert tab.page.locator(".pair .pair-name").all_inner_texts() == ["pair 3", "pair 2", "pair 1", "pair 0"]
    assert tab.page.locator(".pair-change.worse").count() == 3, "its rise is the bad direction"
    tab.page.locator(".by-layer summary").click()
    tab.page.get_by_label("Score of each layer").select_option("blur")
    tab.page.wait_for_function(
        "[...document.querySelectorAll('.by-layer .small')].some((e) => e.dataset.tag === 'layer/up/blur')"
    )
    assert tab.page.evaluate("parent.hacked ?? window.hacked ?? null") is None
    tab.screenshot("figure_of_a_runs_own")
    assert unexpected(tab) == []


@pytest.mark.browser
def test_probes_stand_apart(browser: Any, address: str) -> None:
    tab = opened(browser, address, "p.i2am_debug.run=own&p.i2am_debug.figure=blur")
    tab.is_at(10)
    tags = "where => [...document.querySelectorAll(`${where} .small`)].map((chart) => chart.dataset.tag)"
    assert tab.page.evaluate(tags, ".probes") == ["probe/mirrored"]
    assert "probe/mirrored" not in tab.page.evaluate(tags, ".timeline > .small-charts")
    assert not tab.page.locator(".probes .small").is_visible()
    tab.page.locator(".probes summary").click()
    tab.page.locator(".probes .small").click()
    tab.page.wait_for_function(
        "document.querySelector('.timeline h2').innerText === 'loss with the reference mirrored'"
    )
    assert unexpected(tab) == []
    old = opened(browser, address, "p.i2am_debug.run=old")
    old.is_at(24)
    assert not old.page.locator(".probes").is_visible(), "a run without them has no such place"
