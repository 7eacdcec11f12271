"""The evidence on super-resolution: its figures by hand, and its short form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.evidence import super_resolution
from benchmarks.evidence.sizes import SHORT


def rows_with_maximum_at(places: np.ndarray) -> np.ndarray:
    return 0.01 + np.eye(256)[places][None]


def test_hits_are_at_the_own_place_and_near_ones_within_one_patch() -> None:
    own = np.arange(256)
    assert super_resolution.hits(rows_with_maximum_at(own)) == 1
    next_column = rows_with_maximum_at(np.roll(own.reshape(16, 16), -1, 1).ravel())
    assert super_resolution.hits(next_column) == 0
    assert super_resolution.near_hits(next_column) == 15 / 16  # the last column looks at the first
    assert super_resolution.near_hits(rows_with_maximum_at(255 - own)) == 4 / 256  # the four in the middle


def test_concentration_counts_the_bits_by_which_a_row_is_narrower_than_an_even_one() -> None:
    rows = np.zeros((1, 3, 64))
    rows[0, 0] = 1 / 64
    rows[0, 1, 5] = 1
    rows[0, 2, :8] = 1 / 8
    assert super_resolution.concentration(rows)[0] == pytest.approx([0, 6, 3])


def test_the_short_form_finds_the_diagonal_of_the_shipped_weights() -> None:
    section = super_resolution.measure(SHORT, Path())
    layers = section.values["by_time"]["all"]
    best = max(one["hit"][0] for name, one in layers.items() if name != super_resolution.ALL)
    assert best >= 0.9 and all(low <= value <= high for one in layers.values() for value, low, high in one.values())
    psnr = {name: value for name, (value, _, _) in section.values["psnr"].items()}
    assert psnr["the right reference"] > psnr["another picture's"] + 6
    assert "look at their own place" in section.markdown() and "Restored with 20 sampler steps" in section.markdown()
