"""The I2AM tab in a real TensorBoard and a real browser: every part is driven, and what it shows is compared with the store."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from stored_runs import evaluation, mark
from tab_page import Tab

from benchmarks.browser import tensorboard
from i2am_debug.demo.demo_model import demo_model
from i2am_debug.demo.finetune import new_accelerator, new_callback
from i2am_debug.demo.inpainting.pairs import validation_pairs
from i2am_debug.demo.inpainting.pipeline import load_tiny_pipeline
from i2am_debug.figures.distances import js_distance
from i2am_debug.figures.registry import higher_is_worse
from i2am_debug.figures.values import Undefined
from i2am_debug.pairs.pair import ValidationPair
from i2am_debug.report.marks import marks_of
from i2am_debug.store.run_store import RunStore

pytestmark = pytest.mark.browser

HOSTILE = 'it\'s "q" <img src=x onerror=parent.hacked=1> ü'
STEPS = (0, 8, 16)


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model forgets a little and then much, and a copy of it under a hostile name."""
    folder = tmp_path_factory.mktemp("runs")
    accelerator = new_accelerator(folder, "finetune")
    pipeline = load_tiny_pipeline()
    pairs = validation_pairs(8, seed=7)
    callback = new_callback(
        accelerator, demo_model("inpainting"), pipeline, pairs=pairs, disable_progress_bar=True, panels=0
    )
    noise = torch.Generator().manual_seed(0)
    for step in STEPS:
        callback.evaluate(step)
        with torch.no_grad():
            for parameter in pipeline.reference_encoder.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
    callback.on_train_end(STEPS[-1])
    accelerator.end_training()
    assert RunStore(folder / "finetune").alerts(), "the marks of alerts are to be seen"
    shutil.copytree(folder / "finetune", folder / HOSTILE)
    write_several_references(folder / "several")
    return folder


GRID, REFERENCE_GRIDS = (6, 8), {0: (4, 4), 1: (3, 5)}


def write_several_references(folder: Path) -> None:
    """A run of two pairs, the first of which has two references; its maps are random, its pictures the demo's."""
    rng = np.random.default_rng(0)
    given = list(validation_pairs(3, seed=7))
    pairs = [
        ValidationPair(name="both", reference=given[0].reference, target=given[0].target, further_references=[FURTHER]),
        ValidationPair(name="one", reference=given[1].reference, target=given[1].target),
    ]
    arrays: dict[str, np.ndarray] = {}
    grids: dict[str, dict] = {"0": {}, "1": {}}
    for pair, number in ((0, 0), (0, 1), (1, 0)):
        prefix = f"reference_{number}/" if number else ""
        own, (gh, gw), (rh, rw) = f"{pair}/{prefix}", GRID, REFERENCE_GRIDS[number]
        for name, grid in (("r2g", GRID), ("g2r", REFERENCE_GRIDS[number])):
            one = rng.random(grid, dtype=np.float32)
            arrays[f"{own}{name}/unified"] = one / one.sum()
            arrays[f"{own}{name}/by_layer_head/up"] = rng.random((2, *grid)).astype(np.float16)
        arrays[f"{own}information"] = np.array([[1, np.nan, 3]], dtype=np.float32) + number
        arrays[f"{own}rows/unified"] = rng.integers(0, 255, (gh * gw, rh * rw)).astype(np.uint8)
        arrays[f"{own}rows/unified/scale"] = np.full(gh * gw, 0.1, dtype=np.float32)
        grids[str(pair)][f"{prefix}unified"] = [list(GRID), list(REFERENCE_GRIDS[number])]
    no_second = Undefined("this pair has no reference 1")
    figures = {"reference_mass": (0.25, 0.5), "reference_1/reference_mass": (0.125, no_second)}
    one = evaluation(4, figures, count=2, pairs=("both", "one"), layers=("up",), heads={"up": {2: 1.0, 0: 1.0}})
    store = RunStore(folder)
    store.write(one, arrays, grids)
    store.write_pairs(one, pairs)
    mark(folder)


FURTHER = Image.fromarray(np.full((40, 40, 3), (20, 180, 90), np.uint8))


