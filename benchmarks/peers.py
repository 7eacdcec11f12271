"""What other tools cost on the same model: `python -m benchmarks.peers --json F`.

The UNet of `benchmarks.capture`, 4 sampler steps, every way in turn in one process and one thread: unhooked; our full
plan; attention-map-diffusers 1.0.0, all steps, with its aggregation; daam 0.2.0; and the paper authors' way, restated: every
product's softmax in each direction, kept until the end, then averaged. The peers are installed into an environment of their own
under `build/peers`, daam without its pins (diffusers 0.21); pip must reach a package index. A ratio is of the CPU time of one
round; memory is each way's growth of a fresh process's peak.

What they give differs: attention-map-diffusers and daam one direction, without scores; the authors' way both. daam is told the
sizes of this model, which it takes to be Stable Diffusion's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.capture import SIZES, TOKENS, Sampling
from benchmarks.measuring import grown_mib

SIDE = SIZES["small"].side  # of the latents

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / "build" / "peers"
STEPS = 4
PINNED = ("attention-map-diffusers==1.0.0", "daam==0.2.0")
DAAM_IMPORTS = ("spacy", "nltk", "inflect")
AT_MOST = 0.2
"""What looking may add, of what attention-map-diffusers adds with its aggregation."""


# -- the ways ----------------------------------------------------------------------------------------------------------


def full_plan(sampling: Sampling) -> None:
    from i2am_debug import CapturePlan

    sampling.look(CapturePlan.full())


def attention_map_diffusers(sampling: Sampling) -> None:
    """Its fast mode keeps queries and keys of all steps, and forms the maps afterwards; then the mean over layers and steps."""
    import torch
    from attention_map_diffusers import AttentionCapture

    unet, scheduler = sampling.pipeline.unet, sampling.pipeline.scheduler
    pipeline = SimpleNamespace(unet=unet, scheduler=scheduler, components={})
    with AttentionCapture(pipeline, relations="image->text", timesteps="all", heads="all") as capture:
        sampling.plain()
    found = [record.data for record in capture.compute().records]
    _mean_on_one_grid([torch.as_tensor(maps)[-1] for maps in found])


def daam(sampling: Sampling) -> None:
    """Its global heat map of every token."""
    from daam import trace

    words = [str(i) for i in range(TOKENS - 2)]
    pipeline = SimpleNamespace(
        unet=sampling.pipeline.unet,
        vae_scale_factor=8,
        image_processor=None,
        check_inputs=None,
        tokenizer=SimpleNamespace(tokenize=lambda prompt: words),
    )
    hooks = trace(pipeline)
    hooks.latent_hw = SIDE**2
    for hook in hooks.module:
        if hasattr(hook, "context_size"):
            hook.context_size, hook.latent_hw = TOKENS, SIDE**2
    with hooks:
        sampling.plain()
        hooks.compute_global_heat_map(prompt=" ".join(words))


def authors_way(sampling: Sampling) -> None:
    """Hooks on the projections; softmax over either side of each conditional product, all kept, and averaged at the end."""
    import torch

    kept: list[tuple[Any, Any]] = []
    handles = []
    for module in sampling.pipeline.unet.modules():
        if module.__class__.__name__ != "BasicTransformerBlock":
            continue
        attention, seen = module.attn2, {}

        def keep(name: str, heads: int, seen: dict[str, Any] = seen) -> Callable[..., None]:
            def hook(_module: Any, _inputs: Any, output: Any) -> None:
                seen[name] = output[1:].unflatten(-1, (heads, -1)).transpose(1, 2)
                if len(seen) == 2:
                    logits = seen["q"] @ seen.pop("k").transpose(-1, -2) * seen.pop("q").shape[-1] ** -0.5
                    kept.append((logits.softmax(-2), logits.softmax(-1)))

            return hook

        handles += [
            attention.to_q.register_forward_hook(keep("q", attention.heads)),
            attention.to_k.register_forward_hook(keep("k", attention.heads)),
        ]
    try:
        sampling.plain()
    finally:
        for handle in handles:
            handle.remove()
    for side in zip(*kept, strict=True):
        _mean_on_one_grid([torch.as_tensor(maps)[0] for maps in side])


def _mean_on_one_grid(maps: list[Any]) -> Any:
    """Mean over products and heads of (N, G, R) maps, brought to the finest grid: (R, h, w)."""
    import torch.nn.functional as F

    side = max(int(m.shape[1] ** 0.5) for m in maps)
    total: Any = 0
    for m in maps:
        own = int(m.shape[1] ** 0.5)
        total = total + F.interpolate(m.mean(0).T.reshape(1, -1, own, own), size=(side, side), mode="bilinear")[0]
    return total / len(maps)


WAYS: dict[str, Callable[[Sampling], None]] = {
    "unhooked": lambda sampling: sampling.plain(),
    "i2am-debug, full plan": full_plan,
    "attention-map-diffusers": attention_map_diffusers,
    "daam": daam,
    "the authors' way": authors_way,
}


# -- measuring, in the environment of the peers -----------------------------------------------------------------------


def seconds(rounds: int) -> dict[str, list[float]]:
    """Of CPU time, of each way in each round; every round begins with another way."""
    sampling, names = Sampling(STEPS), list(WAYS)
    found: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        WAYS[name](sampling)  # what is done once is not counted
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = time.process_time()
            WAYS[name](sampling)
            found[name].append(time.process_time() - started)
    return found


def grown(name: str) -> float:
    """MiB by which a way raises this process's peak over the model's own."""
    sampling = Sampling(STEPS)
    return grown_mib(sampling.plain, lambda: WAYS[name](sampling))


def environment() -> Path:
    """The interpreter that has the peers, and sees what this one has; made if there is none."""
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / "made").is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", ENVIRONMENT], check=True)
        (found,) = ENVIRONMENT.glob("lib/python*/site-packages")
        own = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
        (found / "base.pth").write_text("\n".join([*own, str(ROOT)]) + "\n")
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", *PINNED], check=True)
        subprocess.run([*pip, *DAAM_IMPORTS], check=True)
        (ENVIRONMENT / "made").touch()
    return python


def _there(*arguments: str) -> Any:
    command = [str(environment()), "-m", "benchmarks.peers", *arguments]
    return json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each way (default: 5)")
    parser.add_argument("--seconds", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.seconds or args.memory_of:
        print(json.dumps(seconds(args.rounds) if args.seconds else grown(args.memory_of)))
        return 0
    taken = _there("--seconds", "--rounds", str(args.rounds))
    found: dict[str, Any] = {}
    for name, own in taken.items():
        ratios = [a / b for a, b in zip(own, taken["unhooked"], strict=True)]
        found[name] = {"seconds": own, "ratios": ratios, "mib": _there("--memory-of", name)}
        print(
            f"{name}: {np.median(ratios):.3f} x ({min(ratios):.3f} to {max(ratios):.3f}), {found[name]['mib']:.1f} MiB"
        )
    added = {name: np.median(one["ratios"]) - 1 for name, one in found.items()}
    share = added["i2am-debug, full plan"] / added["attention-map-diffusers"]
    print(f"what looking adds, of what attention-map-diffusers adds: {share:.2f} (at most {AT_MOST})")
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if share <= AT_MOST else 1


if __name__ == "__main__":
    sys.exit(main())
