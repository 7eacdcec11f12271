"""`python -m benchmarks.evidence [PART …] [--short]`: measures the parts named, or all, and writes docs/evidence.md anew."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

from .section import Section
from .sizes import LONG, SHORT

PARTS = (
    "inpainting",
    "detection",
    "super_resolution",
    "editing",
    "faithfulness",
    "sanity",
    "ambiguity",
    "trust",
    "sampling",
    "pairs",
)
"""In the order of the document."""
DOCUMENT = Path(__file__).parents[2] / "docs" / "evidence.md"
HEAD = """# Evidence

Whether the maps tell the truth, measured on small models that really learned and whose correspondence is known. Every number is
made from scratch by the command below its section, `make evidence` makes all; intervals are of 95 %. Toy models: signs that it
works, and where it does not.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--short", action="store_true", help="the form that the tests run; is printed, not kept")
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs/alerts"),
        help="fine-tunes of benchmarks.alerts; from_scratch/ in it: trainings of the part inpainting (default: runs/alerts)",
    )
    args = parser.parse_args(argv)
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    for name in args.parts or PARTS:
        started = time.monotonic()
        section = importlib.import_module(f"benchmarks.evidence.{name}").measure(
            SHORT if args.short else LONG, args.runs
        )
        print(f"{section.markdown()}\n\n({time.monotonic() - started:.0f} s)\n", flush=True)
        if not args.short:
            section.keep(name)
    if not args.short:
        DOCUMENT.write_text(document(), encoding="utf-8")
        print(DOCUMENT)
    return 0


def document() -> str:
    """The page, of what the parts have found so far."""
    found = {name: Section.kept(name) for name in PARTS}
    missing = [name for name, section in found.items() if section is None]
    sections = [section.markdown() for section in found.values() if section is not None]
    note = [f"Not measured yet: {', '.join(missing)}."] if missing else []
    return "\n\n".join([HEAD.rstrip(), *sections, *note]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