@pytest.fixture(scope="module")
def address(logdir: Path) -> Iterator[str]:
    with tensorboard("--logdir", str(logdir)) as (started, _):
        yield started


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Tab]:
    opened = Tab(browser, address, "p.i2am_debug.run=finetune")
    yield opened
    assert opened.errors == []
    opened.page.close()


def test_the_tab_is_offered_among_tensorboards_own(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(address)
    page.get_by_role("tab", name="I2AM").or_(page.get_by_text("I2AM", exact=True)).first.wait_for(timeout=60_000)
    page.close()


def test_it_opens_at_the_newest_evaluation_with_both_pictures(tab: Tab) -> None:
    tab.is_at(16)
    words = tab.words()
    assert "Generated" in words and "Reference" in words and all(f"demo_0{i}" in words for i in range(8))
    assert re.search(r"predicted in one step from \d+% noise", words), "a blurred picture says why it is"


def test_hovering_a_generated_patch_lights_what_it_draws_from(tab: Tab, logdir: Path) -> None:
    before = tab.pixels("reference")
    tab.page.mouse.move(*tab.point("generated", 8, 7, 16))
    tab.page.wait_for_function("document.body.innerText.includes('row 8, column 7')")
    assert tab.pixels("reference") != before
    path = RunStore(logdir / "finetune").evaluations()[-1].path
    shown = tab.page.evaluate("new URLSearchParams(location.hash.slice(1)).get('pair') ?? '0'")
    with safe_open(path, framework="numpy") as file:
        row = file.get_tensor(f"{shown}/rows/unified")[8 * 16 + 7].astype(float)
        row *= file.get_tensor(f"{shown}/rows/unified/scale")[8 * 16 + 7] / 255
    assert f"{row.max() * row.size:.1f} × even" in tab.words(), "the legend's end is the row's maximum"


def test_hovering_the_reference_lights_what_draws_from_it(tab: Tab) -> None:
    before = tab.pixels("generated")
    tab.page.mouse.move(*tab.point("reference", 3, 3, 8))
    tab.page.wait_for_function("document.body.innerText.includes('row 3, column 3')")
    assert tab.pixels("generated") != before


def test_a_click_pins_shift_adds_a_drag_selects_and_escape_clears(tab: Tab) -> None:
    tab.page.mouse.click(*tab.point("generated", 5, 5, 16))
    tab.page.mouse.move(5, 5)  # away: what is pinned stays
    tab.page.wait_for_function("document.body.innerText.includes('row 5, column 5 of 16 × 16 (token 85) pinned')")
    alone = tab.pixels("reference")
    tab.page.keyboard.down("Shift")
    tab.page.mouse.click(*tab.point("generated", 12, 12, 16))
    tab.page.keyboard.up("Shift")
    tab.page.mouse.move(5, 5)
    tab.page.wait_for_function("document.body.innerText.includes('2 patches')")
    assert tab.pixels("reference") != alone
    tab.drag("generated", (3, 3), (6, 6), 16)
    tab.page.mouse.move(5, 5)
    tab.page.wait_for_function("document.body.innerText.includes('16 patches')")
    tab.page.keyboard.press("Escape")
    tab.page.wait_for_function("!document.body.innerText.includes('16 patches')")


def test_arrows_move_the_patch_and_comma_and_full_stop_step(tab: Tab) -> None:
    tab.page.mouse.click(*tab.point("generated", 5, 5, 16))
    tab.page.keyboard.press("ArrowRight")
    tab.page.keyboard.press("ArrowDown")
    tab.page.wait_for_function("document.body.innerText.includes('row 6, column 6')")
    tab.page.keyboard.press(",")
    tab.is_at(8)
    tab.page.keyboard.press(".")
    tab.is_at(16)


def test_a_link_reproduces_the_view(browser: Any, address: str, tab: Tab) -> None:
    tab.page.mouse.click(*tab.point("generated", 5, 5, 16))
    tab.page.keyboard.press(",")
    tab.is_at(8)
    tab.page.mouse.move(5, 5)
    time.sleep(0.3)
    again = Tab(browser, address, tab.page.evaluate("location.hash.slice(1)"))
    again.is_at(8)
    again.page.mouse.move(5, 5)
    time.sleep(0.3)
    assert again.pixels("reference") == tab.pixels("reference")
    again.page.close()


def test_a_link_taken_while_the_newest_is_followed_names_its_step(tab: Tab) -> None:
    tab.is_at(16)
    assert "p.i2am_debug.step=16" in tab.page.evaluate("location.hash")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("run=nope", "There is no run nope (any more); this is finetune."),
        ("run=finetune&p.i2am_debug.step=33", "finetune has no step 33; this is its newest, step 16."),
        ("run=finetune&p.i2am_debug.pair=99", "There is no pair 99; this is 7, the last one."),
        (
            "run=finetune&p.i2am_debug.compare=true&p.i2am_debug.otherStep=31",
            "finetune has no step 31; this is step 0.",
        ),
    ],
)
def test_a_link_to_what_is_not_there_says_what_is_shown_instead(tab: Tab, state: str, words: str) -> None:
    tab.page.evaluate("hash => { location.hash = hash; }", f"p.i2am_debug.{state}")  # pasted over an open tab
    tab.says(words)
    tab.is_at(16)


