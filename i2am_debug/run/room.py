"""Whether a disk has room for what is about to be written, without taking what the training needs for itself."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from ..errors import NoRoom

_RESERVE, _MOST_RESERVED = 0.01, 2**30


def require_room(folder: str | Path, size: int, *, leave_reserve: bool = True) -> None:
    """Refuses to write `size` bytes into a folder that has no room for them.

    Free space alone does not know quotas, so the bytes are reserved for a moment where the system can.

    Args:
        leave_reserve: a hundredth of the disk, at most 1 GiB, is left to the training's own checkpoints.

    Raises:
        NoRoom: says how much there is.
        OSError: the folder can't be written to.
    """
    folder = Path(folder)
    existing = next(one for one in (folder, *folder.absolute().parents) if one.is_dir())
    total, _, free = shutil.disk_usage(existing)
    reserve = min(int(total * _RESERVE), _MOST_RESERVED) if leave_reserve else 0
    if free < size + reserve:
        kept = f" and {_mib(reserve)} are left to the training" if reserve else ""
        raise NoRoom(f"{existing} has {_mib(free)} free; {_mib(size)} are needed{kept}")
    if hasattr(os, "posix_fallocate") and size:
        with tempfile.TemporaryFile(dir=existing) as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise NoRoom(f"{existing} does not take {_mib(size)} more: {error}") from None


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
