"""What looking costs one joint attention product: `python -m benchmarks.joint --json F`.

4096 generated and 4096 reference tokens beside 512 of text, 24 heads of 128 channels, all looked at: both directions, rows,
reference mass and the maps read out. Looked at and not are run in turn in one process of one thread; a ratio is the CPU time
that looking adds over that of the product itself. Memory is the growth of a fresh process's peak. `--device cuda`: the same by
the clock on the wall.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.measuring import clock, grown_mib, paired_ratios

TEXT, GENERATED, REFERENCE, HEADS, CHANNELS = 512, (64, 64), (64, 64), 24, 128
RATIO, MIB = 0.6, 64


def ways(dtype_name: str, device: str = "cpu") -> tuple[Callable[[], Any], Callable[[], Any]]:
    """One forward of a joint attention module: not looked at, and looked at."""
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
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokens = TEXT + GENERATED[0] * GENERATED[1] + REFERENCE[0] * REFERENCE[1]
    q, k, v = (torch.randn(1, HEADS, tokens, CHANNELS, dtype=getattr(torch, dtype_name)).to(device) for _ in range(3))
    denoiser = Denoiser()

    def plain() -> None:
        with torch.no_grad():
            denoiser(q, k, v)

    def look() -> None:
        with trace(denoiser, family=Joint()) as t:
            plain()
        assert abs(float(t.maps().r2g.unified.sum()) - 1) < 1e-4
        assert not t.notes, t.notes

    return plain, look


def grown(dtype_name: str, device: str) -> float:
    """MiB by which looking raises a process's peak over the module's own; run in a fresh one."""
    return grown_mib(*ways(dtype_name, device), device)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.joint", description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of both ways (default: 3)")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.memory:
        print(json.dumps(grown(args.dtype, args.device)))
        return 0
    found: dict[str, Any] = paired_ratios(*ways(args.dtype, args.device), args.rounds, clock(args.device))
    added = [ratio - 1 for ratio in found["ratios"]]
    same = ["--dtype", args.dtype, "--device", args.device]
    command = [sys.executable, "-m", "benchmarks.joint", *same, "--memory"]
    found["mib"] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(
        f"looking adds {np.median(added):.2f} x the product's own time ({min(added):.2f} to {max(added):.2f}; at most "
        f"{RATIO}) and {found['mib']:.0f} MiB (at most {MIB})"
    )
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if np.median(added) <= RATIO and found["mib"] <= MIB else 1


if __name__ == "__main__":
    sys.exit(main())