def test_pairs_are_sorted_by_what_they_lost_and_can_be_chosen(tab: Tab) -> None:
    texts = tab.page.locator(".pairs li, .pairs [role=option]").all_inner_texts()
    changes = [float(found[0].replace("−", "-")) for text in texts if (found := re.findall(r"[+−-]\d+\.\d+", text))]
    shown = tab.page.locator(".timeline .tag").inner_text()
    assert len(changes) == 8 and changes == sorted(changes, reverse=higher_is_worse(shown))
    before = tab.pixels("generated")
    tab.page.locator(".pairs li, .pairs [role=option]").nth(3).click()
    tab.page.wait_for_function("before => document.querySelector('.views canvas').toDataURL() !== before", arg=before)


def test_the_timeline_has_alert_marks_and_steps(tab: Tab, logdir: Path) -> None:
    (alert, *_) = RunStore(logdir / "finetune").alerts()
    mark = tab.page.get_by_role("button", name=re.compile(f"Alert at step {alert.global_step}"))
    mark.first.focus()
    tab.page.locator(".bubble").wait_for(state="visible")
    assert alert.text.splitlines()[0] in tab.page.locator(".bubble").inner_text()
    mark.first.click()
    tab.is_at(alert.global_step)
    assert tab.page.locator(".alert-now").get_attribute("data-severity") == alert.severity
    shown = tab.page.locator(".alert-now").inner_text()
    assert all(line in shown for line in alert.text.splitlines()), "all of it, where it can be copied"
    figure = alert.findings[0].figure
    tab.page.locator(f".alert-buttons [title$='({figure})']").click()
    tab.page.wait_for_function("tag => document.querySelector('.timeline .tag').textContent === tag", arg=figure)
    (pair, *_) = alert.panels or ["demo_00"]
    if alert.panels:
        tab.page.locator(".alert-buttons").get_by_role("button", name=pair).click()
        tab.page.wait_for_function(
            "name => document.querySelector('.pair[aria-pressed=true] .pair-name').textContent === name", arg=pair
        )


def test_a_run_with_an_alert_is_marked_and_shown_first(browser: Any, logdir: Path, tmp_path: Path) -> None:
    shutil.copytree(logdir / "finetune", tmp_path / "b_alerted")
    shutil.copytree(logdir / "finetune", tmp_path / "a_healthy")
    (tmp_path / "a_healthy" / "plugins" / "i2am_debug" / "alerts.jsonl").unlink()
    alert = RunStore(tmp_path / "b_alerted").alerts()[-1]
    with tensorboard("--logdir", str(tmp_path)) as (address, _):
        tab = Tab(browser, address)
        assert tab.ready() == "b_alerted 16"
        options = tab.page.locator("select.run option").all_inner_texts()
        assert options == ["a_healthy", f"b_alerted ⚠ {alert.severity}, step {alert.global_step}"]
        fired = [finding.figure for finding in alert.findings if finding.severity == alert.severity]
        assert tab.page.locator(".timeline .tag").inner_text() == fired[0], "it opens on what fired last"
        mark = tab.page.get_by_role("button", name=re.compile(f"Alert at step {alert.global_step} .*{alert.severity}"))
        assert mark.inner_text() == {"critical": "!!", "warning": "!", "info": "i"}[alert.severity]
        tab.page.close()


