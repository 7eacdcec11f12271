"""Runs a script on several processes: under PyTorch's launcher, or forked, which imports PyTorch once for all of them."""

from __future__ import annotations

import os
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path


def launched(processes: int, script: Path, *arguments: object) -> str:
    """What the script wrote to stderr. `accelerate launch --cpu` starts more than one process through MPI only; torchrun with
    gloo needs none."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return _ran(launcher, script, arguments, seconds=300)


def forked(processes: int, script: Path, *arguments: object, seconds: float = 300) -> str:
    """What the script wrote to stderr; each process has the variables that a launcher gives it."""
    return _ran([__file__, str(processes)], script, arguments, seconds)


def _ran(launcher: list[str], script: Path, arguments: tuple[object, ...], seconds: float) -> str:
    try:
        done = subprocess.run(
            [sys.executable, *launcher, str(script), *map(str, arguments)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        said = error.stderr or b""
        raise AssertionError(f"not done after {seconds} s; its last words:\n{said[-3000:]!r}") from None
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def _fork(processes: int, script: str) -> int:
    """0 when all of them ended well; when one did not, the others are stopped."""
    import torch.utils.tensorboard  # noqa: F401

    runpy.run_path(script)  # not as the main program: it only imports, which takes seconds

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]), WORLD_SIZE=str(processes))
    left = set()
    for rank in range(processes):
        child = os.fork()
        if not child:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(processes))
            runpy.run_path(script, run_name="__main__")
            os._exit(0)
        left.add(child)
    while left:
        child, status = os.wait()
        left.discard(child)
        if status:
            for other in left:
                os.kill(other, signal.SIGKILL)
            return 1
    return 0


if __name__ == "__main__":
    count = int(sys.argv[1])
    sys.argv[:2] = []  # as the script is to see them
    sys.exit(_fork(count, sys.argv[0]))
