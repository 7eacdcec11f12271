"""The kept region of an edit: what is found, what is refused, and where it stands among a pair's masks."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from i2am_debug.errors import InvalidPair
from i2am_debug.pairs.collection import ValidationPairs, regions_in_words
from i2am_debug.pairs.kept import NoKeptRegion, brought_to, difference, kept_region, otsu_threshold
from i2am_debug.pairs.pair import ValidationPair

HEIGHT, WIDTH = 120, 160
TRUE = np.ones((HEIGHT, WIDTH), dtype=bool)
TRUE[30:80, 40:110] = False


def scene(seed: int = 0) -> np.ndarray:
    """A smooth picture with some texture, (H, W, 3) float in [0, 255]."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(40, 216, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=float)
    return smooth + random.normal(0, 4, (HEIGHT, WIDTH, 3))


def picture(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(data).convert("RGB")


def edited(colour: tuple[int, int, int] = (250, 10, 10)) -> Image.Image:
    values = scene()
    values[~TRUE] = colour
    return picture(values)


REFERENCE = picture(scene())


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


# -- Otsu ------------------------------------------------------------------------------------------------------------


def least_spread_within(values: np.ndarray) -> float:
    """Otsu's other definition, the slow way: the edge with the least variance inside both classes together, of the values
    moved to the middles of their bins. In integers, so that equals are equals."""
    bins = np.minimum((values * 256).astype(int), 255)
    best, where = None, None
    for edge in range(1, 256):
        below, above = bins[bins < edge].tolist(), bins[bins >= edge].tolist()
        if not below or not above:
            continue
        # n·m times the squared deviations of n and m values from their own means
        n, m = len(below), len(above)
        spread = m * (n * sum(v * v for v in below) - sum(below) ** 2)
        spread += n * (m * sum(v * v for v in above) - sum(above) ** 2)
        spread = spread / (n * m)
        if best is None or spread < best * (1 - 1e-9):
            best, where = spread, edge
    assert where is not None
    return where / 256


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 765), min_size=2, max_size=40).filter(lambda v: max(v) - min(v) > 6))
def test_otsus_threshold_leaves_the_least_spread_within(levels: list[int]) -> None:
    values = np.array(levels) / 765
    assert otsu_threshold(values) == pytest.approx(least_spread_within(values), abs=1e-12)


def test_otsus_threshold_of_two_heaps_lies_between_them() -> None:
    random = np.random.default_rng(1)
    low, high = random.normal(0.1, 0.01, 4000), random.normal(0.6, 0.05, 300)
    threshold = otsu_threshold(np.concatenate([low, high]).clip(0, 1))
    assert low.max() < threshold < high.min()


def test_values_of_one_bin_lie_below_the_threshold() -> None:
    for value in (0.0, 0.3, 1.0):
        assert otsu_threshold(np.full(9, value)) == pytest.approx(min(int(value * 256), 255) / 256 + 1 / 256)


# -- the region ------------------------------------------------------------------------------------------------------


