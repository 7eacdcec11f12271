"""The evidence on instruction editing: what is known of each patch, its figures by hand, and its short form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.evidence import edited_patches, editing, editing_told
from benchmarks.evidence.edited_patches import ALL, KEPT, MOVED, UNCOVERED
from benchmarks.evidence.looked_at import held_out
from benchmarks.evidence.sizes import SHORT
from i2am_debug.demo.edit.pairs import make_batch


def test_kept_patches_and_moved_objects_show_what_is_at_their_sources() -> None:
    batch = make_batch(64, torch.Generator().manual_seed(3))
    kinds, source = edited_patches.patches_of_each_kind(batch), edited_patches.sources(batch)
    on_object = edited_patches.object_shares(batch.target_object_B1SS)
    assert kinds[MOVED].any() and kinds[UNCOVERED].any() and not (kinds[KEPT] & kinds[MOVED]).any()

    def patch(pictures: torch.Tensor, index: int, place: int) -> torch.Tensor:
        row, column = divmod(place, 8)
        return pictures[index, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]

    for index, place in np.argwhere(kinds[KEPT]):
        assert patch(batch.target_B3SS, index, place).equal(patch(batch.reference_B3SS, index, place))
    whole = kinds[MOVED] & (on_object == 1)
    assert whole.sum() > 10
    for index, place in np.argwhere(whole):
        assert source[index, place] != place
        assert patch(batch.target_B3SS, index, place).equal(patch(batch.reference_B3SS, index, source[index, place]))


def test_hits_are_of_the_counted_patches_alone() -> None:
    rows = 0.01 + np.eye(64)[[1, 1, *range(2, 63), 0]][None]  # the first looks one to the right, the last far away
    own = np.arange(64)[None]
    counted = np.zeros((1, 64), bool)
    counted[0, [0, 1, 63]] = True
    assert edited_patches.at(rows, own, counted) == pytest.approx(1 / 3)
    assert edited_patches.near(rows, own, counted) == pytest.approx(2 / 3)
    assert np.isnan(edited_patches.at(rows, own, np.zeros((1, 64), bool)))


def test_superiority_is_a_probability() -> None:
    assert editing_told.superiority(np.array([1.0, 2]), np.array([0.0, 0])) == 1
    assert editing_told.superiority(np.array([1.0, 2]), np.array([2.0, 2])) == 0.25
    assert editing_told.superiority(np.array([1.0]), np.array([1.0])) == 0.5


def test_the_other_prompt_is_another() -> None:
    prompts = ["remove", "remove", "move up", "remove"]
    assert editing_told.other_prompts(prompts) == ["move up", "move up", "remove", "move up"]


def test_the_short_form_finds_the_sources_of_the_shipped_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editing, "NOISE_SHARES", (1.0, 0.2))
    monkeypatch.setattr(editing_told, "SAMPLER_STEPS", 8)
    section = editing.measure(SHORT, Path())
    found = section.values
    sharpest = found["by_layer"][found["sharpest_layer"]]
    assert sharpest["kept"][0] >= 0.9 and sharpest["moved"][0] >= 0.6 and sharpest["moved_reference"][0] <= 0.2
    assert found["by_noise"]["1.0"]["moved"][0] >= found["by_noise"]["1.0"]["moved_prompt"][0] + 0.3
    assert found["told_apart"]["loss"]["told from another's reference"][0] == 1
    psnr = found["psnr"]
    assert psnr["right"]["kept"][0] > psnr["another's reference"]["kept"][0] + 6
    assert psnr["right"]["other"][0] > psnr["another's prompt"]["other"][0] + 3
    assert (
        found["changed_by"]["another's prompt"]["picture_edited"][0]
        > found["changed_by"]["another's prompt"]["picture_kept"][0]
    )
    assert f"| {ALL} |" in section.markdown() and "only the prompt says where to" in section.markdown()


def test_its_pairs_are_those_of_which_it_knows_the_truth() -> None:
    batch = make_batch(8, torch.Generator().manual_seed(10_000))
    assert [pair.prompt for pair in held_out("edit", 8, seed=0)] == batch.prompts
