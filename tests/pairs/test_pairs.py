"""Validation pairs: what is taken, what is refused and in which words, and when files are read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from i2am_debug.errors import InvalidPair
from i2am_debug.pairs.collection import ValidationPairs
from i2am_debug.pairs.pair import ValidationPair

RNG = np.random.default_rng(0)
REFERENCE = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
TARGET = RNG.integers(0, 256, (10, 12, 3), dtype=np.uint8)
MASK = np.zeros((10, 12), dtype=bool)
MASK[2:6, 3:9] = True
OBJECT = np.zeros((6, 8), dtype=bool)
OBJECT[1:3, 1:4] = True
NAN_PICTURE = np.full((10, 12, 3), 0.5, dtype=np.float32)
NAN_PICTURE[1, 2, 0] = np.nan


FURTHER = "further_reference_file_names"
GOOD_ROW = {"file_name": "target_0.png", "reference_file_name": "refs/0.png"}


def pair(**changes: Any) -> ValidationPair:
    return ValidationPair(**{"name": "cup", "reference": REFERENCE, "target": TARGET, "mask": MASK, **changes})


def refused(*texts: str, make: Any = None, **changes: Any) -> str:
    """Checks that a pair is refused, in words that hold all `texts`."""
    with pytest.raises(InvalidPair) as caught:
        make() if make else pair(**changes)
    for text in texts:
        assert text in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pairs on disk, the first with everything, the second with the least."""
    (tmp_path / "refs").mkdir()
    for i in range(2):
        Image.fromarray(TARGET + np.uint8(i)).save(tmp_path / f"target_{i}.png")
        Image.fromarray(REFERENCE + np.uint8(i)).save(tmp_path / "refs" / f"{i}.png")
    Image.fromarray(MASK.astype(np.uint8) * 255).save(tmp_path / "hole.png")
    Image.fromarray(OBJECT.astype(np.uint8) * 255).save(tmp_path / "object.png")
    write(
        tmp_path,
        {
            "file_name": "target_0.png",
            "reference_file_name": "refs/0.png",
            "mask_file_name": "hole.png",
            "reference_mask_file_name": "object.png",
            "prompt": "a cup",
            "name": "cup",
            "guidance_scale": 2.5,
        },
        {"file_name": "target_1.png", "reference_file_name": "refs/1.png"},
    )
    return tmp_path


def write(folder: Path, *rows: Any) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_folder_is_read(folder: Path) -> None:
    pairs = ValidationPairs.from_folder(folder)
    assert len(pairs) == 2
    first, second = pairs
    assert (first.name, first.prompt, dict(first.extra)) == ("cup", "a cup", {"guidance_scale": 2.5})
    for found, expected in ((first.target, TARGET), (first.reference, REFERENCE)):
        assert found.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(found), expected)
    for found, expected in ((first.mask, MASK), (first.reference_mask, OBJECT)):
        assert found.dtype == bool
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.asarray(first.mask_image), MASK * 255)
    assert (second.name, second.prompt, second.mask, second.reference_mask) == ("target_1", None, None, None)
    assert second.mask_image is None
    assert dict(second.extra) == {}
    assert len(pairs.check()) == 2


def test_a_folder_may_be_named_by_a_string_and_hold_blank_lines(folder: Path) -> None:
    listing = folder / "metadata.jsonl"
    listing.write_text("\n" + listing.read_text().replace("\n", "\n\n"))
    assert [p.name for p in ValidationPairs.from_folder(str(folder))] == ["cup", "target_1"]


def test_any_character_may_stand_in_a_prompt(folder: Path) -> None:
    row = {**GOOD_ROW, "prompt": "caf\u00e9\u2028next \u0085 line"}
    write(folder, json.dumps(row, ensure_ascii=False))
    assert ValidationPairs.from_folder(folder)[0].prompt == row["prompt"]


def test_files_are_read_only_when_a_pair_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(Image, "open", lambda file, real=Image.open: opened.append(Path(file.name).name) or real(file))
    pairs = ValidationPairs.from_folder(folder)
    assert len(pairs[1:]) == 1
    assert opened == []
    assert pairs[1].name == "target_1"
    assert sorted(opened) == ["1.png", "target_1.png"]


