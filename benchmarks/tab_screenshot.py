"""The README's picture of the tab, of the demo's runs; needs Chromium.

`i2am-debug demo`, `i2am-debug demo --sabotage none`, then `python -m benchmarks.tab_screenshot runs/demo OUT.png`.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

from .browser import chromium, open_tab, tensorboard


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tab_screenshot", description=__doc__.splitlines()[0])
    parser.add_argument("logdir", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--dark", action="store_true")
    args = parser.parse_args(argv)
    with tensorboard("--logdir", str(args.logdir)) as (address, _), chromium() as browser:
        page = browser.new_page(viewport={"width": 1440, "height": 1060}, color_scheme="dark" if args.dark else "light")
        open_tab(page, address)
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
