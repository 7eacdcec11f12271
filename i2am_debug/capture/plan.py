"""What an evaluation looks at: which layers, heads and sampler steps. Knows no model and imports no torch."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class CapturePlan:
    """A fixed, seeded choice of samples (sampler step, layer, head), the same at every evaluation of a run.

    Raises:
        ValueError: a count below 1, or an unknown `layer_weighting`.
    """

    sampler_steps: int | None = 4
    """How many of the sampler's steps are looked at, one drawn from each of as many equal stretches; None = all. By teacher
    forcing and with a `loss_fn`: how many noise times, evenly spread (None: 10)."""
    heads: int | None = 64
    """About how many (layer, head) pairs are looked at; None = all. Where the model has more, a pilot ranks them all by
    attention information and keeps the strongest half plus a weighted draw from the rest, at least one from each layer."""
    layers: tuple[str, ...] = ("*",)
    """Shell patterns; a layer is looked at when one of them matches its name."""
    exclude: tuple[str, ...] = ()
    """Shell patterns of layers that are left out."""
    time_groups: int = 5
    """Groups of consecutive sampler steps for the time level, as many as there are steps at most; group 0 is the noisiest."""
    layer_weighting: Literal["equal", "paper"] = "equal"
    """"equal": a map is divided by its mean before layers are averaged. "paper": it isn't, so coarse layers dominate."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        for name in ("sampler_steps", "heads", "time_groups"):
            value = getattr(self, name)
            if value is None and name != "time_groups":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(
                    f"CapturePlan({name}={value!r}): expected a whole number of at least 1" + _OR_NONE[name]
                )
        if self.layer_weighting not in ("equal", "paper"):
            raise ValueError(f'CapturePlan(layer_weighting={self.layer_weighting!r}): expected "equal" or "paper"')
        for name in ("layers", "exclude"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"CapturePlan({name}=…): expected a tuple of patterns, got one string")
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @classmethod
    def full(cls, **changes: Any) -> CapturePlan:
        """Every layer, head and sampler step."""
        return cls(**{"sampler_steps": None, "heads": None, **changes})

    @classmethod
    def paper(cls, **changes: Any) -> CapturePlan:
        """What the authors do: every step and head, no middle block, 5 groups, layers averaged without normalisation."""
        return cls.full(**{"exclude": ("mid_block*",), "layer_weighting": "paper", **changes})

    @classmethod
    def pilot(cls, heads: int, **changes: Any) -> CapturePlan:
        """The default plan with room for `heads` (layer, head) pairs, chosen by a pilot where the model has more."""
        return cls(**{"heads": heads, **changes})

    def draw_steps(self, total: int) -> tuple[int, ...]:
        """The sampler steps (0 … total − 1) to look at, in order: one from each of `sampler_steps` equal stretches."""
        if self.sampler_steps is None or self.sampler_steps >= total:
            return tuple(range(total))
        rng = random.Random(f"steps {self.seed}")
        edges = [i * total // self.sampler_steps for i in range(self.sampler_steps + 1)]
        return tuple(rng.randrange(a, b) for a, b in itertools.pairwise(edges))

    def looks_at(self, layer: str) -> bool:
        """Whether the layer of that name is looked at."""
        return any(fnmatch(layer, p) for p in self.layers) and not any(fnmatch(layer, p) for p in self.exclude)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


_OR_NONE = {"sampler_steps": ", or None for all", "heads": ", or None for all", "time_groups": ""}

HeadChoice = Mapping[str, Mapping[int, float]]
"""Layer → head index → weight: the (layer, head) pairs looked at, and for how many of the model's each of them stands."""


def choose_heads(information: Mapping[str, Sequence[float]], plan: CapturePlan) -> dict[str, dict[int, float]] | None:
    """Chooses (layer, head) pairs from a pilot.

    Args:
        information: layer → attention information of each head, in bits.

    Returns:
        None where the model has no more than `plan.heads`: everything is looked at, each with weight 1. Otherwise the
        strongest `plan.heads // 2` with weight 1, and from each layer's remainder of m heads n ≥ 1 drawn without
        replacement with weight m / n, so that weighted sums estimate the sums over all heads without bias.
    """
    ranked = sorted(((v, layer, h) for layer, heads in information.items() for h, v in enumerate(heads)), reverse=True)
    if plan.heads is None or len(ranked) <= plan.heads:
        return None
    strongest = {(layer, h) for _, layer, h in ranked[: plan.heads // 2]}
    rng = random.Random(f"heads {plan.seed}")
    rest = {
        layer: [h for h in range(len(heads)) if (layer, h) not in strongest] for layer, heads in information.items()
    }
    share = (plan.heads - len(strongest)) / max(1, sum(map(len, rest.values())))
    choice: dict[str, dict[int, float]] = {}
    for layer, remainder in rest.items():
        drawn = rng.sample(remainder, min(len(remainder), max(1, round(share * len(remainder)))))
        weights = {h: 1.0 for h in range(len(information[layer])) if (layer, h) in strongest}
        weights.update({h: len(remainder) / len(drawn) for h in drawn})
        choice[layer] = dict(sorted(weights.items()))
    return choice