def test_the_difference_is_the_mean_over_channels_of_two_pictures_of_one_size() -> None:
    a, b = np.zeros((2, 2, 3), dtype=np.uint8), np.zeros((2, 2, 3), dtype=np.uint8)
    b[0, 1] = (255, 0, 51)
    found = difference(Image.fromarray(a), Image.fromarray(b))
    np.testing.assert_allclose(found, [[0, (1 + 0.2) / 3], [0, 0]], atol=1e-7)
    assert difference(REFERENCE.resize((40, 90)), edited()).shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("spoil", "least"),
    [
        (lambda x: x, 0.99),
        (lambda x: picture(np.asarray(x, float) + np.random.default_rng(2).integers(-1, 2, (HEIGHT, WIDTH, 3))), 0.99),
        (lambda x: jpeg(x, 90), 0.99),
        (lambda x: jpeg(x, 50), 0.97),
        (lambda x: x.resize((WIDTH // 2, HEIGHT // 2)).resize((WIDTH, HEIGHT)), 0.96),
    ],
    ids=["exact", "rounding", "JPEG 90", "JPEG 50", "half the size"],
)
@pytest.mark.parametrize("threshold", [None, 0.1])
def test_the_kept_region_is_found_through_noise(spoil: Any, least: float, threshold: float | None) -> None:
    found = kept_region(REFERENCE, spoil(edited()), threshold)
    assert overlap(found.inside, TRUE) >= least
    assert overlap(~found.inside, ~TRUE) >= least - 0.1
    assert found.rule == ("Otsu" if threshold is None else "fixed")
    assert str(found) == f"{found.rule}, |target − reference| < {found.threshold:.3f}"


def test_a_weak_edit_is_found_and_a_reference_of_another_size() -> None:
    values = scene()
    values[~TRUE] += 20
    assert overlap(~kept_region(REFERENCE, jpeg(picture(values), 80)).inside, ~TRUE) > 0.9
    assert overlap(kept_region(REFERENCE.resize((320, 240)), edited()).inside, TRUE) > 0.95


def test_what_agrees_by_chance_is_not_kept() -> None:
    """Another picture pasted in: without its upper bound Otsu's threshold would be far higher."""
    values = scene()
    values[~TRUE] = ((scene(5) - 128) * 2 + 128)[~TRUE]
    target = picture(values)
    apart = difference(REFERENCE, target)
    assert otsu_threshold(apart) > 0.13
    found = kept_region(REFERENCE, target)
    assert found.threshold == 0.1
    assert (found.inside & ~TRUE).sum() < 0.8 * ((apart < otsu_threshold(apart)) & ~TRUE).sum()


def test_specks_are_dissolved() -> None:
    values = scene()
    values[~TRUE] = (250, 10, 10)
    random = np.random.default_rng(3)
    specks = random.random((HEIGHT, WIDTH)) < 0.02
    values[specks] = 255 - values[specks]
    np.testing.assert_array_equal(kept_region(REFERENCE, picture(values)).inside[100:], True)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (REFERENCE, "the target is the reference, but for noise"),
        (jpeg(REFERENCE, 60), "the target is the reference, but for noise"),
        (picture(scene() + 2), "the target is the reference, but for noise"),
        (picture(scene() + np.where(TRUE, 0, 12)[..., None]), "the target is the reference, but for noise"),
        (picture(scene() + 40), "differs from the reference everywhere"),
        (picture(scene(7)), "differs from the reference everywhere"),
        (picture(255 - scene()), "differs from the reference everywhere"),
        (
            picture(np.random.default_rng(4).integers(0, 256, (HEIGHT, WIDTH, 3))),
            "differs from the reference everywhere",
        ),
    ],
    ids=["the same", "JPEG", "a shade", "a hint", "brighter", "another", "negative", "noise"],
)
def test_where_there_are_no_two_sides_there_is_no_region(target: Image.Image, text: str) -> None:
    with pytest.raises(NoKeptRegion, match=text):
        kept_region(REFERENCE, target)


def test_burnt_out_white_is_no_kept_region() -> None:
    values = scene()
    values[:24, :24] = 255
    with pytest.raises(NoKeptRegion, match="everywhere"):
        kept_region(picture(values), picture(values + 40))