def test_the_heaviest_part_is_that_of_the_library(tab: Tab, logdir: Path) -> None:
    box = tab.page.get_by_role("checkbox", name="Heaviest part")
    assert not box.is_checked()
    before = {side: tab.pixels(side) for side in ("generated", "reference")}
    box.check()
    pairs = validation_pairs(8, seed=7)
    with safe_open(RunStore(logdir / "finetune").evaluations()[-1].path, framework="numpy") as file:
        stored = {name: file.get_tensor(name) for name in file.keys() if name.endswith("/unified")}  # noqa: SIM118
    for number in range(8):
        tab.page.locator(".pair", has_text=f"demo_0{number}").click()
        tab.page.locator(f".pair[aria-pressed=true]:has-text('demo_0{number}')").wait_for()
        for at, (name, mask) in enumerate((("r2g", pairs[number].mask), ("g2r", pairs[number].reference_mask))):
            expected = marks_of(stored[f"{number}/{name}/unified"], mask)
            assert expected is not None
            words = expected.words.replace(" ·", ",")
            tab.page.wait_for_function(
                "([at, words]) => document.querySelectorAll('.views .marked')[at].textContent === words",
                arg=[at, words],
            )
    tab.page.locator(".pair", has_text="demo_00").click()
    for side, one in before.items():
        tab.changes(side, one)
    assert "p.i2am_debug.marks=true" in tab.page.evaluate("location.hash")
    tab.screenshot("heaviest_part")


def test_the_matrix_of_information_selects_a_layer(tab: Tab, logdir: Path) -> None:
    bits = []
    with safe_open(RunStore(logdir / "finetune").evaluations()[-1].path, framework="numpy") as file:
        bits = [file.get_tensor(f"{i}/information") for i in range(8)]
    best = np.nanmax(np.mean(bits, axis=0))
    assert f"{best:.2f}" in tab.page.locator(".information").inner_text()
    before = tab.pixels("reference")
    tab.page.locator(".information button", has_text="mid").first.click()
    tab.page.wait_for_function("location.hash.includes('mid')")
    tab.page.wait_for_function(
        "before => document.querySelectorAll('.views canvas')[1].toDataURL() !== before", arg=before
    )


def test_a_value_of_the_matrix_shows_the_map_of_that_head(tab: Tab, logdir: Path) -> None:
    path = RunStore(logdir / "finetune").evaluations()[-1].path
    layer = tab.page.locator(".information tbody th button").first.get_attribute("title").split(",")[0]
    tab.page.locator(".information tbody tr").first.locator("td button").nth(1).click()
    tab.says(f"R2G, where the reference goes; head 1 of {layer}")
    shown = int(re.search(r"pair=(\d)", tab.page.evaluate("location.hash") + "&pair=0")[1])
    with safe_open(path, framework="numpy") as file:
        expected = file.get_tensor(f"{shown}/g2r/by_layer_head/{layer}")[1].astype(float)
    legend = tab.page.locator(".views .panel").nth(1).locator(".legend").inner_text()
    assert f"{expected.max() / expected.mean():.1f} × even" in legend
    assert tab.page.evaluate("document.activeElement.title").startswith(f"{layer}, head 1"), (
        "the focus stays where it was"
    )
    tab.says("What each patch draws on is kept for each layer and for each head")
    assert tab.page.get_by_label("Head", exact=True).input_value() == "1"
    tab.page.get_by_label("Head", exact=True).select_option("0")
    tab.says(f"head 0 of {layer}")


