"""Damaged files and who reads them: refused in this package's words, or read as what they say; never slow, never large.

`python -m benchmarks.unharmed.mutations KIND SEED` shows what one input does.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from i2am_debug.errors import I2AMError

from .found import Found
from .mutated_files import KINDS, Contradiction
from .valid_files import make_folder

LONG, SHORT = 20_000, 270
"""Inputs over all kinds."""
SECONDS = 10.0
"""A call may take so long."""
MEBIBYTES = 1536
"""So much address space may be added to what the process has when all is imported."""
_COMMANDS_EVERY = 4  # the command line reads a part of the inputs: it takes longest
_ANSWER = 4 * SECONDS  # what does not come back to Python can't be interrupted from there


class Call(NamedTuple):
    """What one reader did with one input."""

    kind: str
    seed: int
    reader: str
    outcome: str
    """"accepted", "refused", "foreign", "contradicted", "unnamed", "too slow" or "died"."""
    told: str
    seconds: float


class _TooSlow(BaseException):
    """No `Exception`: nothing that is looked at may take it for one of its own."""


def measure(*, long: bool) -> Found:
    """Each kind of file, damaged in as many ways as there are seeds, by each of its readers."""
    calls: list[Call] = []
    peaks: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        todo = [(kind, seed) for kind in KINDS for seed in range(math.ceil((LONG if long else SHORT) / len(KINDS)))]
        while todo:
            ended = _in_a_process(todo, Path(folder), calls, peaks)
            if ended is None:
                break
            begun, how = ended
            calls.append(Call(*begun, "?", "died", how, _ANSWER))
            todo = todo[todo.index(begun) + 1 :]
    bad = [one for one in calls if one.outcome not in ("accepted", "refused")]
    rows = []
    for kind in KINDS:
        own = [one for one in calls if one.kind == kind]
        counts, slowest = Counter(one.outcome for one in own), max(own, key=lambda one: one.seconds)
        rows.append(
            {
                "file": kind,
                "inputs": len({one.seed for one in own}),
                "calls": len(own),
                "accepted": counts["accepted"],
                "refused": counts["refused"],
                "other ends": len([one for one in bad if one.kind == kind]),
                "slowest call, s": f"{slowest.seconds:.2f} ({slowest.reader})",
                "peak memory, MiB": peaks.get(kind, "?"),
            }
        )
    told = Counter((one.kind, one.reader, one.outcome, one.told) for one in bad)
    first = {(one.kind, one.reader, one.outcome, one.told): one.seed for one in reversed(bad)}
    return Found(
        rows=rows,
        harm=[f"{k[0]}, seed {first[k]}, {k[1]}: {k[2]}: {k[3]} ({n} times)" for k, n in told.items()],
        counted={"inputs": sum(row["inputs"] for row in rows), "calls": len(calls), "other ends": len(bad)},
    )


def _in_a_process(
    todo: list[tuple[str, int]], folder: Path, calls: list[Call], peaks: dict[str, int]
) -> tuple[tuple[str, int], str] | None:
    """Takes what a process of its own finds; what it was at when it ended too early, and how, or None.

    Raises:
        RuntimeError: it ended before it came to the first one: what is not damaged can't be read either.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    own = Path(tempfile.mkdtemp(dir=folder))
    process = context.Process(target=_work, args=(todo, own, theirs), daemon=True)
    process.start()
    theirs.close()
    begun: tuple[str, int] | None = None
    done = False
    try:
        while ours.poll(_ANSWER if begun else 10 * _ANSWER):  # it imports everything first
            what, said = ours.recv()
            if what == "begun":
                begun = said
            elif what == "calls":
                calls += said
            elif what == "peak":
                peaks[said[0]] = said[1]
            else:
                done = True
                break
    except EOFError:
        pass
    process.join(1)
    how = f"the process ended with {process.exitcode}" if process.exitcode is not None else "it did not come back"
    process.kill()
    process.join()
    if begun is None:
        raise RuntimeError(f"the valid files can't be read: run python -m {__name__} {todo[0][0]} {todo[0][1]}")
    return None if done else (begun, how)


def _work(todo: list[tuple[str, int]], folder: Path, pipe: Any) -> None:
    """In the process: reads everything, and says what it found."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the libraries under Pillow speak to it
    _prepare(folder)
    limit = _status("VmSize") * 1024 + MEBIBYTES * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number, (kind, seed) in enumerate(todo):
        if number == 0 or kind != todo[number - 1][0]:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        pipe.send(("begun", (kind, seed)))
        pipe.send(("calls", list(_calls(kind, seed, folder))))
        if number + 1 == len(todo) or kind != todo[number + 1][0]:
            pipe.send(("peak", (kind, _status("VmHWM") // 1024)))
    pipe.send(("done", None))


def _prepare(folder: Path) -> None:
    warnings.simplefilter("ignore")
    logging.basicConfig(handlers=[logging.NullHandler()])
    make_folder(folder)
    for kind in KINDS.values():  # everything is imported, and what is not damaged is read
        for file in _files(kind, folder):
            for read in kind.readers.values():
                read(folder, file)


def _status(key: str) -> int:
    """KiB of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{key}:")))


def _files(kind: Any, folder: Path) -> list[Path]:
    return sorted(folder.glob(kind.file))


def _calls(kind: str, seed: int, folder: Path) -> Iterator[Call]:
    """Damages one file, has it read by everybody, and puts it back."""
    files = _files(KINDS[kind], folder)
    file = files[seed % len(files)]
    whole = file.read_bytes()
    try:
        file.write_bytes(KINDS[kind].mutate(whole, Random(f"{kind}/{seed}")))
        for reader, read in KINDS[kind].readers.items():
            if not reader.startswith("$") or seed % _COMMANDS_EVERY == 0:
                started = time.perf_counter()
                outcome, told = _outcome(read, folder, file)
                yield Call(kind, seed, reader, outcome, told, time.perf_counter() - started)
    finally:
        file.write_bytes(whole)


def _outcome(read: Any, folder: Path, file: Path) -> tuple[str, str]:
    def too_slow(*_: Any) -> None:
        raise _TooSlow

    signal.signal(signal.SIGALRM, too_slow)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        read(folder, file)
        return "accepted", ""
    except _TooSlow:
        return "too slow", f"more than {SECONDS:.0f} s"
    except Contradiction as error:
        return "contradicted", str(error)[:300]
    except (Exception, SystemExit) as error:
        text = str(error)
        if not (isinstance(error, I2AMError) or (type(error) is ValueError and _raised_by_us(error))):
            return "foreign", f"{type(error).__name__}: {text[-300:]}"
        if not any(name in text for name in (file.name, folder.name, "pair '", "rule '")):
            return "unnamed", text[:300]
        return "refused", ""
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _raised_by_us(error: BaseException) -> bool:
    """Whether the last line that ran was one of this package's."""
    return "i2am_debug" in Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts


def _show(kind: str, seed: int) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        _prepare(folder)
        for call in _calls(kind, seed, folder):
            print(f"{call.reader}: {call.outcome} {call.told} ({call.seconds:.2f} s)")


if __name__ == "__main__":
    sys.path[:0] = ["tests", "tests/families"]
    _show(sys.argv[1], int(sys.argv[2]))
