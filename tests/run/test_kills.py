"""`kill -9` at random moments, in short; `python -m benchmarks.unharmed kills` does it 200 times."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_run_that_is_killed_and_goes_on_is_as_one_that_was_not():
    # In a process of its own: it forks, which one with threads must not.
    command = [sys.executable, "-m", "benchmarks.unharmed", "kills", "--short"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "kills: 4" in done.stdout
