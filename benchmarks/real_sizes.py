"""What looking adds to models of real size, counted on the meta device: `python -m benchmarks.real_sizes --json F`.

One evaluation of a pair in the default way (teacher forcing, default plan): so many forwards, some of them looked at. Shapes
are those of the published models, weights there are none: operations are counted while the very code that looks runs on
tensors without numbers. Of the forwards the matrix products, convolutions and attention count (a multiplication and an
addition are two operations); of looking these and one for every number that any other kernel reads or makes, so that the share
is rather too large. The chosen heads are taken to lie in the layers where they cost most. Memory is by how much the peak of all
that is held is higher than without looking; and what is still held in the end, which goes to the CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import weakref
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.real_models import MODELS, RealModel, forwarded
from i2am_debug import CapturePlan, trace
from i2am_debug.capture.plan import HeadChoice, choose_heads
from i2am_debug.evaluation.noise_times import noise_times, times_of_a_gap

SHARE, MIB = 0.01, 256
_BLANK = 1 / 2  # of the pairs are tried with a blank reference too
_NO_FORMULA = ("addmv", "addbmm", "addr", "linear", "matmul")


class Counted(TorchDispatchMode):
    """Counts operations and bytes held."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.others = self.held = self.peak = 0
        self.by_kernel: Counter[str] = Counter()
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        read = self._tensors((args, kwargs))
        for one in read:
            self._hold(one.untyped_storage())  # weights and arguments, when they are first seen
        out = func(*args, **kwargs)
        made, packet = self._tensors(out), func._overloadpacket
        new = sum([self._hold(one.untyped_storage()) for one in made])
        name = packet.__name__
        if packet in flop_registry:
            self.products += flop_registry[packet](*args, **kwargs, out_val=out)
        elif name in ("mv", "dot"):
            self.products += 2 * args[0].numel()
        else:
            assert name not in _NO_FORMULA, f"no formula for the operations of aten.{name}"
            if (new or func._schema.is_mutable) and not name.startswith(("empty", "new_empty")):
                count = max((one.numel() for one in (*made, *read)), default=0)
                self.others += count
                self.by_kernel[name] += count
        return out

    def _tensors(self, of: Any) -> list[torch.Tensor]:
        return [one for one in tree_leaves(of) if isinstance(one, torch.Tensor) and one.device.type == "meta"]

    def _hold(self, storage: torch.UntypedStorage) -> int:
        """Notes a new storage until it is freed; whether it is one."""
        key = storage._cdata
        if key in self._known:
            return 0
        self._known.add(key)
        size = storage.nbytes()
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._release, key, size)
        return 1

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.held -= size


