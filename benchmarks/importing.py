"""What `import i2am_debug` costs a script: `python -m benchmarks.importing --json F`.

CPU time of the statement in fresh processes, and whether torch came with it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

SECONDS = 0.15
STATEMENTS = ("import i2am_debug", "import i2am_debug.cli")
_TIMED = """
import sys, time
started = time.process_time()
{statement}
print(time.process_time() - started, "torch" in sys.modules)
"""


def measured(statement: str, times: int) -> dict[str, Any]:
    """Seconds of each of so many processes, their median, and whether one of them loaded torch."""
    seconds, torch_came = [], False
    for _ in range(times):
        command = [sys.executable, "-c", _TIMED.format(statement=statement)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        took, torch = done.stdout.split()
        seconds.append(float(took))
        torch_came = torch_came or torch == "True"
    return {"seconds": seconds, "median": statistics.median(seconds), "torch": torch_came}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.importing", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--times", type=int, default=11, help="processes for each statement (default: 11)")
    args = parser.parse_args(argv)
    found = {statement: measured(statement, args.times) for statement in STATEMENTS}
    for statement, one in found.items():
        seconds = one["seconds"]
        told = "with" if one["torch"] else "without"
        print(f"{statement}: {one['median']:.3f} s ({min(seconds):.3f} to {max(seconds):.3f}), {told} torch")
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if all(one["median"] <= SECONDS and not one["torch"] for one in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
