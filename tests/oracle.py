"""The slow and obvious truth about a model's attention: every product recorded, softmax materialised in float64.

Shares nothing with what it checks: torch's attention function is replaced by one that writes down what it is given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Recorded:
    """One product: q (B, N, Q, H), k (B, N, K, H) with as many heads as queries, float64; the output as it was."""

    q: torch.Tensor
    k: torch.Tensor
    scale: float
    mask: torch.Tensor | None
    output: torch.Tensor

    def logits(self, rows: Any = slice(None), queries: Any = slice(None), keys: Any = slice(None)) -> torch.Tensor:
        """(B, N, Q, K) of the chosen batch rows, queries and keys (slices or lists); without the mask."""
        assert not any(isinstance(chosen, int) for chosen in (rows, queries, keys)), "an int drops a dimension"
        q, k = self.q[rows][:, :, queries], self.k[rows][:, :, keys]
        return q @ k.transpose(-1, -2) * self.scale

    def weights(self, rows: Any = slice(None), queries: Any = slice(None)) -> torch.Tensor:
        """(B, N, Q, K): the model's own attention over all keys, with its mask."""
        assert not any(isinstance(chosen, int) for chosen in (rows, queries)), "an int drops a dimension"
        logits = self.q @ self.k.transpose(-1, -2) * self.scale
        if self.mask is not None:
            mask = self.mask
            logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask.double()
        return logits.softmax(-1)[rows][:, :, queries]


@contextmanager
def recorded_products(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Recorded]]]:
    """Module name → its products in order, of all runs inside the `with`."""
    found: dict[str, list[Recorded]] = defaultdict(list)
    inside: list[str] = []
    handles = []
    for name, module in modules.items():
        handles.append(module.register_forward_pre_hook(lambda *_, n=name: inside.append(n)))
        handles.append(module.register_forward_hook(lambda *_: inside.pop() and None))
    real = F.scaled_dot_product_attention

    def recording(query, key, value, attn_mask=None, *args, scale=None, **kwargs):
        output = real(query, key, value, attn_mask, *args, scale=scale, **kwargs)
        if inside:
            k = key.double().repeat_interleave(query.shape[1] // key.shape[1], 1)
            factor = query.shape[-1] ** -0.5 if scale is None else scale
            found[inside[-1]].append(Recorded(query.double(), k, factor, attn_mask, output))
        return output

    F.scaled_dot_product_attention = recording
    try:
        yield found
    finally:
        F.scaled_dot_product_attention = real
        for handle in handles:
            handle.remove()


def assert_maps_equal(maps: Any, logits: Mapping[str, Sequence[torch.Tensor]], tolerance: float = 1e-5) -> None:
    """Both directions of every layer against a float64 softmax of `logits`: layer → (N, G, R) of each sampler step."""
    assert set(maps.layers) == set(logits)
    for layer, steps in logits.items():
        both = torch.stack([torch.as_tensor(s).double() for s in steps])
        truths = {"r2g": both.softmax(2).mean((0, 1, 3)).numpy(), "g2r": both.softmax(3).mean((0, 1, 2)).numpy()}
        for direction, truth in truths.items():
            ours = getattr(maps, direction).by_layer[layer].ravel()
            assert np.abs(ours - truth).max() <= tolerance * truth.max(), (layer, direction)
            assert truth.max() > 1.01 * truth.min(), "the truth is flat, the comparison would prove nothing"


def sharpened(model: nn.Module, *names: str, factor: float = 4.0) -> nn.Module:
    """Larger query and key weights: random ones attend almost evenly, and a flat map proves nothing."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(f"{n}.weight" in name for n in names or ("to_q", "to_k", "add_q_proj", "add_k_proj", "to_k_ip")):
                weight.mul_(factor)
    return model
