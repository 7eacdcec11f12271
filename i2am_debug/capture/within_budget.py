"""What is looked at where looking may cost only so much: the most attention information for the time it takes.

Pure: knows no model and no clock, imports no torch. What things cost and tell is measured by a pilot (`capture.costs`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .plan import CapturePlan, draw_heads


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds, of one batch of pairs."""

    forwards: float
    """All forwards of the denoiser in an evaluation, without what looking adds."""
    layer: Mapping[str, float]
    """Layer → looking at it at one noise time, however few of its heads."""
    head: Mapping[str, float]
    """Layer → what each head adds to that."""
    reading: Mapping[str, float]
    """Layer → its part of reading the maps out, once."""
    each_time: float = 0.0
    """A noise time that is looked at, whatever is looked at."""

    def share(self, counts: Mapping[str, int], times: int) -> float:
        """What looking at so many heads of these layers, at so many noise times, costs as a share of the forwards."""
        once = self.each_time + sum(self.layer[la] + n * self.head[la] for la, n in counts.items())
        return (times * once + sum(self.reading[la] for la in counts)) / self.forwards


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What is looked at."""

    heads: dict[str, dict[int, float]]
    """As `plan.choose_heads` gives them."""
    times: tuple[int, ...]
    """Numbers of the noise times, of those that the plan has."""
    share: float
    """Its expected cost as a share of the forwards."""
    bits: float
    """Attention information that these heads have, mean over noise times."""


def choose_within(
    budget: float, information: Mapping[str, Sequence[float]], costs: Costs, *, copying: str, times: int, seed: int
) -> Chosen:
    """The layers, heads and noise times that tell most within the budget; the least there is where nothing fits.

    Of each layer that is kept, one head more than half of them at most are its strongest and the others drawn; a layer
    begins with two, one of each. By greedy choice of the most bits a second, for each number of noise times, since a
    noise time more shows all heads once more; at equal information the more noise times.

    Args:
        information: layer → attention information of each head, in bits.
        copying: the layer that is looked at whatever it costs.
        times: how many noise times the plan has.
    """
    ranked = {la: sorted((_finite(b) for b in bits), reverse=True) for la, bits in information.items()}
    best: tuple[float, int, dict[str, int]] | None = None
    for count in range(times, 0, -1):
        counts = _most_informative(budget, ranked, costs, copying, count)
        value = count * sum(sum(ranked[la][:n]) for la, n in counts.items())
        if costs.share(counts, count) <= budget and (best is None or value > best[0]):
            best = value, count, counts
    _, count, counts = best or (0.0, 1, {copying: _first(ranked[copying])})
    heads = _heads(information, counts, seed)
    return Chosen(
        heads=heads,
        times=CapturePlan(sampler_steps=count, seed=seed).draw_steps(times),
        share=costs.share(counts, count),
        bits=sum(_finite(information[la][h]) for la, each in heads.items() for h in each),
    )


def in_words(
    chosen: Chosen, information: Mapping[str, Sequence[float]], *, times: int, budget: float, measured: float
) -> str:
    """What was chosen, why, and what it costs; `measured` is its cost as the pilot saw it."""
    heads, of_heads = sum(map(len, chosen.heads.values())), sum(map(len, information.values()))
    of_bits = sum(_finite(b) for bits in information.values() for b in bits)
    told = (
        f"{len(chosen.heads)} of {len(information)} layers, {heads} of {of_heads} heads, {len(chosen.times)} of {times} "
        f"noise times: looking {_percent(measured)} of the forwards"
    )
    why = f"the most information for its cost, {chosen.bits:.3g} of {of_bits:.3g} bit"
    if measured <= budget:
        return f"{told} (budget {_percent(budget)}); {why}"
    needed = min(1.0, math.ceil(measured * 1000) / 1000)
    return (
        f"{told}, the least there is: the budget of {_percent(budget)} can't be kept, budget={needed:g} would be needed; "
        f"{why}"
    )


def _most_informative(
    budget: float, ranked: Mapping[str, Sequence[float]], costs: Costs, copying: str, times: int
) -> dict[str, int]:
    """Layer → how many heads, beginning with the copying layer, which stays though it may not fit."""
    counts = {copying: _first(ranked[copying])}

    def with_more(layer: str) -> dict[str, int]:
        return {**counts, layer: counts[layer] + 1 if layer in counts else _first(ranked[layer])}

    def rate(layer: str) -> float:
        more, begun = with_more(layer)[layer], counts.get(layer, 0)
        seconds = times * (more - begun) * costs.head[layer]
        if not begun:
            seconds += times * costs.layer[layer] + costs.reading[layer]
        return sum(ranked[layer][begun:more]) / max(seconds, 1e-12)

    open_layers = {la for la in ranked if counts.get(la, 0) < len(ranked[la])}
    while open_layers:
        layer = max(sorted(open_layers), key=rate)
        if costs.share(with_more(layer), times) > budget:
            open_layers.remove(layer)
            continue
        counts = with_more(layer)
        if counts[layer] == len(ranked[layer]):
            open_layers.remove(layer)
    return {la: counts[la] for la in ranked if la in counts}


def _first(bits: Sequence[float]) -> int:
    """With how many heads a layer begins."""
    return min(2, len(bits))


def _heads(information: Mapping[str, Sequence[float]], counts: Mapping[str, int], seed: int) -> dict:
    sizes = {la: len(information[la]) for la in counts}
    kept = {}
    for layer, count in counts.items():
        strongest = sorted(range(sizes[layer]), key=lambda h: (-_finite(information[layer][h]), h))
        kept[layer] = strongest[: count if count == sizes[layer] else (count + 1) // 2]
    return draw_heads(sizes, kept, {la: count - len(kept[la]) for la, count in counts.items()}, seed)


def _finite(bits: float) -> float:
    return bits if math.isfinite(bits) else 0.0


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
