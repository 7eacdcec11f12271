"""A run's own files under the logdir: found by the run's name, opened only where they lie inside. Knows no format.

Run names come from event files that others may have written, and a logdir may hold links; so every path is resolved, then
checked to be inside, then opened without following a link.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..store.files import PLUGIN_NAME
from .refusal import Refusal

# Not on every system: without them there are no links or pipes to be afraid of either.
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
_URI = re.compile(r"[A-Za-z][0-9A-Za-z.]*://")


@dataclass(frozen=True)
class RunFolder:
    """`<run>/plugins/i2am_debug` of one run, resolved and inside the logdir."""

    path: str
    roots: tuple[str, ...]

    def open(self, name: str) -> BinaryIO:
        """A plain file of it, unbuffered.

        Raises:
            Refusal: no such file, not a plain one, not readable, or it leads out of the logdir.
        """
        path = _inside(os.path.join(self.path, name), self.roots, name)
        try:
            handle = os.open(path, _FLAGS)  # O_NONBLOCK: opening a pipe would wait for a writer
        except OSError as error:
            raise _refusal(error, name) from None
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise Refusal(404, f"{name} is not a plain file.")
        return os.fdopen(handle, "rb", buffering=0)

    def has(self, name: str) -> bool:
        """Whether there is something of this name, be it readable or not."""
        try:
            os.lstat(os.path.join(self.path, name))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True  # `open` will say what is wrong
        return True


class RunFolders:
    """Where the runs that TensorBoard shows have their folders."""

    def __init__(self, context: Any) -> None:
        """`context`: TensorBoard's; without a multiplexer under the data server, without a logdir under --logdir_spec."""
        self._logdir: str | None = None
        self._multiplexer: Any = None
        self.roots: tuple[str, ...] = ()
        spec = getattr(context.flags, "logdir_spec", None) or ""
        if context.logdir:
            if not _URI.match(context.logdir):
                self._logdir = os.path.realpath(os.path.expanduser(context.logdir))
                self.roots = (self._logdir,)
        elif context.multiplexer is not None:
            self._multiplexer = context.multiplexer
            self.roots = _roots(spec)

    @property
    def local(self) -> bool:
        """Whether there are folders at all: not with gs:// and its like, nor with a remote data provider."""
        return bool(self.roots)

    def folder(self, run: str) -> RunFolder:
        """The folder of a run that the data provider lists.

        Raises:
            Refusal: no local logdir, the run is gone, or its folder leads out of the logdir.
        """
        if not self.local:
            raise Refusal(404, "This TensorBoard reads no local logdir, and the tab reads local files only.")
        if self._logdir is not None:
            own = os.path.join(self._logdir, run)
        else:
            own = self._multiplexer.RunPaths().get(run)
            if own is None or _URI.match(own):
                raise Refusal(404, "This run has no local folder.")
        if not os.path.isdir(own):
            raise Refusal(404, "This run's folder is gone; was it deleted?")
        return RunFolder(
            _inside(os.path.join(own, "plugins", PLUGIN_NAME), self.roots, "This run's folder"), self.roots
        )


def _roots(spec: str) -> tuple[str, ...]:
    """The folders that `--logdir_spec name:path,path,…` names, as TensorBoard reads it."""
    found = []
    for part in filter(None, spec.split(",")):
        if _URI.match(part):
            continue
        named = ":" in part and not part.startswith("/") and not os.path.splitdrive(part)[0]
        path = part.partition(":")[2] if named else part
        if not _URI.match(path):
            found.append(os.path.realpath(os.path.expanduser(path)))
    return tuple(found)


def _inside(path: str, roots: tuple[str, ...], what: str) -> str:
    """The path without links, if it is inside one of the roots."""
    try:
        real = os.path.realpath(path)
    except (OSError, ValueError):  # a loop of links, a NUL
        raise Refusal(404, f"{what} can't be found.") from None
    for root in roots:
        if Path(real).is_relative_to(root):
            return real
    raise Refusal(403, f"{what} leads out of the logdir, where the tab does not read.")


def _refusal(error: OSError, name: str) -> Refusal:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Refusal(404, f"There is no {name} in this run.")
    if isinstance(error, PermissionError):
        return Refusal(403, f"TensorBoard may not read {name}.")
    return Refusal(404, f"{name} can't be opened ({errno.errorcode.get(error.errno or 0, 'unknown error')}).")
