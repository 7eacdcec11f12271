"""Runs a script on several processes, as a launcher would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_on_several(processes: int, script: Path, *arguments: object, seconds: float = 300) -> str:
    """What the script wrote to stderr. `accelerate launch --cpu` starts more than one process through MPI only; torchrun with
    gloo needs none."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    try:
        done = subprocess.run(
            [*launch, str(script), *map(str, arguments)],
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