@pytest.mark.parametrize("threshold", [0, 1, -0.1, 7, float("nan")])
def test_a_threshold_that_can_not_be(threshold: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1, or None for Otsu's"):
        kept_region(REFERENCE, edited(), threshold)


def test_a_fixed_threshold_is_taken_as_it_is() -> None:
    with pytest.raises(NoKeptRegion, match="differs from the reference nowhere by 0.900 or more"):
        kept_region(REFERENCE, edited(), 0.9)
    with pytest.raises(NoKeptRegion, match="differs from the reference everywhere by 0.050 or more"):
        kept_region(REFERENCE, picture(scene() + 40), 0.05)
    assert kept_region(REFERENCE, picture(scene() + np.where(TRUE, 0, 12)[..., None]), 0.02).inside.any()


def test_tiny_pictures_have_one_too() -> None:
    a = np.zeros((2, 3, 3), dtype=np.uint8)
    b = a.copy()
    b[:, 2] = 255
    np.testing.assert_array_equal(kept_region(Image.fromarray(a), Image.fromarray(b)).inside, [[True, True, False]] * 2)


# -- of a pair -------------------------------------------------------------------------------------------------------


def pair(**changes: Any) -> ValidationPair:
    return ValidationPair(**{"name": "cup", "reference": REFERENCE, "target": edited(), **changes})


def test_a_pair_derives_its_region() -> None:
    plain = pair()
    assert (plain.kept, plain.region, plain.reference_region, plain.region_in_words) == (None, None, None, "none")
    found = plain.with_kept_region()
    assert overlap(found.kept, TRUE) > 0.99
    assert found.region is found.kept
    assert found.kept_origin.startswith("derived: Otsu, |target − reference| < 0.")
    assert found.region_in_words == found.kept_origin.replace("derived", "kept")
    fixed = found.with_kept_region(0.05)
    assert fixed.region_in_words == "kept: fixed, |target − reference| < 0.050"
    assert found.content_hash() == fixed.content_hash() == plain.content_hash(), "derived from what is hashed"


def test_a_pair_without_one_says_why() -> None:
    found = pair(target=REFERENCE).with_kept_region()
    assert (found.kept, found.region, found.kept_origin, found.region_in_words) == (None, None, None, "none")
    assert found.undefined_kept == "the target is the reference, but for noise"
    with pytest.raises(ValueError, match="threshold=2"):
        pair().with_kept_region(2)


def test_what_was_given_is_not_derived() -> None:
    hole = ~TRUE
    for given_one in (pair(mask=hole), pair(kept=TRUE)):
        assert given_one.with_kept_region() is given_one
    with_hole, kept = pair(mask=hole, reference_mask=hole), pair(kept=TRUE)
    assert (with_hole.region is with_hole.mask, with_hole.region_in_words) == (True, "hole")
    assert (kept.kept_origin, kept.region_in_words) == ("given", "kept: given")
    assert with_hole.reference_region is with_hole.reference_mask
    assert pair(mask=hole, kept=TRUE).reference_region is None, "the region is the hole"
    assert pair(mask=hole, kept=TRUE).region_in_words == "hole"
    assert pair(kept=TRUE, reference_mask=hole).reference_region.sum() == hole.sum()
    assert regions_in_words([with_hole, kept, pair()]) == json.loads('["hole", "kept: given", "none"]')


def test_the_region_on_a_reference_of_another_size() -> None:
    found = pair(reference=REFERENCE.resize((80, 77)), kept=TRUE).reference_region
    y, x = np.mgrid[:77, :80]
    np.testing.assert_array_equal(
        found, TRUE[((y + 0.5) * HEIGHT / 77).astype(int), ((x + 0.5) * WIDTH / 80).astype(int)]
    )
    np.testing.assert_array_equal(brought_to(TRUE, (WIDTH, HEIGHT)), TRUE)
    speck = np.ones_like(TRUE)
    speck[0, 0] = False
    assert pair(reference=REFERENCE.resize((8, 6)), kept=speck).reference_region is None


def test_a_kept_mask_is_checked_as_masks_are() -> None:
    with pytest.raises(InvalidPair, match="pair 'cup': kept is 5x4 pixels, its picture is 160x120"):
        pair(kept=np.eye(4, 5, dtype=bool))
    with pytest.raises(InvalidPair, match="pair 'cup': kept is full"):
        pair(kept=np.ones_like(TRUE))


def test_the_hash_changes_with_what_was_given_and_is_what_it_was_without() -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    half = np.zeros((4, 4), dtype=bool)
    half[:2] = True
    plain = {"name": "x", "reference": grey, "target": grey, "prompt": "p"}
    # as stored by version 0.1.0
    assert ValidationPair(**plain).content_hash() == "dfd643ff5a31"
    assert ValidationPair(**plain, mask=half).content_hash() == "3a3d2a5dbadf"
    hashes = {
        ValidationPair(**plain, **more).content_hash() for more in ({}, {"kept": half}, {"kept": ~half}, {"mask": half})
    }
    assert len(hashes) == 4


def test_a_folder_and_a_dataset_give_kept_masks(tmp_path: Path) -> None:
    REFERENCE.save(tmp_path / "before.png")
    edited().save(tmp_path / "after.png")
    Image.fromarray(TRUE.astype(np.uint8) * 255).save(tmp_path / "kept.png")
    row = {"file_name": "after.png", "reference_file_name": "before.png", "kept_mask_file_name": "kept.png"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    (of_folder,) = ValidationPairs.from_folder(tmp_path)
    np.testing.assert_array_equal(of_folder.kept, TRUE)
    assert (of_folder.kept_origin, of_folder.region_in_words, dict(of_folder.extra)) == ("file", "kept: given", {})
    assert of_folder.with_kept_region() is of_folder

    rows = [
        {"after": edited(), "before": REFERENCE, "same": TRUE},
        {"after": edited(), "before": REFERENCE, "same": None},
    ]
    first, second = ValidationPairs.from_dataset(rows, target="after", reference="before", kept="same")
    np.testing.assert_array_equal(first.kept, TRUE)
    assert (first.kept_origin, second.kept, second.kept_origin) == ("given", None, None)
    assert first.content_hash() == of_folder.content_hash() != second.content_hash()

    (tmp_path / "metadata.jsonl").write_text(json.dumps({**row, "kept_mask_file_name": "gone.png"}) + "\n")
    with pytest.raises(InvalidPair, match=r"kept_mask_file_name names .*gone.png, which does not exist"):
        ValidationPairs.from_folder(tmp_path)
