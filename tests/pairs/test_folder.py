"""What a `metadata.jsonl` may say: nothing that leaves its folder, nothing that later ends in somebody else's error."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from i2am_debug.errors import InvalidPair
from i2am_debug.pairs.collection import ValidationPairs
from i2am_debug.pairs.pair import ValidationPair

ROW = {"file_name": "target.png", "reference_file_name": "reference.png"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "val"
    inside.mkdir()
    for name in ("val/target.png", "val/reference.png", "secret.png"):
        Image.new("RGB", (8, 8), (200, 10, 60)).save(tmp_path / name)
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    (inside / "own_link.png").symlink_to("target.png")
    (inside / "loop.png").symlink_to("loop.png")
    (inside / "elsewhere").symlink_to(tmp_path)
    os.mkfifo(inside / "pipe.png")
    return inside


def read(folder: Path, *rows: Any, **options: Any) -> list[ValidationPair]:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return list(ValidationPairs.from_folder(folder, **options))


@pytest.mark.parametrize(
    "column", ["file_name", "reference_file_name", "mask_file_name", "further_reference_file_names"]
)
@pytest.mark.parametrize("way", ["../secret.png", "{root}/secret.png", "link.png", "elsewhere/secret.png"])
def test_a_path_that_leaves_the_folder_is_refused_unless_allowed(folder: Path, column: str, way: str) -> None:
    given = way.format(root=folder.parent)
    row = {**ROW, column: [given] if column.startswith("further") else given}
    with pytest.raises(InvalidPair) as caught:
        read(folder, row)
    for text in ("line 1", column, given, "leads out of the folder", "allow_outside=True", "--allow-outside"):
        assert text in str(caught.value)
    if column != "mask_file_name":  # which would be full
        assert len(read(folder, row, allow_outside=True)) == 1


def test_paths_that_come_back_stay_allowed(folder: Path) -> None:
    for name in ("own_link.png", "../val/target.png", f"{folder}/target.png", "elsewhere/val/target.png"):
        assert len(read(folder, {**ROW, "file_name": name})) == 1


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({**ROW, "file_name": "a" * 5000}, ["file_name", "too long"]),
        ({**ROW, "file_name": "target\0.png"}, ["file_name", "null"]),
        ({**ROW, "file_name": "pipe.png"}, ["pipe.png", "no plain file"]),
        ({**ROW, "file_name": "loop.png"}, ["loop.png"]),
        ({**ROW, "file_name": "."}, ["no plain file"]),
        ({**ROW, "file_name": ""}, ["no plain file"]),
        ({**ROW, "file_name": True}, ["file_name is True"]),
        ({**ROW, "file_name": {"a": 1}}, ["file_name is {'a': 1}"]),
        ({**ROW, "name": ["x"]}, ["name of the pair is ['x']", "expected a text"]),
        ({**ROW, "name": False}, ["name of the pair is False"]),
        ({**ROW, "name": "two\nlines"}, ["one line", "'two\\nlines'"]),
        ({**ROW, "name": "\x1b[2J"}, ["control characters"]),
        ({**ROW, "name": "n" * 1001}, ["1001 characters", "at most 1000"]),
        ({**ROW, "name": "half \ud800"}, ["lone surrogate"]),
        ({**ROW, "extra": ["half \ud800"]}, ["lone surrogate"]),
        ({**ROW, "prompt": 5}, ["prompt is 5", "expected a text"]),
        ('{"file_name": "target.png", "file_name": "reference.png"}', ["not JSON", "'file_name' stands there twice"]),
        ('{"guidance_scale": NaN}', ["NaN is no number of JSON"]),
        ('{"guidance_scale": -Infinity}', ["-Infinity is no number of JSON"]),
        (json.dumps(ROW)[:-1] + ', "guidance_scale": 1e999}', ["beyond what a float holds"]),
        (json.dumps(ROW)[:-1] + ', "x": ' + "[" * 17 + "]" * 17 + "}", ["nested too deeply", "16 levels"]),
        ('{"x": ' + "[" * 10**5 + "]" * 10**5 + "}", ["nested too deeply"]),
        ('{"x": ' + "9" * 5000 + "}", ["not JSON", "digits"]),
        ('{"x": "' + "x" * 2**20 + '"}', ["characters, more than the 1048576"]),
    ],
    ids=range(24),
)
def test_what_a_line_may_not_say(folder: Path, row: Any, texts: list[str]) -> None:
    with pytest.raises(InvalidPair) as caught:
        read(folder, row)
    assert all(text in str(caught.value) for text in (f"{folder / 'metadata.jsonl'}, line 1", *texts))
    assert len(str(caught.value)) < 800


def test_what_a_line_may_say(folder: Path) -> None:
    rows = [{**ROW, "name": name} for name in (7, "a/b", "Bildschirmfoto um 1.00\u202fPM", "x" * 1000, "", None)]
    names = [pair.name for pair in read(folder, *rows)]
    assert names == ["7", "a/b", "Bildschirmfoto um 1.00\u202fPM", "x" * 1000, "target", "target"]
    nested = {**ROW, "prompt": None, "extra": {"a": [[1, 2.5, "x", None, True]]}}
    assert dict(read(folder, nested)[0].extra) == {"extra": {"a": [[1, 2.5, "x", None, True]]}}


def test_a_listing_that_can_not_be_read_is_named(folder: Path) -> None:
    for given, text in ((folder / ("a" * 5000), "too long"), (folder / "n\0", "null"), (folder / "target.png", "no ")):
        with pytest.raises(InvalidPair, match=text):
            ValidationPairs.from_folder(given)
    os.mkfifo(folder / "metadata.jsonl")
    with pytest.raises(InvalidPair, match=r"no .*metadata\.jsonl; expected one JSON object a line"):
        ValidationPairs.from_folder(folder)


def test_a_listing_without_end_is_not_read(folder: Path) -> None:
    with open(folder / "metadata.jsonl", "wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(InvalidPair, match="67108865 bytes, more than the 67108864"):
        ValidationPairs.from_folder(folder)


@pytest.mark.parametrize("name", ["", None, 5, "two\nlines", "n" * 1001, "\x00", "\ud800"])
def test_a_name_that_names_nothing_is_refused_wherever_the_pair_comes_from(name: Any) -> None:
    with pytest.raises(InvalidPair, match="^the name of a pair "):
        ValidationPair(name=name, reference=np.zeros((8, 8, 3), np.uint8), target=np.zeros((8, 8, 3), np.uint8))
