"""A real TensorBoard and a real Chromium, for the benchmarks and for the tests of what a person sees."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
)
LONGEST_START = 60
"""Seconds that TensorBoard may take to load its runs."""


def chromium_path() -> str | None:
    """The system's Chromium, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of Playwright's."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def tensorboard(*options: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address of a new TensorBoard, and its process."""
    command = [sys.executable, "-m", "tensorboard.main", *options, "--port", "0", "--bind_all"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        said = []
        for line in iter(server.stderr.readline, ""):
            said.append(line)
            if found := re.search(r":(\d+)/", line):
                break
        else:
            raise RuntimeError(f"TensorBoard did not start: {''.join(said)}")
        # Nobody reads what it says from here on, and a full pipe would stop it.
        threading.Thread(target=server.stderr.read, daemon=True).start()
        yield f"http://localhost:{found[1]}", server
    finally:
        server.kill()
        server.wait()


def open_tab(page: Any, address: str, state: str = "") -> None:
    """Shows the tab alone on a page, as it is inside TensorBoard's frame, once TensorBoard has loaded its runs."""
    deadline = time.monotonic() + LONGEST_START
    while True:
        page.goto(f"{address}/data/plugin_entry.html?name=i2am_debug#{state}")
        page.wait_for_function("document.documentElement.dataset.ready", timeout=30_000)
        if shown(page) != "message" or time.monotonic() > deadline:
            return
        page.goto("about:blank")
        time.sleep(1)


def shown(page: Any) -> str:
    """The run and step that the tab shows, or "message"."""
    return page.evaluate("document.documentElement.dataset.ready ?? ''")
