"""What a person sees in TensorBoard after an evaluation, in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from training import Run

from benchmarks.browser import tensorboard

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(browser):
    opened = browser.new_page(viewport={"width": 1400, "height": 1000})
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of a TensorBoard on one evaluated run."""
    folder: Path = tmp_path_factory.mktemp("runs")
    run = Run(folder)
    callback = run.callback()
    callback.evaluate(0)
    callback.evaluate(1)  # a scalar chart of one point is empty
    callback.on_train_end(1)
    run.accelerator.end_training()
    with tensorboard("--logdir", str(folder)) as (started, _):
        yield started


def test_the_panels_are_shown(page, address):
    page.goto(f"{address}/#images")
    page.wait_for_selector("text=i2am/pair_00", timeout=30_000)
    picture = page.locator("img[src*='pluginRoute'], img[src*='individualImage']").first
    picture.wait_for(timeout=30_000)
    width, height = picture.evaluate("e => e.decode().then(() => [e.naturalWidth, e.naturalHeight])")
    assert 400 < max(width, height) <= 1024


def test_the_charts_put_scores_beside_their_reference_lines(page, address):
    page.goto(f"{address}/#custom_scalars")
    for title in ("IMACS_g", "IMACS_r", "attention information, bit, 95 % interval", "reference gap, 95 % interval"):
        page.get_by_text(title, exact=True).first.wait_for(timeout=30_000)
    # IMACS_g and its four lines, not i2am/imacs_g_centred
    page.locator("text=Matches (5)").first.wait_for(timeout=30_000)
