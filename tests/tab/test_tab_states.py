"""What the tab shows in every state that a run, its files or a TensorBoard may be in, in a real browser.

The runs are synthetic: each generated patch draws on one reference patch, the one that many places further on, and each map
has its peak where the step says, so that what is painted can be told apart.
"""

from __future__ import annotations

import json
import re
import shutil
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from stored_runs import COPYING, column, evaluation, generated, mark, pairs
from tab_page import Tab
from tensorboard.plugins import base_plugin
from werkzeug.test import Client

from benchmarks.browser import tensorboard
from i2am_debug.figures.record import FORMAT
from i2am_debug.figures.values import Undefined
from i2am_debug.store.evaluation_file import read_figures
from i2am_debug.store.run_store import RunStore
from i2am_debug.tab.backend import Backend

pytestmark = pytest.mark.browser

Grid = tuple[int, int]
SHIFT = 5
"""The generated patch q draws on the reference patch q + SHIFT, on grids of the same size."""


# -- making runs -----------------------------------------------------------------------------------------------------


def peaked(grid: Grid, at: int) -> np.ndarray:
    """A map with most of its mass on one token."""
    found = np.full(grid, 0.2 / np.prod(grid), dtype=np.float32)
    found.flat[at % found.size] += 0.8
    return found


def arrays(
    count: int,
    layers: Sequence[str],
    *,
    heads: int = 3,
    times: int = 2,
    grid: Grid = (4, 4),
    reference: Grid = (4, 4),
    peak: int = 0,
    directions: Sequence[str] = ("r2g", "g2r"),
    rows: bool = True,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """All that an evaluation stores beside its figures, and the grids of its rows."""
    sizes = {"r2g": grid, "g2r": reference}
    found: dict[str, np.ndarray] = {}
    for i in range(count):
        for name in directions:
            size = sizes[name]
            found[f"{i}/{name}/unified"] = peaked(size, peak)
            found[f"{i}/{name}/by_time"] = np.stack([peaked(size, 1 + t) for t in range(times)]).astype(np.float16)
            found[f"{i}/{name}/by_head"] = np.stack([peaked(size, 2 + h) for h in range(heads)]).astype(np.float16)
            for at, layer in enumerate(layers):
                found[f"{i}/{name}/by_layer/{layer}"] = peaked(size, 3 + at).astype(np.float16)
        found[f"{i}/information"] = np.tile(np.arange(1, heads + 1, dtype=np.float32), (len(layers), 1))
        if rows:
            g, r = int(np.prod(grid)), int(np.prod(reference))
            drawn = np.full((g, r), 10, dtype=np.uint8)
            drawn[np.arange(g), (np.arange(g) + SHIFT) % r] = 255
            found[f"{i}/rows/unified"] = drawn
            found[f"{i}/rows/unified/scale"] = np.full(g, 0.5, dtype=np.float32)
    if count <= 20:
        found |= generated(count)
    grids = {str(i): {"unified": [list(grid), list(reference)]} for i in range(count)} if rows else {}
    return found, grids


def write(
    run: Path,
    *steps: int,
    count: int = 2,
    names: Sequence[str] | None = None,
    changed: Mapping[str, Sequence[Any]] | None = None,
    layers: Sequence[str] = ("down", "up"),
    edit: Callable[[dict[str, np.ndarray]], None] = lambda stored: None,
    options: Mapping[str, Any] | None = None,
    **kinds: Any,
) -> Path:
    """Evaluations of a run. `edit` changes the arrays of each, `options` are of `Evaluation`, `kinds` of `arrays`."""
    store = RunStore(run)
    for step in steps:
        given = {"layers": tuple(layers), "copying_layer": layers[-1], **(options or {})}
        if names is not None:
            given["pairs"] = tuple(names)
        scores = {f"layer/{layers[-1]}/imacs_r_hole": column(0.4, count=count)}
        if store.evaluations():  # the first is the baseline of the others
            scores |= {f"drift/{name}": column(0.2, count=count) for name in ("js_r2g", "js_g2r")}
        one = evaluation(step, {**scores, **(changed or {})}, count=count, **given)
        stored, grids = arrays(count, layers, **{"peak": step, **kinds})
        edit(stored)
        store.write(one, stored, grids)
        store.write_pairs(one, pairs(one.pairs))
    return run


def own(run: Path) -> Path:
    return run / "plugins" / "i2am_debug"


NAMED = ["a/b/c", ".", "with a space", 'quo\'te "d"', "per%2e&run=x#y?z=+1", "Ünïcødé 模型 🙂"]
LONG_RUN, LONG_PAIR = "run_" + 236 * "x", "pair_" + 300 * "y"
DEEP_LAYERS = [f"transformer_blocks.{i}.attention_processor_with_a_long_name.to_reference_values" for i in range(57)]
LONG_REASON = "no pair of this evaluation has a mask, and without one nobody knows which tokens are those of the hole"


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run for each state."""
    folder = tmp_path_factory.mktemp("runs")
    for at, name in enumerate(NAMED):
        mark(write(folder / name, 0, 1 + at, count=1))
    mark(write(folder / "good", 0, 8, 16, count=4, layers=("down", "mid", "up")))
    mark(write(folder / "small", 4, count=1, layers=("other",), heads=2, times=1))
    mark(write(folder / "sparse", 1, 2, 3))
    mark(folder / "waiting")
    mark(write(folder / "newer index", 0, 8))
    newer(own(folder / "newer index") / "index.jsonl")
    mark(write(folder / "newer file", 0, 8))
    newer(own(folder / "newer file") / "step_00000008.safetensors")
    mark(write(folder / "thinned", 0, 8, 16))
    RunStore(folder / "thinned").drop_rows(0), RunStore(folder / "thinned").drop_rows(8)
    one_token = Undefined("one reference token")
    mark(
        write(
            folder / "one token",
            *(0, 8),
            reference=(1, 1),
            directions=("r2g",),
            rows=False,
            changed={tag: (one_token,) * 2 for tag in (COPYING, "imacs_r", "drift/js_g2r")},
            options={"copying_layer": one_token},
        )
    )
    mark(write(folder / "bars", 0, 3, reference=(1, 8)))
    undefined = {tag: (Undefined(LONG_REASON),) * 2 for tag in (COPYING, "imacs_g", "imacs_r", "loss")}
    mark(write(folder / "undefined", 0, 8, changed=undefined, edit=without_values))
    mark(write(folder / "many", 0, 8, count=200, names=[LONG_PAIR, *(f"pair {i}" for i in range(1, 200))]))
    scores = {f"layer/{layer}/imacs_r_hole": (0.3, 0.4) for layer in DEEP_LAYERS}
    mark(write(folder / "deep", 0, 8, layers=DEEP_LAYERS, heads=24, changed=scores))
    mark(write(folder / LONG_RUN, 0, 8))
    known = {"drift/js_r2g": (0.1, 0.2), "drift/js_g2r": (0.1, 0.2)}
    mark(write(folder / "unlike", 0, changed=known))
    other = {**evaluation(count=2).fingerprint, "seed": 1}
    write(folder / "unlike", 8, changed=known, options={"fingerprint": other})
    return folder


def newer(path: Path) -> None:
    """Makes a file say that it is of the next version."""
    if path.suffix == ".jsonl":
        path.write_text(path.read_text().replace(f'"format": {FORMAT}', f'"format": {FORMAT + 1}'))
        return
    text = json.dumps(read_figures(path).to_json())
    save_file(load_file(path), path, metadata={"format": str(FORMAT + 1), "evaluation": text, "grids": "{}"})


def without_values(stored: dict[str, np.ndarray]) -> None:
    """NaN, as where no sample was looked at."""
    for name, array in stored.items():
        if array.dtype.kind == "f":
            stored[name] = np.full_like(array, np.nan)


@pytest.fixture(scope="module")
def address(logdir: Path) -> Iterator[str]:
    with tensorboard("--logdir", str(logdir), "--reload_interval", "1") as (started, _):
        wait_for_runs(started, lambda names: len(names) >= 20)
        yield started


def wait_for_runs(address: str, enough: Callable[[set[str]], bool]) -> None:
    """Until TensorBoard lists what is asked for."""
    deadline = time.monotonic() + 30
    while not enough({run["name"] for run in listing(address)["runs"]}):
        assert time.monotonic() < deadline, listing(address)
        time.sleep(0.1)


def listing(address: str) -> Any:
    with urllib.request.urlopen(f"{address}/data/plugin/i2am_debug/runs") as answer:
        return json.load(answer)


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Tab]:
    opened = Tab(browser, address, link(run="good"))
    yield opened
    assert opened.errors == []
    opened.page.close()


# -- reading the page; `page` is one, or a frame ---------------------------------------------------------------------


def link(**state: Any) -> str:
    """The part of an address that says what is shown."""
    return "&".join(f"p.i2am_debug.{key}={urllib.parse.quote(str(value), safe='')}" for key, value in state.items())


def choose(page: Any, run: str, message: str | None = None, notes: str = "") -> None:
    """Chooses another run, and waits until it is shown, or the `message` instead of it; `notes` say what it lacks."""
    page.evaluate("delete document.documentElement.dataset.ready")
    page.locator("select.run").select_option(run)
    is_shown = "begin => document.documentElement.dataset.ready?.startsWith(begin)"
    page.wait_for_function(is_shown, arg="message" if message else f"{run} ", timeout=15_000)
    assert page.locator(".trouble").is_hidden() == (not notes) and words(page, ".trouble") == notes
    assert page.locator(".columns").is_hidden() == bool(message) and (message or "") in words(page)


def is_at(page: Any, run: str, step: int) -> None:
    at = "wanted => document.documentElement.dataset.ready === wanted"
    page.wait_for_function(at, arg=f"{run} {step}", timeout=15_000)


def words(page: Any, where: str = "body") -> str:
    return page.locator(where).first.inner_text()


def canvas(page: Any, side: str) -> Any:
    return page.locator(".views canvas").nth(0 if side == "generated" else 1)


CELLS = """(e, [height, width]) => {
  const {data} = e.getContext('2d').getImageData(0, 0, e.width, e.height), found = [];
  for (let i = 0; i < height * width; i++) {
    const y = Math.floor((Math.floor(i / width) + 0.5) / height * e.height);
    const x = Math.floor((i % width + 0.5) / width * e.width);
    const at = 4 * (y * e.width + x);
    found.push(data[at] + data[at + 1] - data[at + 2]);
  }
  return found;
}"""
BARS = """(e, count) => {
  const {data} = e.getContext('2d').getImageData(0, 0, e.width, e.height);
  return Array.from({length: count}, (_, i) => {
    const x = Math.floor((i + 0.5) / count * e.width);
    const isBar = (y) => { const at = 4 * (y * e.width + x); return data[at] + data[at + 1] + data[at + 2] > 120; };
    let y = e.height - 1;
    while (y > 0.64 * e.height && isBar(y)) y--;
    return e.height - 1 - y;
  });
}"""


def peak(page: Any, side: str, grid: Grid = (4, 4)) -> int | None:
    """The token whose colour stands out; None where none does."""
    found = canvas(page, side).evaluate(CELLS, list(grid))
    ranked = sorted(found)
    return found.index(ranked[-1]) if ranked[-1] > ranked[-2] + 60 else None


def bars(page: Any, side: str, count: int) -> list[int]:
    """The heights of the bars in pixels."""
    return canvas(page, side).evaluate(BARS, count)


def highest(heights: Sequence[int]) -> int:
    ranked = sorted(heights)
    assert ranked[-1] > 2 * ranked[-2] > 0, heights
    return list(heights).index(ranked[-1])


def is_one_colour(page: Any, side: str) -> bool:
    return len(set(canvas(page, side).evaluate(CELLS, [16, 16]))) == 1


def hover(page: Any, side: str, token: int, grid: Grid) -> None:
    """Puts the pointer on a token of a picture."""
    box = canvas(page, side).bounding_box()
    y, x = divmod(token, grid[1])
    page.mouse.move(box["x"] + (x + 0.5) / grid[1] * box["width"], box["y"] + (y + 0.5) / grid[0] * box["height"])


def overflow(page: Any) -> list[str]:
    """What reaches beyond the window's right edge; nothing where the page can't be scrolled sideways."""
    return page.evaluate(
        """() => {
          if (document.documentElement.scrollWidth <= window.innerWidth) return [];
          const isClipped = (e) => e && (getComputedStyle(e).overflowX !== 'visible' || isClipped(e.parentElement));
          return [...document.querySelectorAll('body *')]
            .filter((e) => e.getBoundingClientRect().right > window.innerWidth + 1 && !isClipped(e.parentElement))
            .map((e) => `${e.tagName} ${e.getAttribute('class')} in ${e.parentElement.className}`);
        }"""
    )


# -- names -----------------------------------------------------------------------------------------------------------


def test_runs_may_be_nested_lie_in_the_logdir_itself_and_have_any_name(browser: Any, address: str, tab: Tab) -> None:
    offered = tab.page.locator("select.run option").all_inner_texts()
    for at, name in enumerate(NAMED):
        assert name in offered
        choose(tab.page, name)
        is_at(tab.page, name, 1 + at)
        assert peak(tab.page, "generated") == 1 + at, "each of these runs has its peak elsewhere"
        assert "2 of 2" in words(tab.page, ".step-words")
        key = tab.page.locator(".timeline .key label").filter(has=tab.page.locator("input:disabled")).inner_text()
        assert key == name
        if name in (".", NAMED[-1], NAMED[-2]):
            again = Tab(browser, address, tab.page.evaluate("location.hash.slice(1)"))
            assert again.ready() == f"{name} {1 + at}" and again.errors == []
            again.page.close()


# -- a run that is written, and one that goes ------------------------------------------------------------------------


@pytest.fixture
def frame(browser: Any, address: str) -> Iterator[Any]:
    """The tab inside TensorBoard's own page."""
    page = browser.new_page(viewport={"width": 1440, "height": 1100})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{address}/#i2am_debug")
    page.locator("iframe").wait_for(timeout=30_000)
    page.frame_locator("iframe").locator("select.run option").first.wait_for(state="attached", timeout=15_000)
    yield page.frame(url=re.compile("plugin_entry"))
    assert errors == []
    page.close()


def reload(frame: Any) -> None:
    """TensorBoard's own button, which tells every plugin that the data are new; until the tab has shown them."""
    frame.evaluate("delete document.documentElement.dataset.ready")
    frame.page.locator("button.reload-button").click()
    frame.wait_for_function("document.documentElement.dataset.ready", timeout=15_000)


def appears(frame: Any, address: str, run: str) -> None:
    """Until the run can be chosen."""
    wait_for_runs(address, lambda names: run in names)
    reload(frame)
    assert run in frame.locator("select.run option").all_inner_texts()


def test_a_run_is_followed_while_it_is_being_written(frame: Any, logdir: Path, address: str) -> None:
    run = mark(logdir / "growing")
    appears(frame, address, "growing")
    choose(frame, "growing", "growing has no evaluations yet")
    assert "when TensorBoard reloads its data" in words(frame)

    write(run, 5)
    reload(frame)
    is_at(frame, "growing", 5)
    assert (peak(frame, "generated"), peak(frame, "reference")) == (5, 5)

    write(run, 10)
    reload(frame)
    is_at(frame, "growing", 10)  # the newest was shown, so the newest is shown
    assert peak(frame, "generated") == 10 and "2 of 2" in words(frame, ".step-words")

    with open(own(run) / "index.jsonl", "a") as index:
        index.write('{"format": 1, "global_step": 15, "file": "step_00')  # being written, or torn by a crash
    reload(frame)
    is_at(frame, "growing", 10)
    assert frame.locator(".trouble").is_hidden()

    frame.locator(".buttons button").first.click()
    is_at(frame, "growing", 5)
    write(run, 15)
    reload(frame)
    is_at(frame, "growing", 5)  # an older one was chosen, and stays
    assert peak(frame, "generated") == 5 and "1 of 3" in words(frame, ".step-words")

    chart = frame.locator(".timeline .chart").bounding_box()
    frame.page.mouse.click(chart["x"] + chart["width"] - 20, chart["y"] + 100)
    is_at(frame, "growing", 15)
    write(run, 20)
    reload(frame)
    is_at(frame, "growing", 20)  # the newest was chosen, in the chart


def test_an_evaluation_that_is_written_anew_is_shown_anew(frame: Any, logdir: Path, address: str) -> None:
    run = mark(write(logdir / "again", 6))
    appears(frame, address, "again")
    choose(frame, "again")
    assert peak(frame, "generated") == 6
    write(run, 6, peak=9)
    reload(frame)
    assert peak(frame, "generated") == 9


def test_a_run_that_is_deleted_while_it_is_shown_says_so(frame: Any, logdir: Path, address: str) -> None:
    run = mark(write(logdir / "doomed", 0, 7, 14))
    appears(frame, address, "doomed")
    choose(frame, "doomed")
    shutil.rmtree(run)
    frame.locator("header input[type=range]").fill("0")
    sentence = re.compile("This run's folder is gone; was it deleted\\?|TensorBoard knows no run of this name")
    frame.get_by_text(sentence).first.wait_for(timeout=15_000)
    wait_for_runs(address, lambda names: "doomed" not in names)
    reload(frame)
    frame.get_by_text("There is no run doomed (any more); this is ").wait_for(timeout=15_000)
    assert frame.locator(".views canvas").first.is_visible()
    shown = frame.locator("select.run").input_value()
    assert shown and shown != "doomed", "another run is shown instead, and its name stands above"


def test_a_run_that_is_gone_but_still_listed_says_so(browser: Any, address: str) -> None:
    """As TensorBoard's slow loading has it, which never forgets a run."""
    gone = "This run's folder is gone; was it deleted?"
    with changed_runs(browser, address, lambda found: [{**run, "problem": gone} for run in found["runs"]]) as page:
        page.get_by_role("heading", name=re.compile("cannot be shown")).wait_for()
        assert gone in words(page)


# -- what can't be read ----------------------------------------------------------------------------------------------


@contextmanager
def changed_runs(browser: Any, address: str, change: Callable[[Any], Any]) -> Iterator[Any]:
    """The tab, where /runs answers something else: `change` gets the answer, and gives its runs or another answer."""
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))

    def answer(route: Any) -> None:
        found = listing(address)
        made = change(found)
        route.fulfill(json={**found, "runs": made} if isinstance(made, list) else made)

    page.route("**/data/plugin/i2am_debug/runs", answer)
    page.goto(f"{address}/data/plugin_entry.html?name=i2am_debug")
    yield page
    assert errors == []
    page.close()


