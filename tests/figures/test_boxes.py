"""Boxes of maps against boxes found by hand, and by painting them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from i2am_debug.errors import UndefinedFigure
from i2am_debug.figures.boxes import Box, boxes

SIDE = 24


def painted(box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    top, left, bottom, right = box
    mask[top:bottom, left:right] = True
    return mask


edges = st.tuples(st.integers(0, SIDE - 1), st.integers(0, SIDE - 1), st.integers(1, 12), st.integers(1, 12)).map(
    lambda b: (b[0], b[1], min(SIDE, b[0] + b[2]), min(SIDE, b[1] + b[3]))
)


@given(edges, edges)
def test_iou_is_that_of_the_painted_boxes(one, other):
    a, b = painted(one), painted(other)
    assert Box.around(a).iou(Box.around(b)) == pytest.approx((a & b).sum() / (a | b).sum())
    assert Box.around(a).area == pytest.approx(a.mean())
    assert Box.around(a).iou(Box.around(a)) == pytest.approx(1)


@settings(deadline=None)  # the first one imports scipy
@given(edges)
def test_the_box_of_a_bright_part_is_its_own(box):
    inside = painted(box)
    values = np.where(inside, 5.0, 0.1)
    percentile = 100 * (1 - inside.mean()) - 1e-9
    assert boxes(values, percentile=max(0.0, percentile))[0] == Box(
        **vars(Box.around(inside)) | {"mass": pytest.approx(values[inside].sum() / values.sum())}
    )


def test_parts_that_touch_at_a_corner_are_two_and_the_heavier_comes_first():
    values = np.zeros((4, 6))
    values[0, 0] = 9.0
    values[1, 1:4] = 2.0
    values[2, 3] = 1.0
    first, second = boxes(values, percentile=50)
    assert (first.top, first.left, first.bottom, first.right) == (0, 0, 0.25, 1 / 6)
    assert (second.top, second.left, second.bottom, second.right) == (0.25, 1 / 6, 0.75, 4 / 6)
    assert (first.mass, second.mass) == (pytest.approx(9 / 16), pytest.approx(7 / 16))


def test_a_third_of_the_tokens_lie_above_the_default_percentile():
    values = np.arange(100.0).reshape(10, 10)
    (only,) = boxes(torch.from_numpy(values))
    assert (only.top, only.bottom) == (0.6, 1.0)  # 35 of 100: the last three and a half rows


@pytest.mark.parametrize(
    ("map", "error", "words"),
    [
        (np.full((3, 3), 0.2), UndefinedFigure, "constant"),
        (np.zeros((3, 3)), UndefinedFigure, "constant"),
        (np.array([[0.0, np.nan]]), UndefinedFigure, "not finite"),
        (np.array([[0.0, -1.0]]), ValueError, "negative"),
        (np.zeros(4), ValueError, r"shape \(h, w\), got \(4,\)"),
    ],
)
def test_what_is_no_map_is_refused(map, error, words):
    with pytest.raises(error, match=words):
        boxes(map)


def test_settings_and_boxes_out_of_range_are_refused():
    with pytest.raises(ValueError, match="percentile=100"):
        boxes(np.eye(3), percentile=100)
    with pytest.raises(ValueError, match="top < bottom"):
        Box(top=0.5, left=0, bottom=0.5, right=1)
    with pytest.raises(UndefinedFigure, match="the mask is empty"):
        Box.around(np.zeros((3, 3)))
