"""The maps that are put to the test, one value a token, and how much each reference token's value writes (|W_o v|).

Shapes: B pairs, N heads, G generated tokens, R reference tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from i2am_debug.capture.maps import AttributionMaps
from i2am_debug.capture.plan import CapturePlan
from i2am_debug.capture.trace import Trace

from .forced import Forced


@dataclass(frozen=True, kw_only=True)
class Looks:
    """What was seen of all pairs at some noise times."""

    maps: list[list[AttributionMaps]]
    """By time, by pair."""
    norms: list[dict[str, np.ndarray]]
    """By time: layer → (B, N, R), how large what a reference token adds to a token that looks at nothing else is."""

    @property
    def layers(self) -> tuple[str, ...]:
        return self.maps[0][0].layers

    @property
    def copying_layer(self) -> str:
        """Of most attention information, mean over pairs and times."""
        return max(self.layers, key=lambda la: sum(one.layer_information[la] for each in self.maps for one in each))

    def of_pair(self, index: int) -> list[AttributionMaps]:
        """By time."""
        return [each[index] for each in self.maps]

    def g2r(self, index: int) -> dict[str, np.ndarray]:
        """Name → (R,): of all queries as in the paper, of the region's, and the latter weighted by value norms."""
        each, copying = self.of_pair(index), self.copying_layer
        found = {
            "all queries, unified": _mean([one.g2r.unified for one in each]),
            "all queries, copying layer": _mean([one.g2r.by_layer[copying] for one in each]),
            "region, unified": _mean([one.g2r_region.unified for one in each]),
        }
        for layer in self.layers:
            name = "copying layer" if layer == copying else layer
            found[f"region, {name}"] = _mean([one.g2r_region.by_layer[layer] for one in each])
        written = {layer: self._written(index, layer) for layer in self.layers}
        equal = [values / values.sum() for values in written.values()]
        return found | {
            "region × value norms, unified": np.mean(equal, 0),
            "region × value norms, layers by norm": np.sum(list(written.values()), 0),
            "region × value norms, copying layer": written[copying],
        }

    def _written(self, index: int, layer: str) -> np.ndarray:
        """(R,) weights times value norms, summed over heads, mean over times."""
        by_time = []
        for one, norms in zip(self.of_pair(index), self.norms, strict=True):
            assert one.every_head is not None
            weights = one.every_head["g2r_region"][layer].astype(np.float64)
            by_time.append((weights.reshape(len(weights), -1) * norms[layer][index]).sum(0))
        return np.mean(by_time, 0)

    def r2g(self, index: int) -> dict[str, np.ndarray]:
        """Name → (G,): the paper's, centred, the object's mass."""
        each, copying, found = self.of_pair(index), self.copying_layer, {}
        for name, kind in (("paper", "r2g"), ("centred", "r2g_centred"), ("object's mass", "r2g_object_mass")):
            found[f"{name}, unified"] = _mean([getattr(one, kind).unified for one in each])
            found[f"{name}, copying layer"] = _mean([getattr(one, kind).by_layer[copying] for one in each])
        return found

    def rows(self, index: int) -> dict[str, np.ndarray]:
        """Name → (G, R): what each generated token draws from the reference (SRAM)."""
        each, copying = self.of_pair(index), self.copying_layer
        return {
            "unified": np.mean([one.rows.unified for one in each], 0),
            "copying layer": np.mean([one.rows.by_layer[copying][1] for one in each], 0),
        }


def look_at(forced: Forced, shares: Sequence[float], *, other: bool = False) -> Looks:
    """With the pairs' own references, or with the next pair's."""
    tokens, masks = forced.own, [pair.reference_region for pair in forced.pairs]
    if other:
        tokens, masks = forced.other, [*masks[1:], masks[0]]
    of, maps, norms = list(range(len(tokens))), [], []
    for share in shares:
        trace = Trace(
            forced.denoiser,
            plan=CapturePlan.full(),
            family=forced.family,
            mask=[pair.region for pair in forced.pairs],
            reference_mask=masks,
            heads=None,
            every_head=True,
        )
        with _value_norms(forced, tokens.shape[1]) as seen, trace as t:
            forced.predict_at_once(of, tokens, share)
        maps.append([t.maps(index) for index in of])
        norms.append(seen)
    return Looks(maps=maps, norms=norms)


@contextmanager
def _value_norms(forced: Forced, references: int) -> Iterator[dict[str, np.ndarray]]:
    """Filled while the denoiser runs; the reference's tokens are the last of those that the values are made of."""
    seen: dict[str, np.ndarray] = {}
    handles = []
    for name, module in forced.family.layers(forced.denoiser).items():

        def see(
            to_v: nn.Module, args: tuple, output: torch.Tensor, name: str = name, module: nn.Module = module
        ) -> None:
            values = output[:, -references:].unflatten(-1, (module.heads, -1)).float()
            weight = _out_projection(forced.denoiser, module)[:, : output.shape[-1]].unflatten(-1, (module.heads, -1))
            seen[name] = torch.einsum("brnh,dnh->bnrd", values, weight).norm(dim=-1).numpy()

        handles.append(module.to_v.register_forward_hook(see))
    try:
        with torch.no_grad():
            yield seen
    finally:
        for handle in handles:
            handle.remove()


def _out_projection(denoiser: nn.Module, module: nn.Module) -> torch.Tensor:
    """W_o; Flux's single blocks have one for attention and feed-forward together, the attention's columns first."""
    if getattr(module, "to_out", None) is not None:
        return module.to_out[0].weight
    (block,) = (each for each in denoiser.modules() if getattr(each, "attn", None) is module)
    return block.proj_out.weight


def _mean(maps: Sequence[np.ndarray]) -> np.ndarray:
    return np.mean(maps, 0, dtype=np.float64).ravel()