def test_each_reference_of_a_pair_is_shown(browser: Any, address: str, logdir: Path) -> None:
    tab = Tab(browser, address, "p.i2am_debug.run=several")
    tab.is_at(4)
    choices = tab.page.get_by_role("group", name="References").get_by_role("button")
    assert choices.all_inner_texts() == ["Reference 0\n25.0 % of the attention", "Reference 1\n12.5 % of the attention"]
    before = tab.pixels("reference"), tab.pixels("generated")
    choices.nth(1).click()
    tab.changes("reference", before[0])
    assert tab.page.locator(".views h2").all_inner_texts() == ["Target", "Reference 1"]
    assert tab.pixels("generated") != before[1], "where reference 1 goes, not where reference 0 does"
    with safe_open(RunStore(logdir / "several").evaluations()[-1].path, framework="numpy") as file:
        rows = file.get_tensor("0/reference_1/rows/unified")
    tab.page.mouse.move(*tab.point("generated", 2, 3, GRID))
    tab.says("Generated patch row 2, column 3 of 6 × 8 (token 19)")
    row = rows[19].astype(float)
    assert (
        f"{row.max() / row.mean():.1f} × even"
        in tab.page.locator(".views .panel").nth(1).locator(".legend").inner_text()
    )
    tab.page.mouse.move(*tab.point("reference", 1, 4, REFERENCE_GRIDS[1]))
    tab.says("Reference patch row 1, column 4 of 3 × 5 (token 9)")
    assert "4.00" in tab.page.locator(".information").inner_text() and "of reference 1" in tab.words()
    cells = tab.page.locator(".information tbody td button")
    assert [cell.is_disabled() for cell in cells.all()] == [False, True, False], "head 1 was not looked at"
    cells.nth(2).click()
    tab.says("head 2 of up")
    with safe_open(RunStore(logdir / "several").evaluations()[-1].path, framework="numpy") as file:
        one = file.get_tensor("0/reference_1/r2g/by_layer_head/up")[0].astype(
            float
        )  # head 2 is the first of those looked at
    assert (
        f"{one.max() / one.mean():.1f} × even"
        in tab.page.locator(".views .panel").first.locator(".legend").inner_text()
    )
    link = tab.page.evaluate("location.hash.slice(1)")
    tab.page.locator(".pairs li").filter(has_text="one").get_by_role("button").click()
    tab.page.wait_for_function("document.querySelector('.references').hidden")
    assert tab.page.locator(".views h2").all_inner_texts() == ["Target", "Reference"], "this pair has only one"
    again = Tab(browser, address, link)
    assert again.page.locator(".views h2").all_inner_texts() == ["Target", "Reference 1"]
    assert again.errors == [] == tab.errors
    again.page.close()
    tab.page.close()


@pytest.mark.parametrize(
    ("label", "choices"),
    [("Level", 5), ("R2G variant", 2), ("G2R of", 2), ("Colours", 2), ("Direction", 2)],
)
def test_every_choice_of_what_is_shown_shows_something_else(tab: Tab, label: str, choices: int) -> None:
    select = tab.page.get_by_label(label, exact=True)
    values = select.locator("option").evaluate_all("all => all.map((e) => e.value)")
    assert len(values) >= choices
    seen = set()
    for value in values:
        select.select_option(value)
        time.sleep(0.4)
        seen.add(tab.pixels("generated") + tab.pixels("reference"))
        assert tab.page.locator(".trouble").is_hidden()
    assert len(seen) >= choices


def test_the_overlay_can_be_weaker(tab: Tab) -> None:
    before = tab.pixels("generated")
    tab.page.get_by_label("Overlay").fill("20")
    tab.page.wait_for_function("before => document.querySelector('.views canvas').toDataURL() !== before", arg=before)


def test_playing_goes_through_the_evaluations(tab: Tab) -> None:
    tab.page.locator("input[type=range]").first.fill("0")
    tab.is_at(0)
    tab.page.get_by_role("button", name="Play the evaluations").click()
    tab.is_at(8)
    tab.is_at(16)


def test_playing_waits_for_an_evaluation_that_comes_slowly(browser: Any, address: str) -> None:
    tab = Tab(browser, address, "p.i2am_debug.run=finetune&p.i2am_debug.step=0")
    seen: list[str] = []
    tab.page.expose_function("shown", lambda what: seen.append(what))
    tab.page.evaluate(
        """() => new MutationObserver(() => shown(document.documentElement.dataset.ready))
            .observe(document.documentElement, {attributes: true, attributeFilter: ['data-ready']})"""
    )
    slow = re.compile("/(evaluation|map|rows)[?]")
    tab.page.route(slow, lambda route: (time.sleep(0.25), route.continue_()))  # several of them: longer than a tick
    tab.page.get_by_role("button", name="Play the evaluations").click()
    tab.is_at(16)
    assert "finetune 8" in seen, "none is left out"
    tab.page.get_by_role("button", name="Play the evaluations").wait_for()  # it has stopped
    assert tab.errors == []
    tab.page.close()