class Remote:
    """A data provider that lists one run."""

    def list_tensors(self, *_: Any, **__: Any) -> dict[str, dict]:
        return {"far": {"i2am/evaluations": None}}


def test_a_remote_logdir_is_told_with_what_to_do(browser: Any, address: str) -> None:
    context = base_plugin.TBContext(logdir="gs://bucket/logs", data_provider=Remote(), flags=SimpleNamespace())
    get = Client(Backend(context).runs).get("/runs", headers={"Host": "localhost"})  # what it would answer
    with changed_runs(browser, address, lambda _: get.json) as page:
        page.get_by_role("heading", name="This TensorBoard reads a remote log folder").wait_for()
        assert "--logdir" in words(page) and not page.locator(".columns").is_visible()


def test_an_index_of_a_newer_version_says_what_to_do(tab: Tab) -> None:
    options = tab.page.locator("select.run option").all_inner_texts()
    assert "newer index (cannot be read)" in options
    choose(tab.page, "newer index", "newer index cannot be shown")
    assert f"format {FORMAT + 1}, this one reads up to {FORMAT}" in words(tab.page)
    assert "pip install -U i2am-debug" in words(tab.page)
    choose(tab.page, "good")


def test_an_evaluation_of_a_newer_version_does_not_hide_the_others(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(f"{address}/data/plugin_entry.html?name=i2am_debug#{link(run='newer file')}")
    sentence = "step_00000008.safetensors was written by a newer i2am-debug"
    page.get_by_text(sentence).wait_for(timeout=15_000)
    assert page.locator("select.run").input_value() == "newer file", "there is a way to other runs"
    assert not page.locator(".views").is_visible(), "no empty pictures, and none of another evaluation"
    page.get_by_role("button", name="Evaluation before").click()
    is_at(page, "newer file", 0)
    assert peak(page, "generated") == 0 and sentence not in words(page)
    page.get_by_role("button", name="Next evaluation").click()
    page.get_by_text(sentence).wait_for()
    choose(page, "good")
    page.close()


def test_an_evaluation_whose_file_is_gone_does_not_hide_the_others(tab: Tab, logdir: Path) -> None:
    choose(tab.page, "sparse")
    hidden = own(logdir / "sparse") / "step_00000001.safetensors"
    hidden.rename(hidden.with_suffix(".away"))
    try:
        tab.page.locator("header input[type=range]").fill("0")
        tab.says("There is no step_00000001.safetensors in this run.")
        tab.page.keyboard.press(".")
        is_at(tab.page, "sparse", 2)
        assert peak(tab.page, "generated") == 2
    finally:
        hidden.with_suffix(".away").rename(hidden)
    tab.errors[:] = [error for error in tab.errors if "404" not in error]  # the browser complains of what is missing


# -- what is not there, with its reason ------------------------------------------------------------------------------


def test_thinned_evaluations_show_their_maps_and_say_why_hovering_does_nothing(tab: Tab) -> None:
    choose(tab.page, "thinned")
    assert "Hover a patch" in words(tab.page, ".views .hint")
    tab.page.keyboard.press(",")
    is_at(tab.page, "thinned", 8)
    assert (peak(tab.page, "generated"), peak(tab.page, "reference")) == (8, 8)
    why = (
        "Only the newest evaluations, the baseline, the best and those of alerts keep their rows, where there is room."
    )
    assert why in words(tab.page, ".views .hint")
    before = tab.pixels("reference")
    hover(tab.page, "generated", 6, (4, 4))
    tab.says("Generated patch row 1, column 2 of 4 × 4 (token 6): 0.0125, 1.3 % of the map")
    assert tab.pixels("reference") == before


def test_one_reference_token_leaves_g2r_undefined_and_shows_r2g(tab: Tab) -> None:
    choose(tab.page, "one token")
    assert peak(tab.page, "generated") == 8
    reference = tab.page.locator(".views .panel").nth(1)
    assert "Undefined. One reference token." in reference.inner_text()
    assert not reference.locator(".legend").is_visible()
    red, green, blue = canvas(tab.page, "reference").evaluate(
        "e => [...e.getContext('2d').getImageData(e.width / 2, 9, 1, 1).data].slice(0, 3)"
    )
    assert (red, green, blue) == (60, 120, 200), "the reference itself is seen"
    assert "One reference token." in words(tab.page, ".views .hint")
    for key in ("ArrowRight", "Enter", ",", "Escape"):
        tab.page.keyboard.press(key)
    is_at(tab.page, "one token", 0)
    for level in ("copying", "time", "layer", "head"):
        tab.page.get_by_label("Level", exact=True).select_option(level)
        tab.page.wait_for_function("level => location.hash.includes(`level=${level}`)", arg=level)
        assert tab.page.locator(".trouble").is_hidden()
    assert "undefined" in words(tab.page, ".timeline .small-charts")


def test_reference_tokens_without_a_grid_are_bars(tab: Tab) -> None:
    choose(tab.page, "bars")
    assert highest(bars(tab.page, "reference", 8)) == 3
    # Hovering a generated patch shows what it draws on, as bars.
    hover(tab.page, "generated", 2, (4, 4))
    tab.says("What the patch in row 0, column 2 draws on")
    assert highest(bars(tab.page, "reference", 8)) == (2 + SHIFT) % 8
    # Hovering a bar shows what draws on it: of 16 patches two have this token as theirs.
    hover(tab.page, "reference", 6, (1, 8))
    tab.says("Reference token 6 of 8")
    tab.says("What draws on token 6 of 8")
    found = canvas(tab.page, "generated").evaluate(CELLS, [4, 4])
    ranked = sorted(range(16), key=found.__getitem__)
    assert sorted(ranked[-2:]) == [1, 9] and found[ranked[-2]] > found[ranked[-3]] + 60
    # A click pins it, arrows move along the row of bars, and not out of it.
    hover(tab.page, "reference", 6, (1, 8))
    tab.page.mouse.down()
    tab.page.mouse.up()
    tab.page.keyboard.press("ArrowRight")
    tab.says("What draws on token 7 of 8")
    tab.page.keyboard.press("ArrowRight")
    tab.page.keyboard.press("ArrowDown")
    tab.page.wait_for_function("location.hash.includes(encodeURIComponent('reference:1x8:7'))")
    tab.page.keyboard.press("ArrowLeft")
    tab.says("What draws on token 6 of 8")
    tab.screenshot("states_bars")


def test_what_has_no_value_is_undefined_with_its_reason_and_never_0(tab: Tab) -> None:
    choose(tab.page, "undefined")
    assert tab.page.locator(".timeline .tag").inner_text() == "reference_gap", "the first score that has values"
    tab.page.get_by_label("Score", exact=True).select_option("copying_layer/imacs_r_hole")
    tab.says(f"Undefined: {LONG_REASON}")
    panels = tab.page.locator(".views .panel")
    for side in (0, 1):
        assert "Undefined. This map has no values: nothing was looked at." in panels.nth(side).inner_text()
        assert not panels.nth(side).locator(".legend").is_visible()
    hover(tab.page, "generated", 3, (4, 4))
    tab.says("Undefined. Nothing was looked at here.")
    assert words(tab.page, ".views .reading") == "Generated patch row 0, column 3 of 4 × 4 (token 3)"
    assert tab.page.locator(".timeline .chart polyline").count() == 0
    chart = tab.page.locator(".timeline .small", has_text="imacs_g").first
    assert chart.locator(".small-value").inner_text() == "undefined" and LONG_REASON in chart.get_attribute("title")
    assert tab.page.locator(".pair-value").all_inner_texts() == ["undefined"] * 2
    assert tab.page.locator(".pair-value").first.get_attribute("title") == LONG_REASON
    assert tab.page.locator(".pair-change").all_inner_texts() == ["", ""]
    for where in (".views", ".pairs", ".information", ".timeline .plot"):
        assert not re.search("0[.]0", words(tab.page, where)), where
    assert "undefined throughout" in words(tab.page, ".information .note")
    assert tab.page.locator(".matrix .cell").all_inner_texts() == [""] * 6
    tab.screenshot("states_undefined")


def test_a_long_reason_can_be_read_on_a_narrow_page(browser: Any, address: str) -> None:
    score = "copying_layer/imacs_r_hole"
    tab = Tab(browser, address, link(run="undefined", figure=score), viewport={"width": 360, "height": 900})
    reason = tab.page.locator(".timeline .plot").get_by_text(LONG_REASON)
    box = reason.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and reason.evaluate("e => e.scrollWidth <= e.clientWidth")
    assert tab.errors == []
    tab.page.close()


# -- how many --------------------------------------------------------------------------------------------------------


def test_one_evaluation_of_one_pair(tab: Tab) -> None:
    choose(tab.page, "small")
    assert "step 4, 1 of 1" in words(tab.page, ".step-words")
    for name in ("Evaluation before", "Play the evaluations", "Next evaluation"):
        assert tab.page.get_by_role("button", name=name).is_disabled()
    assert tab.page.locator("header input[type=range]").is_disabled()
    assert tab.page.locator(".pair").count() == 1 and tab.page.locator(".timeline .chart .dot").count() == 1
    tab.page.keyboard.press(",")
    tab.page.keyboard.press(".")
    tab.page.get_by_role("button", name="Compare").click()
    tab.says("JS distance 0.000")
    is_at(tab.page, "small", 4)


def test_two_hundred_pairs_scroll_in_their_list(tab: Tab) -> None:
    choose(tab.page, "many")
    everything = "[document.documentElement.scrollHeight, document.querySelector('.pair-list').scrollHeight]"
    page_height, list_height = tab.page.evaluate(everything)
    assert tab.page.locator(".pair").count() == 200 and list_height > 5000 > page_height
    first = tab.page.locator(".pair-name").first
    assert first.get_attribute("title") == LONG_PAIR and first.bounding_box()["width"] < 150
    last = tab.page.locator(".pair").last
    last.click()
    tab.page.wait_for_function("location.hash.includes('pair=199')")
    tab.page.locator("li:last-child > .pair[aria-pressed=true]").wait_for()
    assert tab.page.locator(".pair[aria-pressed=true]").count() == 1


def test_fifty_seven_layers_of_twenty_four_heads_scroll_in_their_matrix(tab: Tab) -> None:
    choose(tab.page, "deep")
    table = tab.page.locator(".information .scroll")
    assert tab.page.locator(".matrix .cell").count() == 57 * 24
    assert table.evaluate(
        "e => e.scrollWidth > e.clientWidth && e.scrollHeight > e.clientHeight && e.clientHeight < 500"
    )
    layer = tab.page.get_by_role("button", name=f"Layer {DEEP_LAYERS[40]}", exact=True)
    layer.click()
    tab.page.wait_for_function("location.hash.includes('to_reference_values')")
    tab.page.locator(".matrix tr:nth-child(41) th > [aria-pressed=true]").wait_for()
    assert peak(tab.page, "generated") == (3 + 40) % 16


@pytest.mark.parametrize("width", [360, 1440])
def test_no_state_makes_the_page_wider_than_the_window(browser: Any, address: str, width: int) -> None:
    tab = Tab(browser, address, link(run="good"), viewport={"width": width, "height": 900})
    tab.page.locator(".by-layer summary").click()  # the scores of single layers
    names = tab.page.locator("select.run option").evaluate_all("all => all.map((e) => e.value)")
    assert {"deep", "many", LONG_RUN} <= set(names)
    tab.page.get_by_role("button", name="Compare").click()
    wide = {}
    for name in [name for name in names if name not in ("good", "small", "sparse", "thinned", *NAMED)]:
        cannot = {
            "waiting": "has no evaluations yet",
            "newer index": "cannot be shown",
            "newer file": "cannot be shown",
        }
        choose(tab.page, name, cannot.get(name))
        if found := overflow(tab.page):
            wide[name[:20]] = found
        if name in ("many", "deep", LONG_RUN, "undefined"):
            tab.screenshot(f"states_{name[:10]}_{width}")
    assert wide == {}
    assert [error for error in tab.errors if "newer%20file" not in error] == []  # the browser complains of the refusal
    tab.page.close()


# -- comparing, and going from run to run ----------------------------------------------------------------------------


def test_evaluations_that_are_not_comparable_say_so_and_nothing_is_called_the_baseline(tab: Tab) -> None:
    choose(tab.page, "unlike")
    # What stands in for the baseline, if anything does, is called by its own name.
    assert re.search("no baseline to compare with|since the first evaluation, step 0", words(tab.page, ".pairs .note"))
    assert "baseline" not in tab.page.locator(".timeline .chart").text_content()
    tab.page.get_by_role("button", name="Compare").click()
    unlike = "These evaluations were made with other pairs or settings"
    tab.says(unlike)
    tab.says("JS distance")
    step = tab.page.locator(".compare").get_by_label("Evaluation")
    assert step.locator("option").first.inner_text() == "first (0)", "it is no baseline"
    step.select_option("8")
    tab.says("JS distance 0.000")
    assert unlike not in words(tab.page)
    choose(tab.page, "good")
    tab.page.locator(".compare").get_by_label("Evaluation").select_option("")
    tab.says("JS distance 0.")
    assert unlike not in words(tab.page)
    assert (
        tab.page.locator(".compare").get_by_label("Evaluation").locator("option").first.inner_text() == "baseline (0)"
    )


def test_going_to_a_run_that_lacks_what_was_chosen_falls_back_and_going_back_restores(tab: Tab) -> None:
    page = tab.page
    page.locator(".pair").nth(3).click()
    page.keyboard.press(",")
    is_at(page, "good", 8)
    page.get_by_label("Level", exact=True).select_option("layer")
    page.get_by_label("Layer", exact=True).select_option("mid")
    page.wait_for_function("location.hash.includes('layer=mid')")
    before = words(page, ".pair[aria-pressed=true] .pair-name")
    lacks = "small has no step 8; this is its newest, step 4. There is no pair 3; this is 0, the last one."
    choose(page, "small", notes=lacks)
    is_at(page, "small", 4)
    assert words(page, ".pair[aria-pressed=true] .pair-name") == "pair 0"
    assert page.get_by_label("Layer", exact=True).input_value() == "other" and peak(page, "generated") == 3
    choose(page, "good")
    is_at(page, "good", 8)
    assert page.get_by_label("Layer", exact=True).input_value() == "mid" and peak(page, "generated") == 4
    assert words(page, ".pair[aria-pressed=true] .pair-name") == before


def test_a_score_that_a_run_lacks_comes_back_with_a_run_that_has_it(tab: Tab) -> None:
    score, default = tab.page.get_by_label("Score", exact=True), "copying_layer/imacs_r_hole"
    assert score.input_value() == default
    choose(tab.page, "one token")  # without a copying layer
    assert score.input_value() == words(tab.page, ".timeline .tag") != default
    choose(tab.page, "good")
    assert score.input_value() == words(tab.page, ".timeline .tag") == default
    choose(tab.page, "one token")
    score.select_option("loss")
    tab.page.wait_for_function("document.querySelector('.timeline .tag').innerText === 'loss'")
    choose(tab.page, "good")
    assert score.input_value() == "loss", "chosen by hand, so kept"


@pytest.mark.parametrize(
    ("level", "label", "shown", "where"), [("head", "Head", "1", 3), ("time", "Time group", "0", 1)]
)
def test_a_head_or_time_group_that_a_run_lacks_shows_its_last(
    tab: Tab, level: str, label: str, shown: str, where: int
) -> None:
    tab.page.get_by_label("Level", exact=True).select_option(level)
    chosen = tab.page.get_by_label(label, exact=True)
    chosen.select_option(label="2" if level == "head" else "1")
    tab.page.wait_for_function("level => location.hash.includes(`${level}=`)", arg=level)
    choose(tab.page, "small")
    assert peak(tab.page, "generated") == where
    assert chosen.input_value() == shown, "the choice says what is shown"


def test_stepping_goes_on_from_what_is_shown_where_a_run_lacks_the_chosen_step(tab: Tab) -> None:
    tab.page.keyboard.press(",")
    is_at(tab.page, "good", 8)
    choose(tab.page, "sparse", notes="sparse has no step 8; this is its newest, step 3.")
    is_at(tab.page, "sparse", 3)
    tab.page.keyboard.press(",")
    is_at(tab.page, "sparse", 2)


def test_the_scores_of_single_layers_are_those_of_the_shown_run(tab: Tab) -> None:
    tab.page.locator(".by-layer summary").click()
    tab.page.locator(".by-layer .small").first.wait_for()
    assert tab.page.locator(".by-layer .small-name").all_inner_texts() == ["up"]
    choose(tab.page, "deep")
    tab.page.locator(".by-layer .small").nth(56).wait_for(timeout=5000)
    charts = tab.page.locator(".by-layer .small")
    shown = charts.evaluate_all("all => all.map((e) => e.dataset.tag)")
    assert sorted(shown) == [*sorted(f"layer/{layer}/imacs_r_hole" for layer in DEEP_LAYERS), "layer/up/imacs_r_hole"]
    named = charts.locator(".small-name").all_inner_texts()
    assert {"0", "13", "56", "up"} <= set(named), "what all of their names share is left out"
    tab.page.get_by_label("Score of each layer").select_option("attention_information")
    tab.page.wait_for_function("location.hash.includes('layerScore=attention_information')")
    tab.page.wait_for_function("document.querySelectorAll('.by-layer .small').length === 0")  # this run has none of it


def test_what_a_comparison_is_with_is_chosen_where_it_says_so(tab: Tab) -> None:
    """Also after going to the run that it was compared with, and to one that lacks the step."""
    page = tab.page
    page.get_by_role("button", name="Compare").click()
    compare = page.locator(".compare")
    run, step = compare.get_by_label("Run"), compare.get_by_label("Evaluation")
    run.select_option("sparse")
    step.locator("option[value='2']").wait_for(state="attached")
    step.select_option("2")
    tab.says("sparse, step 2")
    choose(page, "sparse")
    assert run.locator("option:checked").inner_text() == "this run"
    run.select_option("small")
    tab.says("small, step 4")
    assert step.locator("option:checked").inner_text() == "baseline (4)"
    run.select_option("waiting")
    tab.says("no evaluations yet")
    assert step.locator("option").all_inner_texts() == []
    choose(page, "good")
