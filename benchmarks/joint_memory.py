"""How much looking at one joint attention product grows the process.

`python -m benchmarks.joint_memory --json F`: 4096 generated and 4096 reference tokens beside 512 of text, 24 heads of 128
channels, all looked at. Each way runs in a process of its own, because a process's peak never goes down; what counts is the
difference of the peaks.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

TEXT, GENERATED, REFERENCE, HEADS, CHANNELS = 512, (64, 64), (64, 64), 24, 128
LIMIT_MIB = 64


def run(look: bool, dtype_name: str) -> dict[str, float]:
    """One forward of a joint attention module, looked at or not; peak memory in MiB and CPU seconds."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    from i2am_debug import trace
    from i2am_debug.families.family import About, Layout, Product, Reference

    class Attention(nn.Module):
        def forward(self, q: Any, k: Any, v: Any) -> Any:
            return F.scaled_dot_product_attention(q, k, v)

    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Attention()

        def forward(self, q: Any, k: Any, v: Any) -> Any:
            return self.attention(q, k, v)

    class Joint:
        name: ClassVar[str] = "joint"
        about: ClassVar[About] = About(models="this benchmark's")
        projections: ClassVar[bool] = False

        def refuses(self, pipeline: Any, denoiser: nn.Module) -> str | None:
            return None

        def layers(self, denoiser: nn.Module) -> dict[str, nn.Module]:
            return {"attention": denoiser.attention}

        def layout(self, product: Product) -> Layout:
            generated = GENERATED[0] * GENERATED[1]
            return Layout(
                generated=slice(TEXT, TEXT + generated),
                generated_grid=GENERATED,
                references={0: Reference(tokens=slice(TEXT + generated, None), grid=REFERENCE)},
                conditional=slice(0, 1),
                joint=True,
            )

    with trace(Denoiser(), family=Joint()):
        pass  # loads torch's compiler once, which is not what looking costs
    tokens = TEXT + GENERATED[0] * GENERATED[1] + REFERENCE[0] * REFERENCE[1]
    dtype = getattr(torch, dtype_name)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, tokens, CHANNELS, dtype=dtype) for _ in range(3))
    denoiser = Denoiser()
    with torch.no_grad():
        denoiser(q, k, v)  # what the model itself needs is not ours
        before, started = _peak(), time.process_time()
        if look:
            with trace(denoiser, family=Joint()) as t:
                denoiser(q, k, v)
            maps = t.maps()
            assert abs(float(maps.r2g.unified.sum()) - 1) < 1e-4
        else:
            denoiser(q, k, v)
    return {"growth_mib": _peak() - before, "cpu_seconds": time.process_time() - started}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.joint_memory", description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--one", choices=("look", "plain"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        print(json.dumps(run(args.one == "look", args.dtype)))
        return 0
    figures = {}
    for way in ("plain", "look"):
        command = [sys.executable, "-m", "benchmarks.joint_memory", "--dtype", args.dtype, "--one", way]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        figures[way] = json.loads(done.stdout.splitlines()[-1])
        print(way, figures[way], flush=True)
    growth = figures["look"]["growth_mib"] - figures["plain"]["growth_mib"]
    print(f"looking grows the process by {growth:.0f} MiB (at most {LIMIT_MIB})")
    if args.json is not None:
        args.json.write_text(json.dumps({**figures, "growth_mib": growth}, indent=1) + "\n", encoding="utf-8")
    return 0 if growth <= LIMIT_MIB else 1


if __name__ == "__main__":
    sys.exit(main())
