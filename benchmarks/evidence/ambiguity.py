"""The ambiguity of the paper's R2G: a bias on a model's keys, which its output does not feel, moves that map and no other.

A bias b on the keys of a head adds q·b to all logits of a generated token; the softmax over the reference takes no notice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from i2am_debug.figures.distances import js_distance
from i2am_debug.figures.scores import imacs

from .ambiguity_picture import Seen, draw
from .forced import Forced, forced
from .intervals import resampled
from .looked_at import held_out
from .section import Section, Table, with_interval
from .sizes import LONG, Sizes
from .token_maps import Looks, look_at

PICTURE = "r2g_ambiguity.png"
_SPREADS = (1.0, 2.0, 3.0)
"""Of what is added to the logits: standard deviations over generated tokens."""
_CHOSEN = f"against the hole, {_SPREADS[-1]:.0f}"
_MAPS = {
    "R2G, the paper's": ("r2g", "mask"),
    "R2G, centred": ("r2g_centred", "mask"),
    "R2G, object's mass": ("r2g_object_mass", "mask"),
    "G2R, the paper's": ("g2r", "reference_mask"),
}
Figures = dict[str, tuple[float, float, float]]


def measure(sizes: Sizes, _folder: Path) -> Section:
    pairs = forced("inpainting", held_out("inpainting", sizes.pairs, seed=0))
    before, predicted = look_at(pairs, sizes.noise_times), _predicted(pairs, sizes.noise_times)
    values: dict[str, dict[str, Figures]] = {"none": _figures(pairs, before, [before], sizes)}
    moved = []
    for words, spread, seeds in (
        *((f"random, {spread:.0f}", spread, sizes.seeds) for spread in _SPREADS),
        (_CHOSEN, _SPREADS[-1], (None,)),
    ):
        after = []
        for seed in seeds:
            with biased_keys(pairs, spread, seed, sizes.noise_times[0]):
                after.append(look_at(pairs, sizes.noise_times))
                moved.append(float((_predicted(pairs, sizes.noise_times) - predicted).abs().max()))
        values[words] = _figures(pairs, before, after, sizes)
    if sizes is LONG:
        _draw(pairs, before, sizes)
    tables = [
        Table(
            title=f"{what}, {len(pairs.pairs)} pairs:",
            columns=("added to the logits, its standard deviation", *_MAPS),
            rows=[[size, *(with_interval(*one[key]) for one in maps.values())] for size, maps in values.items()],
        )
        for key, what in (
            ("js", "JS distance from the map before"),
            ("imacs", "IMACS (IMACS_g of R2G, IMACS_r of G2R)"),
        )
    ]
    return Section(
        title="What the paper's R2G leaves open",
        asked="A bias on the keys of every cross-attention head of the inpainting model adds the same value to all logits of "
        f"a generated token, and so changes nothing that the model makes. Random ones ({len(sizes.seeds)} draws a size), and "
        "one chosen, by least squares, to be small in the hole.",
        said=_in_words(values, max(moved)),
        tables=tables,
        pictures=[(PICTURE, "The same picture, and the paper's R2G of it, which is another")],
        command="python -m benchmarks.evidence ambiguity",
        values={**values, "output_moved": max(moved)},
    )


@contextmanager
def biased_keys(pairs: Forced, spread: float, seed: int | None, share: float) -> Iterator[None]:
    """The denoiser with biases on its keys such that what they add to the logits has this standard deviation over generated
    tokens, mean over heads and pairs. Without a seed they are chosen: what they add is small in the hole."""
    layers = pairs.family.layers(pairs.denoiser)
    queries = _queries(pairs, layers, share)
    generator = torch.Generator().manual_seed(seed or 0)
    try:
        for name, module in layers.items():
            q = module.scale * queries[name].unflatten(-1, (module.heads, -1)).transpose(1, 2)  # (B, N, G, H)
            bias = (
                torch.randn(module.heads, q.shape[-1], generator=generator) if seed is not None else _chosen(pairs, q)
            )
            added = torch.einsum("bngh,nh->bng", q, bias)
            bias = bias * (spread / added.std(-1).mean(0))[:, None]
            module.to_k.bias = nn.Parameter(bias.flatten(), requires_grad=False)
        yield
    finally:
        for module in layers.values():
            module.to_k.bias = None


def _chosen(pairs: Forced, q_BNGH: torch.Tensor) -> torch.Tensor:
    """(N, H) whose products with the queries are nearest to being low in the hole and high elsewhere."""
    side = math.isqrt(q_BNGH.shape[2])
    holes = F.adaptive_avg_pool2d(pairs.region_BG[: len(q_BNGH)].view(-1, 1, *pairs.grid), (side, side)).flatten(1)
    wanted = -(holes - holes.mean(1, keepdim=True)).flatten()
    centred = q_BNGH - q_BNGH.mean(2, keepdim=True)
    return torch.stack([torch.linalg.lstsq(q.flatten(0, 1), wanted[:, None]).solution[:, 0] for q in centred.unbind(1)])


def _queries(pairs: Forced, layers: dict[str, nn.Module], share: float) -> dict[str, torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}
    handles = [
        module.to_q.register_forward_hook(lambda _module, _args, output, name=name: seen.__setitem__(name, output))
        for name, module in layers.items()
    ]
    _predicted(pairs, (share,))
    for handle in handles:
        handle.remove()
    return seen


def _predicted(pairs: Forced, shares: tuple[float, ...]) -> torch.Tensor:
    """(times, n, G, C) of some of the pairs."""
    few = list(range(min(8, len(pairs.pairs))))
    return torch.stack([pairs.predict(few, pairs.own[few], share) for share in shares])


def _figures(pairs: Forced, before: Looks, after: list[Looks], sizes: Sizes) -> dict[str, Figures]:
    """Map → means over pairs and draws of the distance from the map before, and of its IMACS."""
    found = {}
    for name, (kind, mask) in _MAPS.items():
        js, scores = [], []
        for index, pair in enumerate(pairs.pairs):
            own, others = _map(before, index, kind), [_map(looks, index, kind) for looks in after]
            js.append(np.mean([js_distance(own, other) for other in others]))
            scores.append(np.mean([imacs(other, getattr(pair, mask)) for other in others]))
        found[name] = {
            key: resampled(lambda chosen, v=v: float(v[chosen].mean()), len(v), sizes.resamples)
            for key, v in (("js", np.array(js)), ("imacs", np.array(scores)))
        }
    return found


def _map(looks: Looks, index: int, kind: str) -> np.ndarray:
    return np.mean([getattr(one, kind).unified for one in looks.of_pair(index)], 0)


def _draw(pairs: Forced, before: Looks, sizes: Sizes) -> None:
    """One pair before and after, the one that the paper's R2G scores best before."""
    scores = [imacs(_map(before, index, "r2g"), pair.mask) for index, pair in enumerate(pairs.pairs)]
    index, share = int(np.argmax(scores)), sizes.noise_times[0]

    def seen(looks: Looks) -> Seen:
        maps = {name: _map(looks, index, kind) for name, (kind, _) in _MAPS.items()}
        return Seen(predicted=pairs.predict([index], pairs.own[index][None], share)[0], grid=pairs.grid, maps=maps)

    plain = seen(before)
    with biased_keys(pairs, _SPREADS[-1], None, share):
        shifted = seen(look_at(pairs, sizes.noise_times))
    draw(pairs.pairs[index], plain, shifted, PICTURE)


def _in_words(values: dict[str, dict[str, Figures]], moved: float) -> str:
    paper, random = "R2G, the paper's", f"random, {_SPREADS[-1]:.0f}"
    scores = {name: values[name][paper]["imacs"][0] for name in ("none", random, _CHOSEN)}
    still = [name for name in _MAPS if all(maps[name]["js"][0] < 1e-3 for maps in values.values())]
    return (
        f"The predicted pictures stay the same to {moved:.0e} of a range of 2. The paper's R2G moves by a JS distance of "
        f"{values[random][paper]['js'][0]:.2f} with random biases of size {_SPREADS[-1]:.0f}, by "
        f"{values[_CHOSEN][paper]['js'][0]:.2f} with the chosen one; its IMACS_g goes from {scores['none']:.2f} to "
        f"{scores[random]:.2f} and to {scores[_CHOSEN]:.2f}. As they were, to 0.001, stay: {'; '.join(still) or 'no maps'}. "
        "So the paper's R2G is not settled by what the model does: where it changes, see whether a companion does."
    )
