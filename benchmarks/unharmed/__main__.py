"""`python -m benchmarks.unharmed [PART …] [--short] [--json F]`: a table a part; exits with 1 if anything was harmed."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from pathlib import Path

PARTS = ("identity", "faults", "kills", "ranks", "mutations", "growth", "settings")

sys.path[:0] = ["tests", "tests/families", "tests/capture"]  # where the training loops and tiny pipelines are


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unharmed", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--short", action="store_true", help="the form that the tests run")
    parser.add_argument("--json", type=Path, help="where to write all rows")
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    written, harmed = {}, False
    for name in args.parts or PARTS:
        started = time.monotonic()
        found = importlib.import_module(f"benchmarks.unharmed.{name}").measure(long=not args.short)
        print(f"\n## {name}\n\n{found.table()}\n")
        print("\n".join(f"{key}: {value}" for key, value in found.counted.items()))
        print("\n".join(f"HARM: {one}" for one in found.harm) or "no harm", f"({time.monotonic() - started:.0f} s)")
        written[name] = {"rows": found.rows, "harm": found.harm, "counted": found.counted}
        harmed = harmed or bool(found.harm)
        if args.json is not None:
            args.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return int(harmed)


if __name__ == "__main__":
    sys.exit(main())