def test_two_runs_lie_over_each_other(tab: Tab) -> None:
    lines = tab.page.locator(".timeline svg path, .timeline svg polyline")
    before = lines.count()
    tab.page.locator(".timeline .key input:not(:disabled)").first.check()
    tab.page.wait_for_function(
        "before => document.querySelectorAll('.timeline svg path, .timeline svg polyline').length > before", arg=before
    )


def test_two_evaluations_stand_side_by_side(tab: Tab, logdir: Path) -> None:
    """With the difference of their maps and the distance that distances.py gives, pinned or not."""
    newest, baseline = (RunStore(logdir / "finetune").evaluations()[i].path for i in (-1, 0))

    def assert_distance(of: Any) -> None:
        with safe_open(newest, framework="numpy") as one, safe_open(baseline, framework="numpy") as other:
            expected = js_distance(of(one), of(other))
        number = r"JS distance ([0-9.]+) \(0 alike, 1 apart\)"
        said = f"/{number}/.exec(document.querySelector('.compare').innerText)?.[1]"
        tab.page.wait_for_function(f"Math.abs({said} - {expected}) < 6e-4", timeout=5000)

    def pooled_row(file: Any) -> np.ndarray:
        return file.get_tensor("0/rows/unified")[8 * 16 + 7].reshape(8, 8)

    tab.page.get_by_role("button", name="Compare").click()
    tab.page.locator(".compare").wait_for(state="visible")
    assert_distance(lambda file: file.get_tensor("0/g2r/unified"))
    headings = tab.page.locator(".compare h3").all_inner_texts()
    assert headings == ["finetune, step 16", "finetune, step 0", "First minus second"]
    tab.page.mouse.click(*tab.point("generated", 8, 7, 16))
    assert_distance(pooled_row)
    tab.page.keyboard.press("Escape")
    select = tab.page.locator(".compare").get_by_label("Evaluation")
    select.select_option("16")
    tab.says("JS distance 0.000")
    tab.says("They do not differ.")
    tab.page.locator(".compare").get_by_label("Run").select_option(HOSTILE)
    select.select_option("0")
    assert_distance(lambda file: file.get_tensor("0/g2r/unified"))
    tab.page.locator(".compare").get_by_label("Run").select_option("several")
    tab.says("Step 4 of several has no pair demo_00.")
    tab.says("JS distance undefined")
    assert tab.page.locator(".compare canvas:visible").count() == 0, "what was compared before is gone"


def test_the_values_under_the_pointer_are_those_of_the_store(tab: Tab, logdir: Path) -> None:
    with safe_open(RunStore(logdir / "finetune").evaluations()[-1].path, framework="numpy") as file:
        names = ("r2g", "r2g_centred", "g2r", "g2r_region")
        stored = {name: file.get_tensor(f"0/{name}/unified") for name in names}
        rows = file.get_tensor("0/rows/unified") * (file.get_tensor("0/rows/unified/scale")[:, None] / 255.0)

    def reads(value: float, share: float) -> None:
        """The value and its share of the map, as exactly as they are written."""
        said = tab.page.locator(".reading").inner_text().replace("−", "-")
        found = re.search(r": ([0-9.]+), ([0-9.]+) % of the map$", said)
        for written, expected in ((found[1], value), (found[2], 100 * share)):
            half_a_digit = 0.501 * 10 ** -len(written.partition(".")[2])
            assert float(written) == pytest.approx(expected, abs=half_a_digit), said

    for label, choices in {"R2G variant": ("r2g", "r2g_centred"), "G2R of": ("g2r", "g2r_region")}.items():
        side = "generated" if label[0] == "R" else "reference"
        for choice in choices:
            tab.page.mouse.move(5, 5)
            before = tab.pixels(side)
            if choice != choices[0]:
                tab.page.get_by_label(label, exact=True).select_option(choice)
                tab.changes(side, before)
            found = stored[choice].astype(float)
            tab.page.get_by_label("Direction", exact=True).select_option("both")
            tab.page.mouse.move(*tab.point(side, 5, 2, found.shape))
            tab.says("row 5, column 2")
            reads(found[5, 2], found[5, 2] / found.sum())
    # Of a region: the mean of its rows over the reference, the sum of its columns over the generated picture.
    tab.drag("generated", (6, 6), (9, 8), 16)
    tab.page.mouse.move(*tab.point("reference", 4, 3, 8))
    tab.says("Reference patch row 4, column 3")
    region = [y * 16 + x for y in range(6, 10) for x in range(6, 9)]
    mean = rows[region].mean(0)
    reads(mean[4 * 8 + 3], mean[4 * 8 + 3] / mean.sum())
    tab.page.keyboard.press("Escape")
    tab.drag("reference", (2, 2), (5, 4), 8)
    tab.page.mouse.move(*tab.point("generated", 8, 8, 16))
    tab.says("Generated patch row 8, column 8")
    columns = rows[:, [y * 8 + x for y in range(2, 6) for x in range(2, 5)]].sum(1)
    reads(columns[8 * 16 + 8], columns[8 * 16 + 8] / columns.sum())