def test_a_folder_without_metadata(tmp_path: Path) -> None:
    listing = tmp_path / "metadata.jsonl"
    refused(str(listing), '"reference_file_name"', make=lambda: ValidationPairs.from_folder(tmp_path))


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ('{"file_name": ', ["line 2", "is not JSON"]),
        ("[1, 2]", ["line 2", "is a list", "JSON object"]),
        ({"file_name": "target_0.png"}, ["line 2", "no 'reference_file_name'", "needs file_name"]),
        ({"reference_file_name": "refs/0.png"}, ["line 2", "no 'file_name'", "reference_file_name"]),
        ({**GOOD_ROW, "file_name": "gone.png"}, ["line 2", "file_name", "gone.png", "does not exist"]),
        ({**GOOD_ROW, "mask_file_name": "gone.png"}, ["line 2", "mask_file_name", "gone.png", "does not exist"]),
        ({**GOOD_ROW, "reference_mask_file_name": "refs"}, ["line 2", "reference_mask_file_name", "refs"]),
        ({**GOOD_ROW, "file_name": 5}, ["line 2", "file_name", "5"]),
        ({**GOOD_ROW, "mask_file_name": ["hole.png"]}, ["line 2", "mask_file_name"]),
        ({**GOOD_ROW, FURTHER: "refs/1.png"}, ["line 2", FURTHER, "refs/1.png", "list"]),
        ({**GOOD_ROW, FURTHER: ["refs/1.png", 7]}, ["line 2", FURTHER, "7"]),
        ({**GOOD_ROW, FURTHER: ["gone.png"]}, ["line 2", FURTHER, "gone.png", "does not exist"]),
    ],
)
def test_a_bad_line_is_named_when_the_folder_is_opened(folder: Path, row: Any, texts: list[str]) -> None:
    write(folder, GOOD_ROW, row)
    refused("metadata.jsonl", *texts, make=lambda: ValidationPairs.from_folder(folder))


def test_metadata_that_is_not_utf8_is_named(folder: Path) -> None:
    line = json.dumps({**GOOD_ROW, "prompt": "café"}, ensure_ascii=False)
    (folder / "metadata.jsonl").write_bytes(line.encode("latin1"))
    refused("metadata.jsonl", "UTF-8", make=lambda: ValidationPairs.from_folder(folder))


def garbage(data: bytes) -> bytes:
    return b"this is no picture"


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    """A broken chunk in the middle of the pixels, for which Pillow raises a SyntaxError."""
    at = data.index(b"IDAT")
    return data[:at] + b"\x00\x01\x02\x03" + data[at + 4 :]


@pytest.mark.parametrize("spoil", [garbage, half, flipped, lambda data: b""])
@pytest.mark.parametrize("key", ["target", "reference", "mask"])
def test_a_corrupt_file_is_named_when_it_is_read(folder: Path, key: str, spoil: Any) -> None:
    path = folder / {"target": "target_0.png", "reference": "refs/0.png", "mask": "hole.png"}[key]
    path.write_bytes(spoil(path.read_bytes()))
    pairs = ValidationPairs.from_folder(folder)
    refused("pair 'cup'", key, str(path), "can't be read", make=lambda: pairs[0])
    refused("pair 'cup'", make=pairs.check)


def test_a_file_that_vanished_is_named(folder: Path) -> None:
    pairs = ValidationPairs.from_folder(folder)
    (folder / "target_0.png").unlink()
    refused("pair 'cup'", "target", "target_0.png", "does not exist", make=lambda: pairs[0])


@pytest.mark.parametrize(("key", "size"), [("mask", "12x10"), ("reference_mask", "8x6")])
def test_a_mask_of_another_size(key: str, size: str) -> None:
    wrong = np.zeros((5, 7), dtype=bool)
    wrong[2, 2] = True
    refused("pair 'cup'", key, "7x5", size, "resize the mask", **{key: wrong})
    turned = (MASK if key == "mask" else OBJECT).T
    refused("pair 'cup'", key, size, **{key: turned})


@pytest.mark.parametrize("key", ["mask", "reference_mask"])
def test_an_empty_and_a_full_mask(key: str) -> None:
    shape = MASK.shape if key == "mask" else OBJECT.shape
    for kind in (bool, np.uint8, np.float32):
        refused("pair 'cup'", f"{key} is empty", "above 0.5", **{key: np.zeros(shape, dtype=kind)})
        full = np.full(shape, 255 if kind is np.uint8 else 1, dtype=kind)
        refused("pair 'cup'", f"{key} is full", "above 0.5", **{key: full})


