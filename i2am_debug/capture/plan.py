"""What an evaluation looks at: which layers, heads and sampler steps. Knows no model and imports no torch."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from typing import Any, Literal


class _ByDefault(int):
    """A number that nobody asked for."""


@dataclass(frozen=True, kw_only=True)
class CapturePlan:
    """A fixed, seeded choice of samples (sampler step, layer, head), the same at every evaluation of a run.

    Raises:
        ValueError: a count below 1, an unknown `layer_weighting`, or a `budget` beside what it is to choose.
    """

    sampler_steps: int | None = _ByDefault(4)
    """How many of the sampler's steps are looked at, one drawn from each of as many equal stretches; None = all. By teacher
    forcing and with a `loss_fn`: how many noise times, evenly spread (None: 10)."""
    heads: int | None = _ByDefault(64)
    """About how many (layer, head) pairs are looked at; None = all. Where the model has more, a pilot ranks them all by
    attention information and keeps the strongest half plus a weighted draw from the rest, at least one from each layer."""
    layers: tuple[str, ...] = ("*",)
    """Shell patterns; a layer is looked at when one of them matches its name."""
    exclude: tuple[str, ...] = ()
    """Shell patterns of layers that are left out."""
    time_groups: int = 5
    """Groups of consecutive sampler steps for the time level, as many as there are steps at most; group 0 is the noisiest."""
    layer_weighting: Literal["equal", "paper"] = "equal"
    """"equal": a map is divided by its mean before layers are averaged. "paper": it isn't, so coarse layers dominate; and each
    head's map is brought to the common grid by itself, as the authors do, for which every step's heads are kept."""
    seed: int = 0
    """Seed of the draws."""
    budget: float | None = None
    """What looking may cost at most, as a share of the forwards of an evaluation; 0.01 is 1 %. A pilot then measures what
    each layer and head costs and tells, and chooses layers, heads and noise times by that, once a run (`within_budget`)."""

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
        if self.budget is not None:
            self._check_budget(self.budget)

    def _check_budget(self, budget: Any) -> None:
        if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget <= 1:
            raise ValueError(
                f"CapturePlan(budget={budget!r}): expected a share of the evaluation's forwards, above 0 and at most 1, or None"
            )
        for name in ("sampler_steps", "heads"):
            if not isinstance(getattr(self, name), _ByDefault):
                raise _contradiction(budget, name, getattr(self, name))
        if self.layers != ("*",):
            raise _contradiction(budget, "layers", self.layers)

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

    @property
    def resizes_heads(self) -> bool:
        """The authors bring each head's map, a group of steps together, to the common grid, and clamp it there."""
        return self.layer_weighting == "paper"

    def looks_at(self, layer: str) -> bool:
        """Whether the layer of that name is looked at."""
        return any(fnmatch(layer, p) for p in self.layers) and not any(fnmatch(layer, p) for p in self.exclude)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; without a budget where there is none, as it was before there were budgets."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {k: int(v) if isinstance(v, _ByDefault) else v for k, v in plain.items() if (k, v) != ("budget", None)}


def _contradiction(budget: float, name: str, value: Any) -> ValueError:
    return ValueError(
        f"CapturePlan(budget={budget!r}, {name}={value!r}): a budget chooses the {_CHOSEN[name]} itself; give one of the two"
    )


_CHOSEN = {"sampler_steps": "noise times", "heads": "heads", "layers": "layers (exclude=(…) leaves some out)"}
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
    rest = len(ranked) - len(strongest)
    share = (plan.heads - len(strongest)) / max(1, rest)
    kept = {layer: [h for h in range(len(heads)) if (layer, h) in strongest] for layer, heads in information.items()}
    return draw_heads(
        {layer: len(heads) for layer, heads in information.items()},
        kept,
        {la: max(1, round(share * (len(heads) - len(kept[la])))) for la, heads in information.items()},
        plan.seed,
    )


def draw_heads(
    heads: Mapping[str, int], kept: Mapping[str, Sequence[int]], counts: Mapping[str, int], seed: int
) -> dict[str, dict[int, float]]:
    """Heads that are certain, and a draw from the others of their layer.

    Args:
        heads: layer → how many it has.
        kept: layer → its heads that are looked at for certain, each with weight 1; only these layers are looked at.
        counts: layer → how many of its m others are drawn, without replacement, at most m; n drawn have weight m / n.
    """
    rng = random.Random(f"heads {seed}")
    choice: dict[str, dict[int, float]] = {}
    for layer, certain in kept.items():
        others = [h for h in range(heads[layer]) if h not in set(certain)]
        drawn = rng.sample(others, min(len(others), counts[layer]))
        weights = {**dict.fromkeys(certain, 1.0), **{h: len(others) / len(drawn) for h in drawn}}
        choice[layer] = dict(sorted(weights.items()))
    return choice


def drawn_anew(choice: HeadChoice, heads: Mapping[str, int], seed: int) -> dict[str, dict[int, float]]:
    """Another draw of the same design: the heads that are certain stay, of the others as many are drawn as before."""
    kept = {la: [h for h, weight in each.items() if weight == 1] for la, each in choice.items()}
    return draw_heads(heads, kept, {la: len(each) - len(kept[la]) for la, each in choice.items()}, seed)
