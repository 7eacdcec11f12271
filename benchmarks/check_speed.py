"""How long `i2am-debug check` takes on a long run: `python -m benchmarks.check_speed`, a minute or two.

Writes a run of 1000 evaluations of 64 pairs and 100 figures (sixteen cross-attention layers have about so many), each a slight
change of the last, and calls the command as a person would, in a process of its own, several times: wall and CPU seconds.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from i2am_debug.figures.record import Evaluation
from i2am_debug.store.evaluation_file import write_evaluation
from i2am_debug.store.run_store import RunStore

LAYERS = 20
OF_A_LAYER = ("imacs_r", "imacs_r_hole", "energy_r_hole", "attention_information")
OTHERS = ("imacs_g", "imacs_g_centred", "imacs_r", "attention_information", "reference_gap", "reference_mass", "loss")


def write_run(folder: Path, evaluations: int, pairs: int) -> Path:
    """The run; returns the file of its baseline."""
    rng = np.random.default_rng(0)
    tags = [*OTHERS, *(f"layer/down_blocks.{i}.attn2/{what}" for i in range(LAYERS) for what in OF_A_LAYER)]
    tags += [f"other/{i}" for i in range(100 - len(tags))]
    levels = rng.uniform(0.2, 0.4, (len(tags), pairs))
    maps = {
        f"{i}/{name}/unified": rng.random((32, 32), dtype=np.float32) for i in range(pairs) for name in ("r2g", "g2r")
    }
    store = RunStore(folder)
    for number in range(evaluations):
        values = levels + rng.normal(0, 0.001, levels.shape)
        evaluation = Evaluation(
            global_step=100 * number,
            pairs=tuple(f"pair_{i:03d}" for i in range(pairs)),
            figures={tag: tuple(column) for tag, column in zip(tags, values.tolist(), strict=True)},
            errors={},
            layers=tuple(f"down_blocks.{i}.attn2" for i in range(LAYERS)),
            copying_layer="down_blocks.3.attn2",
            reference_lines={},
            fingerprint={"pairs": [f"{i:012x}" for i in range(pairs)], "seed": 0},
        )
        store.write(evaluation, maps if number in (0, evaluations - 1) else {}, {})
        if number == 0:
            write_evaluation(folder / "baseline.safetensors", evaluation, maps, {})
    return folder / "baseline.safetensors"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.check_speed", description=__doc__.splitlines()[0])
    parser.add_argument("--evaluations", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        baseline = write_run(Path(folder), args.evaluations, args.pairs)
        index = RunStore(folder).index.stat().st_size
        command = [sys.executable, "-m", "i2am_debug.cli", "check", folder, "--baseline", str(baseline)]
        for number in range(args.rounds):
            before, started = _cpu(), time.monotonic()
            done = subprocess.run(command, capture_output=True, text=True)
            print(
                f"round {number}: {time.monotonic() - started:.2f} s, {_cpu() - before:.2f} s of CPU, exit code "
                f"{done.returncode}, index {index / 1e6:.1f} MB: {done.stdout.splitlines()[0]}"
            )
    return 0


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main())
