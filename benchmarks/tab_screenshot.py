"""The README's picture of the tab, of the demo's runs; needs Chromium.

`i2am-debug demo`, `i2am-debug demo --sabotage none`, then `python -m benchmarks.tab_screenshot runs/demo OUT.png`.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tab_screenshot", description=__doc__.splitlines()[0])
    parser.add_argument("logdir", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--dark", action="store_true")
    args = parser.parse_args(argv)
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(args.logdir), "--port", "0", "--bind_all"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        lines = iter(server.stderr.readline, "")
        port = next(found[1] for line in lines if (found := re.search(r":(\d+)/", line)))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu", "--no-first-run"]
            )
            options = {"viewport": {"width": 1440, "height": 1060}, "color_scheme": "dark" if args.dark else "light"}
            page = browser.new_page(**options)
            address = f"http://localhost:{port}/data/plugin_entry.html?name=i2am_debug"
            for _ in range(30):  # TensorBoard loads its runs after it has begun to answer
                page.goto(address)
                page.wait_for_function("document.documentElement.dataset.ready")
                if page.evaluate("document.documentElement.dataset.ready") != "message":
                    break
                time.sleep(1)
                page.goto("about:blank")
            page.locator("select").first.select_option("shuffle_seed0")
            page.get_by_role("button", name=re.compile("Alert at step")).first.click()
            page.wait_for_function("document.documentElement.dataset.ready === 'shuffle_seed0 32'")
            for box in page.locator(".timeline .key input").all():
                if not box.is_checked() and box.is_enabled():
                    box.check()
            canvas = page.locator(".views canvas").first.bounding_box()
            page.mouse.click(canvas["x"] + canvas["width"] * 0.41, canvas["y"] + canvas["height"] * 0.47)
            page.mouse.move(5, 300)
            time.sleep(1)
            page.screenshot(path=args.output)
            browser.close()
    finally:
        server.kill()
        server.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
