"""Disks that fail for real: a small one that can be filled, and a process that root's rights don't help."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_VERSION, _READ_SEARCH, _OVERRIDE = 0x20080522, 1 << 2, 1 << 1


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path | None]:
    """A tmpfs of this size at `folder`, or None where none may be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Takes the last byte; returns the file to remove again."""
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        for size in (2**16, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return ballast


@contextmanager
def rights_of_an_ordinary_user() -> Iterator[bool]:
    """Takes from root, in this thread and those it starts, the right to write where nobody may; yields whether it could."""
    libc, header = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(_VERSION, 0)
    before, reduced = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    if os.geteuid() != 0:
        yield True
        return
    if libc.capget(header, before) != 0:
        yield False
        return
    reduced[:] = before[:]
    reduced[0] &= ~(_OVERRIDE | _READ_SEARCH)
    try:
        yield libc.capset(header, reduced) == 0
    finally:
        libc.capset(header, before)