def test_everything_can_be_done_without_a_pointer(tab: Tab, logdir: Path) -> None:
    """Tab reaches every control in turn, each shows that it has the focus, and keys do what a click does."""
    focused = """() => {
      const e = document.activeElement, s = getComputedStyle(e);
      const inside = (selector) => Boolean(e.closest(selector));
      const place = ['.top', '.pairs', '.views', '.side-panel', '.information', '.timeline'].find(inside) ?? e.tagName;
      return [place, e.tagName.toLowerCase(), e.getAttribute('aria-label') ?? e.innerText ?? '',
              parseFloat(s.outlineWidth) >= 2 && s.outlineStyle !== 'none'];
    }"""
    seen = []
    for _ in range(90):
        tab.page.keyboard.press("Tab")
        found = tab.page.evaluate(focused)
        if found[0] == "BODY":
            break
        seen.append(tuple(found))
    places = list(dict.fromkeys(place for place, *_ in seen))
    assert places == [".top", ".pairs", ".views", ".timeline", ".side-panel", ".information"], "as they are read"
    assert all(is_visible for *_, is_visible in seen), [one for one in seen if not one[-1]]
    assert sum(place == ".pairs" and tag == "button" for place, tag, *_ in seen) == 8
    assert sum(place == ".views" and tag == "canvas" for place, tag, *_ in seen) == 2
    assert sum(place == ".information" for place, *_ in seen) == 1, "one stop; arrows go through its cells"

    def focus(locator: Any) -> None:
        locator.focus()

    focus(tab.page.locator(".pairs li button").nth(2))
    before = tab.pixels("generated")
    tab.page.keyboard.press("Enter")
    tab.changes("generated", before)
    focus(tab.canvas("generated"))
    tab.page.keyboard.press("ArrowDown")
    before = tab.pixels("reference")
    tab.page.keyboard.press("ArrowRight")
    tab.changes("reference", before)
    tab.page.keyboard.press("Enter")
    tab.page.keyboard.press("Shift+Tab")
    tab.says("pinned. Escape clears.")
    tab.page.keyboard.press("Escape")
    mark = tab.page.get_by_role("button", name=re.compile("Alert at step")).first
    step = int(re.search(r"step (\d+)", mark.get_attribute("aria-label"))[1])
    focus(mark)
    tab.says(RunStore(logdir / "finetune").alerts()[0].text.splitlines()[0])
    tab.page.keyboard.press("Enter")
    tab.is_at(step)
    focus(tab.page.locator(".information [tabindex='0']"))
    for key in ("ArrowDown", "ArrowRight", "Enter"):
        tab.page.keyboard.press(key)
    tab.says("R2G, where the reference goes; head 0 of")
    focus(tab.page.get_by_role("button", name="Compare"))
    tab.page.keyboard.press(" ")
    tab.page.locator(".compare").wait_for(state="visible")
    slider = tab.page.locator("input[type=range]").first
    focus(slider)
    tab.page.keyboard.press("Home")
    tab.is_at(0)
    tab.page.keyboard.press("End")
    tab.is_at(16)


