"""Damaged files are refused in this package's words or read as what they say; and what is otherwise would be seen."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from stored_runs import evaluation

from benchmarks.unharmed import mutated_files, mutations, mutators, valid_files
from i2am_debug.errors import StoreError


def test_no_damaged_file_ends_in_somebody_elses_error() -> None:
    found = mutations.measure(long=False)
    assert not found.harm
    assert {row["file"] for row in found.rows} == set(mutated_files.KINDS)
    assert found.counted["inputs"] == mutations.SHORT
    assert all(row["refused"] for row in found.rows) and sum(row["accepted"] for row in found.rows) > 100


def not_ours(folder: Path, file: Path) -> None:
    raise KeyError("figures")


def of_python(folder: Path, file: Path) -> None:
    int("x")


def without_a_name(folder: Path, file: Path) -> None:
    raise StoreError("it can't be read")


def ours(folder: Path, file: Path) -> None:
    raise StoreError(f"{file} can't be read")


def otherwise(folder: Path, file: Path) -> None:
    row = json.loads(json.dumps(evaluation().to_json()))
    row["figures"]["loss"][3] *= 1.01
    mutated_files.says_the_same(evaluation(), row)


def endless(folder: Path, file: Path) -> None:
    while True:
        try:
            np.ones(10)
        except Exception as error:  # may not hide that it takes too long
            raise StoreError(f"{file}") from error


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (not_ours, "foreign"),
        (of_python, "foreign"),
        (without_a_name, "unnamed"),
        (ours, "refused"),
        (otherwise, "contradicted"),
        (endless, "too slow"),
        (lambda folder, file: None, "accepted"),
    ],
)
def test_every_end_is_told_apart(read: Any, outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutations, "SECONDS", 0.2)
    assert mutations._outcome(read, tmp_path, tmp_path / "a.safetensors")[0] == outcome


JSON = json.dumps(evaluation().to_json()).encode()
ARRAYS = save({"0/r2g": np.ones((4, 4), np.float32)}, {"evaluation": JSON.decode()})


@pytest.mark.parametrize(
    ("mutate", "data"),
    [
        (mutators.of_bytes, ARRAYS),
        (mutators.of_json, JSON),
        (mutators.of_json_lines, JSON + b"\n" + JSON),
        (mutators.of_toml, valid_files.RULES.encode()),
        (mutators.of_safetensors, ARRAYS),
        (mutators.of_picture, b"\x89PNG\r\n\x1a\n" + bytes(60)),
    ],
)
def test_the_same_seed_does_the_same_damage_and_most_do_some(mutate: mutators.Mutate, data: bytes) -> None:
    once, again = ([mutate(data, Random(seed)) for seed in range(100)] for _ in range(2))
    assert once == again
    assert sum(one != data for one in once) > 90
    assert len(set(once)) > 40


def test_most_damage_to_a_header_leaves_it_a_header() -> None:
    """Else only the library that reads safetensors would be tried."""
    whole = 0
    for seed in range(200):
        damaged = mutators.of_safetensors(ARRAYS, Random(seed))
        length = struct.unpack("<Q", damaged[:8])[0]
        whole += 8 + length + 64 == len(damaged)
    assert whole > 120
