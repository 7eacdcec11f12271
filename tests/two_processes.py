"""Runs a script on two processes, as a launcher would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_on_two(script: Path, *arguments: object) -> None:
    """`accelerate launch --cpu` starts more than one process through MPI only; torchrun with gloo needs none."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(script), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