class FusedAttention(TorchFunctionMode):
    """Attention by the fused kernel that an accelerator would take, which the meta device takes apart otherwise."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        assert given.get("attn_mask") is None, "the fused kernel takes no mask"
        q, k, v = (given[name] for name in names[:3])
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=given.get("scale"))[0]


def counted(
    denoiser: nn.Module, model: RealModel, plan: CapturePlan, heads: HeadChoice | None = None, *, look: bool
) -> dict[str, int]:
    """Operations and bytes of as many forwards as there are noise times to look at."""
    times = noise_times(plan.sampler_steps or 10)
    arguments, counter = model.arguments(), Counted()
    # The meta device has no autocast that could be turned off.
    with torch.no_grad(), mock.patch("torch.autocast", lambda *_, **__: nullcontext()), FusedAttention(), counter:
        if not look:
            for time in times:
                denoiser(timestep=1000 * time, **arguments)
        else:
            with trace(denoiser, plan=plan, family=model.family, heads=heads) as t:
                for time in times:
                    denoiser(timestep=1000 * time, **arguments)
            assert t.images == 1, "nothing was seen"
    return {
        "products": counter.products,
        "others": counter.others,
        "peak": counter.peak,
        "held": counter.held,
        "largest": dict(counter.by_kernel.most_common(6)),
    }


def costliest_heads(denoiser: nn.Module, model: RealModel, plan: CapturePlan) -> tuple[HeadChoice | None, int, int]:
    """The choice of a pilot that finds most in the layers with most generated tokens; how many heads there are, and layers."""
    layers = model.family.layers(denoiser)
    tokens: dict[str, int] = {}

    def note(name: str, args: Any, kwargs: Any) -> None:
        tokens[name] = (args[0] if args else kwargs["hidden_states"]).shape[1]

    handles = [
        module.register_forward_pre_hook(lambda _, args, kwargs, name=name: note(name, args, kwargs), with_kwargs=True)
        for name, module in layers.items()
    ]
    with torch.no_grad(), FusedAttention():
        denoiser(timestep=1000.0, **model.arguments())
    for handle in handles:
        handle.remove()
    information = {name: [float(tokens[name])] * module.heads for name, module in layers.items()}
    return choose_heads(information, plan), sum(map(len, information.values())), len(layers)


def measured(model: RealModel, plan: CapturePlan, *, pilot: bool = False) -> dict[str, Any]:
    """`pilot`: also what the first evaluation of a run costs, which looks at all heads of the first pairs."""
    denoiser = forwarded(model.build())
    heads, of_all, layers = costliest_heads(denoiser, model, plan)
    plain = counted(denoiser, model, plan, look=False)
    times = noise_times(plan.sampler_steps or 10)
    forward = plain["products"] / len(times)
    forwards = len(times) + len(times_of_a_gap(times)) * (1 + _BLANK)
    found = {
        "source": model.source,
        "shows": model.shows,
        "parameters": sum(p.numel() for p in denoiser.parameters()),
        "layers": layers,
        "heads": of_all,
        "heads_looked_at": of_all if heads is None else sum(map(len, heads.values())),
        "forward_operations": forward,
        "forwards": forwards,
        "default": _beside(plain, counted(denoiser, model, plan, heads, look=True), forward * forwards),
    }
    if pilot:
        found["pilot"] = _beside(plain, counted(denoiser, model, plan, look=True), forward * forwards)
    own = found["default"]
    found["reached"] = {"share": own["share"] <= SHARE, "memory": own["more_at_the_peak"] <= MIB * 2**20}
    return found


def _beside(plain: Mapping[str, Any], looking: Mapping[str, Any], forwards: float) -> dict[str, Any]:
    products, others = (looking[name] - plain[name] for name in ("products", "others"))
    return {
        "products": products,
        "others": others,
        "share": (products + others) / forwards,
        "more_at_the_peak": looking["peak"] - plain["peak"],
        "held": looking["held"] - plain["held"],
        "largest": looking["largest"],
    }


def row(name: str, found: Mapping[str, Any]) -> str:
    """A line of the table in benchmarks/RESULTS.md."""
    own, pilot = found["default"], found.get("pilot")
    of_pilot = f" {pilot['share']:.1%} | {pilot['more_at_the_peak'] / 2**20:.0f} MiB |" if pilot else ""
    return (
        f"| {name}, {found['shows']} | {found['parameters'] / 1e9:.2f} G | {found['forward_operations'] / 1e12:.2f} T × "
        f"{found['forwards']:g} | {found['heads_looked_at']} of {found['heads']} | {own['share']:.2%} | "
        f"{own['more_at_the_peak'] / 2**20:.0f} MiB |{of_pilot}"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_sizes", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--only", metavar="TEXT", default="", help="models whose name contains it")
    parser.add_argument("--pilot", action="store_true", help="also a look at all heads, as at first; takes long")
    args = parser.parse_args(argv)
    found = {}
    for model in MODELS:
        if args.only.lower() in model.name.lower():
            found[model.name] = measured(model, CapturePlan(), pilot=args.pilot)
            print(row(model.name, found[model.name]), flush=True)
    if args.json is not None:
        versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
        args.json.write_text(json.dumps({**versions, "found": found}, indent=1) + "\n", encoding="utf-8")
    missed = [name for name, one in found.items() if not all(one["reached"].values())]
    print(
        f"at most {SHARE:.0%} and {MIB} MiB: " + (f"not reached by {', '.join(missed)}" if missed else "reached by all")
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