@pytest.mark.parametrize("key", ["reference", "target"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite(key: str, kind: str, value: float) -> None:
    picture = NAN_PICTURE.copy()
    picture[1, 2, 0] = value
    given = picture if kind == "numpy" else torch.tensor(picture).permute(2, 0, 1)
    refused("pair 'cup'", key, "NaN or infinite", **{key: given})


@pytest.mark.parametrize(
    ("picture", "texts"),
    [
        (np.full((10, 12, 3), 127.0), ["from 127 to 127", "[0, 1]"]),
        (np.full((10, 12, 3), -0.5), ["from -0.5 to -0.5", "[0, 1]"]),
        (torch.full((3, 10, 12), 2.0), ["from 2 to 2", "[0, 1]"]),
        (np.full((10, 12, 3), 7, dtype=np.int64), ["dtype int64", "uint8, uint16, bool or float"]),
        (np.zeros((0, 12, 3), dtype=np.uint8), ["no pixels", "(0, 12, 3)"]),
        (np.zeros((3, 10, 12), dtype=np.uint8), ["shape (3, 10, 12)", "(H, W, 3)"]),
        (np.zeros((1, 10, 12, 3), dtype=np.uint8), ["shape (1, 10, 12, 3)", "(H, W, 3)"]),
        (np.zeros(12, dtype=np.uint8), ["shape (12,)", "(H, W)"]),
        ([[1, 2], [3, 4]], ["is a list", "a picture, a path or an array"]),
        (None, ["is a NoneType", "a picture, a path or an array"]),
        ("/nowhere/target.png", ["/nowhere/target.png", "does not exist"]),
    ],
)
@pytest.mark.parametrize("key", ["reference", "target"])
def test_other_pictures_are_refused_with_what_was_expected(key: str, picture: Any, texts: list[str]) -> None:
    refused("pair 'cup'", key, *texts, **{key: picture, "mask": None})


@pytest.mark.parametrize("kind", ["PIL", "path", "uint8", "float", "tensor", "bfloat16", "rgba"])
def test_pictures_of_every_kind_become_the_same_rgb(kind: str, tmp_path: Path) -> None:
    values = TARGET // 255 * 255  # black and white, exact in bfloat16
    values[::2] = 255
    Image.fromarray(values).save(tmp_path / "target.png")
    tensor = torch.tensor(values).permute(2, 0, 1) / 255
    given = {
        "PIL": Image.fromarray(values),
        "path": tmp_path / "target.png",
        "uint8": values,
        "float": values / 255.0,
        "tensor": tensor.requires_grad_(),
        "bfloat16": tensor.detach().bfloat16(),
        "rgba": np.dstack([values, np.full((10, 12), 255, dtype=np.uint8)]),
    }[kind]
    made = pair(target=given)
    assert made.target.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(made.target), values)


def test_floats_are_rounded_to_the_nearest_of_256_values() -> None:
    np.testing.assert_array_equal(np.asarray(pair(target=TARGET / 255.0).target), TARGET)
    np.testing.assert_array_equal(np.asarray(pair(target=torch.tensor(TARGET).permute(2, 0, 1) / 255).target), TARGET)


@pytest.mark.parametrize("kind", ["bool", "uint8", "float", "tensor", "channel", "PIL", "PIL 1", "RGB"])
def test_masks_of_every_kind_become_the_same_booleans(kind: str) -> None:
    given = {
        "bool": MASK,
        "uint8": MASK.astype(np.uint8) * 255,
        "float": MASK.astype(np.float32),
        "tensor": torch.tensor(MASK)[None],
        "channel": MASK[..., None],
        "PIL": Image.fromarray(MASK.astype(np.uint8) * 255),
        "PIL 1": Image.fromarray(MASK),
        "RGB": Image.fromarray(MASK.astype(np.uint8) * 255).convert("RGB"),
    }[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mask = pair(mask=given).mask
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, MASK)


def test_a_grey_mask_is_cut_at_half_with_a_warning() -> None:
    grey = np.full(MASK.shape, 0.3, dtype=np.float32)
    grey[MASK] = 0.7
    with pytest.warns(UserWarning, match=r"pair 'cup': mask is not black and white.*above 0.5.*20%"):
        mask = pair(mask=grey).mask
    np.testing.assert_array_equal(mask, MASK)
    level = np.where(MASK, 128, 127).astype(np.uint8)  # 127/255 < 0.5 < 128/255
    with pytest.warns(UserWarning, match="not black and white"):
        np.testing.assert_array_equal(pair(mask=level).mask, MASK)


def test_antialiased_edges_do_not_warn() -> None:
    soft = MASK.astype(np.float32)
    soft[2, 3:9] = 0.6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(pair(mask=soft).mask, MASK)


def test_the_hash_is_stable_and_changes_with_everything_that_matters(folder: Path) -> None:
    plain = dict(reference_mask=OBJECT, prompt="a cup", extra={"guidance_scale": 2.5})
    hashes = [pair(**plain).content_hash()]
    assert re.fullmatch("[0-9a-f]{12}", hashes[0])
    assert pair(**plain).content_hash() == hashes[0]
    assert ValidationPairs.from_folder(folder)[0].content_hash() == hashes[0]
    for key, array in (("reference", REFERENCE), ("target", TARGET), ("mask", MASK), ("reference_mask", OBJECT)):
        other = array.copy()
        other.flat[17] = ~other.flat[17] if other.dtype == bool else other.flat[17] ^ 1
        hashes.append(pair(**{**plain, key: other}).content_hash())
    for changes in (
        {"mask": None},
        {"reference_mask": None},
        {"prompt": "a mug"},
        {"prompt": None},
        {"extra": {}},
        {"extra": {"guidance_scale": 2.6}},
        {"extra": {"guidance_scale": "2.5"}},
        {"extra": {"strength": 2.5}},
    ):
        hashes.append(pair(**{**plain, **changes}).content_hash())
    assert len(set(hashes)) == len(hashes)


def test_the_hash_sees_pictures_and_arrays_among_the_extra_arguments() -> None:
    big = np.zeros(5000)
    other = big.copy()
    other[2500] = 1
    for make in (lambda a: a, torch.tensor, lambda a: Image.fromarray(a.reshape(50, 100).astype(np.uint8))):
        same, again, changed = (pair(extra={"control": make(a)}).content_hash() for a in (big, big.copy(), other))
        assert same == again
        assert same != changed


def test_the_hash_is_the_same_in_another_process() -> None:
    code = (
        "import numpy as np; from i2am_debug.pairs.pair import ValidationPair as P; "
        "r = np.arange(48, dtype=np.uint8).reshape(4, 4, 3); "
        "print(P(name='x', reference=r, target=r, prompt='p', extra={'b': [1], 'a': {'z': None}}).content_hash())"
    )
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    here = ValidationPair(name="y", reference=picture, target=picture, prompt="p", extra={"a": {"z": None}, "b": [1]})
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == here.content_hash()


def test_check_returns_the_hashes_and_refuses_none_and_duplicates() -> None:
    a, b = pair(name="a"), pair(name="b", prompt="x")
    assert ValidationPairs([a, lambda: b]).check() == [a.content_hash(), b.content_hash()]
    refused("0 validation pairs", "at least 1", make=ValidationPairs([]).check)
    refused("two validation pairs", "'a'", "name of its own", make=ValidationPairs([a, b, pair(name="a")]).check)


def test_other_things_than_pairs_are_refused_with_the_ways_to_make_them() -> None:
    refused("pair 1 is a dict", "from_folder", "from_dataset", make=lambda: ValidationPairs([pair(), {}]))


def test_pairs_are_a_sequence() -> None:
    made = []
    pairs = ValidationPairs([lambda i=i: made.append(i) or pair(name=f"p{i}") for i in range(5)])
    tail = pairs[1:4:2]
    assert isinstance(tail, ValidationPairs)
    assert made == []
    assert [p.name for p in tail] == ["p1", "p3"]
    assert pairs[-1].name == "p4"
    assert made == [1, 3, 4]
    with pytest.raises(IndexError):
        pairs[5]
    assert len(pairs) == len(list(pairs)) == 5


class Dataset:
    """As a `datasets.Dataset`: a length and rows by integer; remembers what was read."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.read = rows, []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.read.append(index)
        return self.rows[index]


@pytest.fixture
def dataset() -> Dataset:
    image, cloth = Image.fromarray(TARGET), Image.fromarray(REFERENCE)
    return Dataset([dict(image=image, cloth=cloth, hole=MASK, text=f"shirt {i}", id=i, other=1) for i in range(4)])


COLUMNS = dict(target="image", reference="cloth")


def test_a_dataset_is_read_row_by_row(dataset: Dataset) -> None:
    pairs = ValidationPairs.from_dataset(dataset, **COLUMNS, mask="hole", prompt="text", name="id", limit=3)
    assert len(pairs) == 3
    assert dataset.read == []
    second = pairs[1]
    assert dataset.read == [1]
    assert (second.name, second.prompt, dict(second.extra)) == ("1", "shirt 1", {})
    np.testing.assert_array_equal(np.asarray(second.target), TARGET)
    np.testing.assert_array_equal(np.asarray(second.reference), REFERENCE)
    np.testing.assert_array_equal(second.mask, MASK)
    assert len(set(pairs.check())) == 3


def test_a_dataset_without_names_numbers_its_rows(dataset: Dataset) -> None:
    pairs = ValidationPairs.from_dataset(dataset, **COLUMNS, limit=99)
    assert [p.name for p in pairs] == ["row_0000", "row_0001", "row_0002", "row_0003"]
    assert all(p.mask is None and p.prompt is None for p in pairs)


def test_a_pair_may_have_further_references(folder: Path, dataset: Dataset) -> None:
    write(folder, {**GOOD_ROW, FURTHER: ["refs/1.png", "target_1.png"]}, GOOD_ROW)
    first, second = ValidationPairs.from_folder(folder)
    expected = [REFERENCE + np.uint8(1), TARGET + np.uint8(1)]
    for found, array in zip(first.further_references, expected, strict=True):
        assert found.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(found), array)
    assert second.further_references == () and FURTHER not in first.extra
    for row, more in zip(dataset.rows, ([TARGET], [], None, (REFERENCE, TARGET)), strict=True):
        row["more"] = more
    pairs = ValidationPairs.from_dataset(dataset, **COLUMNS, further_references="more")
    assert [len(p.further_references) for p in pairs] == [1, 0, 0, 2]


def test_the_hash_sees_further_references_and_their_order() -> None:
    given = [(), (REFERENCE,), (TARGET,), (REFERENCE, TARGET), (TARGET, REFERENCE)]
    hashes = [pair(further_references=further).content_hash() for further in given]
    assert len(set(hashes)) == len(hashes) and hashes[0] == pair().content_hash()


@pytest.mark.parametrize("given", ["reference.png", REFERENCE, Image.fromarray(REFERENCE), 3])
def test_further_references_are_a_list(given: Any) -> None:
    refused("'cup'", "further_references", "list of pictures", further_references=given)


def test_a_bad_further_reference_is_named_by_its_number() -> None:
    refused("'cup'", "reference 2", "dtype int64", further_references=[REFERENCE, REFERENCE.astype(np.int64)])


@pytest.mark.parametrize("argument", ["target", "reference", "mask", "reference_mask", "prompt", "name"])
def test_a_missing_column_is_named_with_those_there_are(dataset: Dataset, argument: str) -> None:
    pairs = ValidationPairs.from_dataset(dataset, **{**COLUMNS, argument: "absent"})
    refused("row 0", "no column 'absent'", "cloth", "image", make=lambda: pairs[0])


def test_a_bad_row_of_a_dataset_is_named(dataset: Dataset) -> None:
    dataset.rows[2]["cloth"] = None
    pairs = ValidationPairs.from_dataset(dataset, **COLUMNS)
    refused("row_0002", "reference is a NoneType", make=pairs.check)


def test_pairs_need_no_torch() -> None:
    code = "import sys, i2am_debug.pairs.collection; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_mask_of_zeros_and_ones_in_eight_bits_says_what_to_do():
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 2:5] = 1
    with pytest.raises(InvalidPair, match="empty.*0 and 1 of 255: multiply it by 255"):
        ValidationPair(name="a", target=Image.new("RGB", (8, 8)), reference=Image.new("RGB", (8, 8)), mask=mask)


def test_a_portrait_stored_lying_down_stands_up(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    pair = ValidationPair(name="a", target=tmp_path / "a.jpg", reference=Image.new("RGB", (8, 8)))
    assert pair.target.size == (4, 8)
