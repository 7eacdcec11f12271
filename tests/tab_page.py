"""The tab on a page of its own, and what a person does there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.browser import open_tab, shown

ARTEFACTS = Path(os.environ.get("I2AM_ARTEFACTS") or Path(__file__).parents[1] / "build" / "artefacts")
"""Where the screenshots of the last run of the tests are kept."""


class Tab:
    """The tab alone on a page, as it is inside TensorBoard's frame.

    `errors` collects what went wrong unseen: uncaught errors, dialogs that only planted code would open, and what the browser
    complains of in its console, such as an answer 404 or a broken Content-Security-Policy.
    """

    def __init__(self, browser: Any, address: str, state: str = "", **options: Any) -> None:
        self.page = browser.new_page(**{"viewport": {"width": 1440, "height": 1100}, **options})
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._complained)
        self.page.on("dialog", lambda dialog: (self.errors.append("a dialog"), dialog.dismiss()))
        open_tab(self.page, address, state)

    def _complained(self, said: Any) -> None:
        where = said.location.get("url", "")
        if said.type == "error" and not where.endswith("/favicon.ico"):  # TensorBoard has none
            self.errors.append(f"{said.text} ({where})")

    def ready(self) -> str:
        """The run and step that are shown, or "message"."""
        return shown(self.page)

    def is_at(self, step: int) -> None:
        self.page.wait_for_function(f"document.documentElement.dataset.ready?.endsWith(' {step}')", timeout=15_000)

    def says(self, words: str) -> None:
        """Waits until the page has these words."""
        self.page.wait_for_function("words => document.body.innerText.includes(words)", arg=words, timeout=15_000)

    def changes(self, side: str, before: str) -> None:
        """Waits until a picture is not as it was `before` (from `pixels`)."""
        number = 0 if side == "generated" else 1
        changed = "([i, before]) => document.querySelectorAll('.views canvas')[i].toDataURL() !== before"
        self.page.wait_for_function(changed, arg=[number, before], timeout=15_000)

    def canvas(self, side: str) -> Any:
        return self.page.locator(".views canvas").nth(0 if side == "generated" else 1)

    def point(self, side: str, row: float, column: float, grid: int | tuple[int, int]) -> tuple[float, float]:
        """The middle of a patch on the screen; `grid` (height, width), or the side of a square one."""
        height, width = grid if isinstance(grid, tuple) else (grid, grid)
        box = self.canvas(side).bounding_box()
        return box["x"] + (column + 0.5) / width * box["width"], box["y"] + (row + 0.5) / height * box["height"]

    def drag(self, side: str, begin: tuple[int, int], end: tuple[int, int], grid: int) -> None:
        """Draws a region from one patch (row, column) to another."""
        self.page.mouse.move(*self.point(side, *begin, grid))
        self.page.mouse.down()
        self.page.mouse.move(*self.point(side, *end, grid), steps=4)
        self.page.mouse.up()

    def pixels(self, side: str) -> str:
        return self.canvas(side).evaluate("e => e.toDataURL()")

    def words(self) -> str:
        return self.page.evaluate("document.body.innerText")

    def screenshot(self, name: str) -> None:
        """Keeps a picture of the whole page."""
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=ARTEFACTS / f"{name}.png", full_page=True)
