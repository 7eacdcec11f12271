"""Counts the operations of whatever runs: matrix products, convolutions and attention, by torch's own formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_ATTENTION_ON_CPU = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


class Operations(TorchDispatchMode):
    """A multiplication and an addition are two. Everything else, such as norms and softmax, is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in flop_registry:
            self.count += int(flop_registry[packet](*args, **kwargs, out_val=made))
        elif packet is _ATTENTION_ON_CPU:
            q, k, v = args[:3]  # (B, N, tokens, H)
            self.count += 2 * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * (q.shape[3] + v.shape[3])
        return made
