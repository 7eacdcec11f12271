"""Box and maximum on a picture: where they are drawn, against pixels by hand, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from i2am_debug.figures.boxes import Box
from i2am_debug.figures.scores import pointing
from i2am_debug.report.marks import Marks, draw_marks, marks_of


def block() -> np.ndarray:
    """(8, 8): rows 2 to 4, columns 4 to 7 are strong, most of all (3, 6)."""
    map = np.full((8, 8), 0.1, dtype=np.float32)
    map[2:5, 4:8] = 1.0
    map[3, 6] = 2.0
    return map / map.sum()


def region(*parts: tuple[slice, slice]) -> np.ndarray:
    mask = np.zeros((16, 16), dtype=bool)
    for part in parts:
        mask[part] = True
    return mask


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (region((slice(4, 10), slice(8, 16))), "box IoU 1.00 · maximum hits"),
        (region((slice(4, 10), slice(0, 12))), "box IoU 0.25 · maximum misses"),  # 6×4 of 6×8 + 6×12 − 6×4 pixels
        (region((slice(0, 2), slice(0, 2))), "box IoU 0.00 · maximum misses"),
        # Its box is all of the picture, 3×4 of 8×8 tokens; the maximum's token is inside.
        (region((slice(0, 1), slice(0, 1)), (slice(6, 16), slice(12, 16))), "box IoU 0.19 · maximum hits"),
        (np.ones((16, 16), dtype=bool), ""),
        (None, ""),
    ],
)
def test_box_and_maximum_are_compared_with_a_region(mask: np.ndarray | None, words: str) -> None:
    found = marks_of(block(), mask)
    assert found == Marks(
        Box(top=0.25, left=0.5, bottom=0.625, right=1.0, mass=found.box.mass), (3.5 / 8, 6.5 / 8), words
    )


@pytest.mark.parametrize("seed", range(30))
def test_a_maximum_hits_what_the_pointing_figure_says(seed: int) -> None:
    """On grids that do not divide the picture."""
    random = np.random.default_rng(seed)
    map, mask = random.random(random.integers(2, 20, 2)), random.random(random.integers(20, 90, 2)) > 0.5
    found = marks_of(map, mask)
    assert found is not None
    assert found.words.endswith("hits" if pointing(map, mask) else "misses")


@pytest.mark.parametrize(
    "map",
    [
        *("one reference token", np.full((4, 4), 1 / 16), np.full((4, 4), np.nan), np.eye(10)[:1], np.eye(10)[:, :1]),
        np.array([[0.5, -0.5], [0.5, 0.5]]),
    ],
)
def test_a_map_that_is_nowhere_strongest_has_no_marks(map: np.ndarray | str) -> None:
    assert marks_of(map, np.eye(8, dtype=bool)) is None


@pytest.mark.parametrize("ground", [0, 128, 255])
def test_marks_lie_where_they_should_and_leave_the_rest(ground: int) -> None:
    plain = Image.new("RGB", (160, 120), (ground,) * 3)
    draw_marks(plain, Marks(Box(top=0.25, left=0.5, bottom=0.75, right=1.0), (0.5, 0.25), ""))
    changed = (np.asarray(plain) != ground).any(2)
    # Dashes: of each edge a good part, but not all.
    for edge in (changed[30, 80:], changed[89, 80:], changed[30:90, 80], changed[30:90, 159]):
        assert 0.5 < edge.mean() < 1
    ring = changed[:, :78]
    rows, columns = np.nonzero(ring)
    assert (rows.mean(), columns.mean()) == pytest.approx((60, 40), abs=0.6)
    assert np.hypot(rows - 60, columns - 40).max() < 9 and not ring[60, 40], "the maximum itself can be seen"
    changed[28:93, 78:] = False
    changed[51:70, 31:50] = False
    assert not changed.any()