def test_the_pictures_can_be_saved(tab: Tab, tmp_path: Path) -> None:
    def saved() -> tuple[int, int]:
        with tab.page.expect_download() as download:
            tab.page.get_by_role("button", name="Save PNG").click()
        assert download.value.suggested_filename == "i2am_finetune_step_16_demo_00.png"
        download.value.save_as(tmp_path / "saved.png")
        with Image.open(tmp_path / "saved.png") as picture:
            assert picture.format == "PNG" and len(picture.convert("RGB").getcolors(2**24)) > 50
            return picture.size

    alone = saved()
    tab.page.get_by_role("button", name="Compare").click()
    tab.page.wait_for_function("/JS distance 0[.]/.test(document.querySelector('.compare').innerText)")
    both = saved()
    assert both[0] > alone[0] and both[1] > 1.5 * alone[1], "three pictures below the two"


def test_a_hostile_run_name_is_text(browser: Any, address: str) -> None:
    tab = Tab(browser, address)
    options = tab.page.locator("select").first.locator("option").all_inner_texts()
    assert any(option.startswith(f"{HOSTILE} ⚠ warning, step ") for option in options)
    tab.page.locator("select").first.select_option(HOSTILE)
    tab.page.wait_for_function("name => document.documentElement.dataset.ready?.startsWith(name)", arg=HOSTILE)
    assert tab.page.evaluate("window.hacked ?? parent.hacked ?? null") is None
    assert tab.page.locator("img[src='x']").count() == 0 and tab.errors == []
    tab.page.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 1440), ("light", 360), ("dark", 3840)])
def test_nothing_is_cut_off_and_axe_finds_no_serious_fault(browser: Any, address: str, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    tab = Tab(
        browser, address, "p.i2am_debug.run=finetune", viewport={"width": width, "height": 1000}, color_scheme=scheme
    )
    tab.screenshot(f"tab_{scheme}_{width}")
    assert tab.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    inside = """() => [...document.querySelectorAll('section svg text, section p, section button')].filter((e) =>
        e.getBoundingClientRect().right > e.closest('section').getBoundingClientRect().right + 1 && !e.closest('.pair-list'))
        .map((e) => e.textContent)"""
    assert tab.page.evaluate(inside) == [], "nothing sticks out of its card"
    smallest = tab.page.evaluate(
        """() => Math.min(...[...document.querySelectorAll('body *')]
            .filter((e) => e.offsetParent && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()))
            .map((e) => parseFloat(getComputedStyle(e).fontSize)))"""
    )
    assert smallest >= 12
    found = axe.Axe().run(tab.page).response["violations"]
    grave = [(v["id"], v["nodes"][0]["html"][:120]) for v in found if v["impact"] in ("serious", "critical")]
    assert grave == []
    assert tab.errors == []
    tab.page.close()


@pytest.mark.parametrize(
    "options", [("--path_prefix", "/below/here"), ("--load_fast", "false"), ("--logdir_spec",)], ids=lambda o: o[0]
)
def test_other_ways_to_start_tensorboard(browser: Any, logdir: Path, options: tuple[str, ...]) -> None:
    given = [*options, f"one:{logdir}"] if options[0] == "--logdir_spec" else [*options, "--logdir", str(logdir)]
    with tensorboard(*given) as (address, _):
        prefix = options[1] if options[0] == "--path_prefix" else ""
        tab = Tab(browser, f"{address}{prefix}")
        assert tab.ready().endswith(" 16") and tab.errors == []
        assert "demo_00" in tab.words()
        tab.page.close()


def test_a_folder_without_runs_says_what_to_do(browser: Any, tmp_path: Path) -> None:
    with tensorboard("--logdir", str(tmp_path)) as (address, _):
        page = browser.new_page()
        page.goto(f"{address}/data/plugin_entry.html?name=i2am_debug")
        page.wait_for_function("document.documentElement.dataset.ready === 'message'", timeout=30_000)
        assert "I2AMCallback" in page.evaluate("document.body.innerText")
        page.close()
