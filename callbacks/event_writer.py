"""TensorBoard's event writer, used so that a write of ours that fails costs the script none of its own points.

A writer whose thread has met a full disk stays dead, and raises at whoever writes next (tensorboard 2.21); two writers at a
time in one folder make TensorBoard's loader lose points. So figures go through the script's own writer, a few kilobytes, only
where there is room for them, and a writer that dies of them all the same is given a new file; pictures go into a run of their
own.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

from i2am_debug.run.room import require_room

_FIGURES = 2**18  # bytes, more than the scalars and texts of an evaluation take


class SharedWriter:
    """The script's `SummaryWriter`, or one of our own where it has none."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self.folder = Path(writer.log_dir)

    @contextmanager
    def writing(self) -> Iterator[Any]:
        """The writer, for a few figures and words; they are on disk afterwards.

        Raises:
            NoRoom: there is no room even for them; nothing is written.
            OSError: the disk failed in between; the writer goes on in a new file.
        """
        require_room(self.folder, _FIGURES, leave_reserve=False)
        try:
            yield self._writer
            self._writer.flush()
        except Exception:
            self._go_on_in_a_new_file()
            raise

    def close(self) -> None:
        """Closes the writer's file."""
        self._writer.close()

    def _go_on_in_a_new_file(self) -> None:
        """Only if its thread is dead: TensorBoard reads the files of a run one after another, up to where each is whole."""
        try:
            self._writer.flush()
        except Exception:
            self._writer.file_writer = self._writer.all_writers = (
                None  # `SummaryWriter` then opens one at its next write
            )


class PictureWriter:
    """A run of its own for pictures, opened when the first is written.

    Args:
        folder: names the run's folder.
    """

    def __init__(self, folder: Callable[[], Path]) -> None:
        self._folder = folder
        self._writer: Any = None

    def write(self, tag: str, picture: Image.Image, global_step: int) -> None:
        """Adds one RGB picture; a disk that fails costs this file no more than what is torn."""
        from torch.utils.tensorboard import SummaryWriter

        summary = _summary(tag, picture)
        with self._a_new_file_after_a_failure():
            self._writer = self._writer or SummaryWriter(str(self._folder()))
            self._writer._get_file_writer().add_summary(summary, global_step)

    def flush(self) -> None:
        """Makes what was written visible."""
        if self._writer is not None:
            with self._a_new_file_after_a_failure():
                self._writer.flush()

    def close(self) -> None:
        """Closes the file, if there is one."""
        if self._writer is not None:
            self._writer.close()

    @contextmanager
    def _a_new_file_after_a_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            with suppress(Exception):
                self._writer.close()
            self._writer = None
            raise


def _summary(tag: str, picture: Image.Image) -> Any:
    """As JPEG, at full resolution of colours too, so that letters stay sharp: `add_image` makes a PNG, which takes 15 times as
    long and more than drawing."""
    from tensorboard.compat.proto import summary_pb2

    encoded = io.BytesIO()
    picture.save(encoded, format="JPEG", quality=92, subsampling=0)
    image = summary_pb2.Summary.Image(
        height=picture.height, width=picture.width, colorspace=3, encoded_image_string=encoded.getvalue()
    )
    return summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, image=image)])
