"""What a person sees in TensorBoard after an evaluation, in a real browser."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from training import Run

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        reason = "no chromium on the path (on Debian: apt install chromium)"
        pytest.fail(reason) if os.environ.get("I2AM_REQUIRE_BROWSER") else pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
        flags += ["--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield browser.new_page(viewport={"width": 1400, "height": 1000})
        browser.close()


@pytest.fixture(scope="module")
def tensorboard(tmp_path_factory):
    """The address of a TensorBoard on one evaluated run."""
    folder: Path = tmp_path_factory.mktemp("runs")
    run = Run(folder)
    callback = run.callback()
    callback.evaluate(0)
    callback.evaluate(1)  # a scalar chart of one point is empty
    callback.on_train_end(1)
    run.accelerator.end_training()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", "0", "--bind_all"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        lines = iter(server.stderr.readline, "")
        port = next(found[1] for line in lines if (found := re.search(r":(\d+)/", line)))
        yield f"http://localhost:{port}"
    finally:
        server.kill()
        server.wait()


def test_the_panels_are_shown(page, tensorboard):
    page.goto(f"{tensorboard}/#images")
    page.wait_for_selector("text=i2am/pair_00", timeout=30_000)
    picture = page.locator("img[src*='pluginRoute'], img[src*='individualImage']").first
    picture.wait_for(timeout=30_000)
    width, height = picture.evaluate("e => e.decode().then(() => [e.naturalWidth, e.naturalHeight])")
    assert 400 < max(width, height) <= 1024


def test_the_charts_put_scores_beside_their_reference_lines(page, tensorboard):
    page.goto(f"{tensorboard}/#custom_scalars")
    for title in ("IMACS_g", "IMACS_r", "attention information, bits, 95 % interval", "reference gap, 95 % interval"):
        page.get_by_text(title, exact=True).first.wait_for(timeout=30_000)
    assert page.locator("text=Matches (5)").count() >= 1  # IMACS_g and its four lines, not i2am/imacs_g_centred
