"""The demo over many seeds, sabotaged and healthy: does the alert come when it must, and only then?

`python -m benchmarks.demo_seeds --json F` runs seeds 0 to 9 in both modes, about 15 minutes on two cores. Exits with 1 when
an alert came before its sabotage, later than two evaluations after it, or without any.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from i2am_debug.demo.demo_model import MODELS
from i2am_debug.demo.finetune import run_demo


def one(model: str, seed: int, sabotage: str, logdir: Path) -> dict[str, Any]:
    """Runs the demo once; what it found, and whether that is what must be."""
    started = time.monotonic()
    result = run_demo(logdir, model=model, sabotage=sabotage, seed=seed, progress=False)
    figures = result.to_json()
    steps = [e.global_step for e in result.evaluations]
    alerts = [a.global_step for a in result.alerts]
    if result.sabotage_step is None:
        right = not alerts
    else:
        in_time = [s for s in steps if s > result.sabotage_step][:2]
        right = bool(alerts) and alerts[0] in in_time
    return {"seed": seed, "sabotage": sabotage, "right": right, "seconds": time.monotonic() - started, **figures}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_seeds", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="inpainting", help="default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)), help="default: 0 to 9")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    args = parser.parse_args(argv)
    logging.getLogger("i2am_debug").setLevel(logging.CRITICAL + 1)
    runs = []
    with tempfile.TemporaryDirectory() as logdir:
        for seed in args.seeds:
            for sabotage in ("shuffle", "none"):
                run = one(args.model, seed, sabotage, Path(logdir))
                runs.append(run)
                alerted = [a["global_step"] for a in run["alerts"]]
                figures = sorted(
                    {d["figure"].rsplit("/", 1)[-1] for a in run["alerts"] for d in a["findings"] if d["fired"]}
                )
                print(
                    f"seed {seed} {sabotage:>7}: {'right' if run['right'] else 'WRONG'}, alerts at {alerted} {figures}, "
                    f"sabotage at {run['sabotage_step']}, {run['seconds']:.0f} s",
                    flush=True,
                )
    if args.json is not None:
        args.json.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    wrong = sum(not run["right"] for run in runs)
    print(f"{len(runs) - wrong} of {len(runs)} right; the slowest took {max(r['seconds'] for r in runs):.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
