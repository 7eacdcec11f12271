"""What stays the same over all evaluations of a run, and turns what was seen of the pairs into an `Evaluation`.

Looking (`Evaluator.observe`, on every process) is apart from scoring (`Evaluator.score`, on one). Knows no training loop.
"""

from __future__ import annotations

import inspect
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import __version__
from ..capture.plan import CapturePlan, HeadChoice
from ..capture.trace import Trace, find_denoiser, trace
from ..errors import UnsupportedModel
from ..families.family import Family
from ..families.registry import find_family
from ..figures.observation import Observation
from ..figures.record import Evaluation, heads_in_short
from ..figures.registry import own_figures
from ..figures.sampling_error import Sampled
from ..figures.scores import IMACSSettings
from ..figures.scoring import score
from ..figures.values import Figure
from ..pairs.collection import ValidationPairs
from ..pairs.pair import ValidationPair
from .call_arguments import Size
from .calls import (
    PipelineCall,
    default_call,
    edits_its_reference,
    picture_of,
    references_of,
    takes_batches,
)
from .fingerprint import of_code, of_family, of_pipeline
from .loss_function import LossFunction
from .memory import one_pair_at_a_time
from .pilot import Choice, choose
from .probes import PAIRS as PROBED_PAIRS
from .references import blank_colour
from .truth import Encode
from .ways import Way, WayName, choose_way

logger = logging.getLogger("i2am_debug")

_CODE_OF: dict[WayName, tuple[str, ...]] = {
    "loss_fn": ("loss_fn",),
    "teacher_forcing": ("call", "encode"),
    "sampling": ("call",),
}
"""Way → those of the functions handed in that its figures come from."""


@dataclass(kw_only=True)
class Evaluator:
    """Looks at the pairs of a run, always in the same way."""

    pairs: ValidationPairs
    plan: CapturePlan = field(default_factory=CapturePlan)
    family: Family | None = None
    call: PipelineCall | None = None
    loss_fn: LossFunction | None = None
    way: WayName | None = None
    encode: Encode | None = None
    size: Size | None = None
    kept_threshold: float | None = None
    imacs: IMACSSettings = field(default_factory=IMACSSettings)
    num_inference_steps: int | None = None
    batch_size: int = 1
    pictures: int = 4
    seed: int = 0
    choice: Choice | None = None
    """What is looked at, chosen by `prepare` or stored with the baseline; None: not chosen yet, or all of it."""

    in_step: bool = field(default=False, init=False)
    """Every pair must take as many forwards as any other: the processes that share the pairs may share the model too."""
    in_lockstep: Callable[[Any], AbstractContextManager[None]] = field(default=nullcontext, init=False)
    """A block around forwards that may fail on one of the processes that share the model, and end well all the same."""
    chosen: Way | None = field(default=None, init=False)
    """The way that is taken, once `check` or `prepare` has chosen it."""
    at_most: int | None = field(default=None, init=False)
    """So many pairs at once fit in memory, where `batch_size` turned out not to."""
    of_masks: str = field(default="", init=False)
    """What becomes of the pairs' masks, where the pipeline does not take them; known once they are checked."""
    make_trace: Callable[..., Trace] | None = field(default=None, init=False)
    """In place of `trace`, while a pilot measures."""
    _asked_at_once: int = field(default=1, init=False)
    _sizes: list[tuple[tuple[int, int], tuple[int, int]]] = field(default_factory=list, init=False)
    _shapes: list[Any] = field(default_factory=list, init=False)
    _without_prompt: list[str] = field(default_factory=list, init=False)
    _names: list[str] = field(default_factory=list, init=False)
    _code: dict[str, str | None] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        # Read now and once: in a run of days the files that they are in may be edited.
        self._code = {name: of_code(getattr(self, name)) for name in ("loss_fn", "call", "encode")}

    @property
    def batches(self) -> list[list[int]]:
        """Pair numbers of each batch; fixed, so that a pair's noise does not depend on how many processes share the work."""
        alike: dict[Any, list[int]] = {}
        for index in range(len(self.pairs)):  # one call has pictures of one size, and as many references
            alike.setdefault(self._shapes[index] if self._shapes else None, []).append(index)
        size = self._fitting
        return [group[i : i + size] for group in alike.values() for i in range(0, len(group), size)]

    @property
    def pairs_at_once(self) -> int:
        """Of the largest batch."""
        return max(map(len, self.batches))

    @property
    def _fitting(self) -> int:
        return min(self._asked_at_once, self.at_most or self._asked_at_once)

    def look_at_fewer(self) -> None:
        """Half as many pairs at once, from now on."""
        self.at_most = max(1, self.pairs_at_once // 2)

    @property
    def noise_is_by_pair(self) -> bool:
        """Whether a pair's figures are the same, but for rounding, whatever pairs are looked at together with it."""
        return not self._takes("loss_fn")

    @property
    def sampled_apart(self) -> list[int]:
        """Pairs whose picture `sample` has to make: looking by a `loss_fn` makes none."""
        return list(range(min(self.pictures, len(self.pairs)))) if self._takes("loss_fn") else []

    @property
    def probed(self) -> list[list[int]]:
        """Pair numbers of each batch that probes are tried with."""
        few = ([index for index in batch if index < PROBED_PAIRS] for batch in self.batches)
        return [batch for batch in few if batch]

    def names_of(self, batch: Sequence[int]) -> list[str]:
        """The names of these pairs, for errors; their numbers until `check` has made every pair once."""
        return [self._names[index] if self._names else str(index) for index in batch]

    def way_for(self, pipeline: Any) -> Way:
        """How the pairs are looked at; chosen once."""
        if self.chosen is None:
            with one_pair_at_a_time():
                self.use(choose_way(self, pipeline), pipeline)
        assert self.chosen is not None
        return self.chosen

    def use(self, way: Way, pipeline: Any) -> None:
        """Looks at the pairs in this way from now on."""
        self.chosen = way
        together = way.name == "loss_fn" or (
            way.name == "teacher_forcing" and self.call is None and takes_batches(pipeline)
        )
        self._asked_at_once = self.batch_size if together else 1

    def check(self, pipeline: Any) -> None:
        """Everything that can be wrong before anything runs.

        Raises:
            I2AMError: the pairs, the pipeline or the arguments can't be used; the text says what to do.
        """
        denoiser = find_denoiser(pipeline)
        family = self.family_of(pipeline)
        if not any(self.plan.looks_at(name) for name in family.layers(denoiser)):
            raise UnsupportedModel(
                f"no attention module of {type(denoiser).__name__} is looked at: the family {family.name!r} finds "
                f"{list(family.layers(denoiser)) or 'none'}, the plan's layers are {self.plan.layers}"
            )
        self._refuse_heads_of_another_model(family.layers(denoiser))
        by_default = self.loss_fn is None and self.call is None
        if by_default:
            default_call(pipeline)
        self._find_kept_regions(pipeline)
        self._regions: list[str] = []
        self._sizes, self._shapes, self._without_prompt, names, with_mask = [], [], [], [], []

        def look(pair: ValidationPair) -> None:
            names.append(pair.name)
            self._regions.append(pair.region_in_words)
            self._sizes.append((pair.target.size, pair.reference.size))
            self._shapes.append((*self._sizes[-1], len(pair.further_references)))
            if not pair.prompt:
                self._without_prompt.append(pair.name)
            if by_default:
                references_of(pipeline, pair)
            with_mask.append(pair.mask is not None)

        self._pair_hashes, self._names = self.pairs.check(look), names
        if 0 < len(self._without_prompt) < len(self.pairs):
            warnings.warn(
                f"{len(self._without_prompt)} of {len(self.pairs)} pairs have no prompt: "
                f"{', '.join(self._without_prompt[:5])}; they are called with an empty one",
                stacklevel=2,
            )
        if by_default and any(with_mask) and "mask_image" not in inspect.signature(type(pipeline).__call__).parameters:
            self.of_masks = (
                f"{type(pipeline).__name__} takes no mask: those of {sum(with_mask)} pairs are the region that figures look "
                "at, and are called the hole"
            )
            logger.info("i2am: %s", self.of_masks)
        self.way_for(pipeline)

    @property
    def without_prompt(self) -> list[str]:
        """Names of the pairs that have none; known once they are checked."""
        return self._without_prompt

    @property
    def sizes(self) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """(width, height) of each pair's target and of its reference; known once they are checked."""
        return self._sizes

    def _refuse_heads_of_another_model(self, modules: Mapping[str, Any]) -> None:
        """Before training time is spent: heads that came with a baseline may be of layers that this model has not."""
        looked_at = {name: module for name, module in modules.items() if self.plan.looks_at(name)}
        for layer, heads in (self.heads or {}).items():
            if layer not in looked_at:
                missing = f"a layer {layer!r}; this model and plan have {', '.join(looked_at)}"
            elif max(heads, default=0) >= getattr(looked_at[layer], "heads", math.inf):
                missing = f"head {max(heads)} of layer {layer!r}, which has {looked_at[layer].heads} in this model"
            else:
                continue
            raise UnsupportedModel(
                f"the baseline's heads are those of another model or plan: they name {missing}. Give the plan that the "
                "baseline was made with, or leave baseline= away for a new one"
            )

    def _find_kept_regions(self, pipeline: Any) -> None:
        """Where the reference is the picture that is edited, most of it is to be kept."""
        if not hasattr(self, "_regions") and (edits_its_reference(pipeline) or self.kept_threshold is not None):
            self.pairs = self.pairs.with_kept_regions(self.kept_threshold)

    @property
    def heads(self) -> HeadChoice | None:
        """The (layer, head) pairs that are looked at; None: all."""
        return None if self.choice is None else self.choice.heads

    def look_as(self, evaluation: Evaluation) -> None:
        """At what was looked at in this one, a baseline, from now on."""
        self.choice = Choice.of(evaluation)

    def prepare(self, pipeline: Any) -> None:
        """Chooses, once, the way and what to look at; by a pilot where the model has more heads than the plan allows, or the
        plan has a budget."""
        self.way_for(pipeline)
        if self.choice is None and self._needs_pilot(pipeline):
            self.choice = choose(self, pipeline)

    def _needs_pilot(self, pipeline: Any) -> bool:
        if self.plan.budget is not None:
            return True
        total = self._heads_of(pipeline)
        return self.plan.heads is not None and (total is None or total > self.plan.heads)

    def observe(self, pipeline: Any, batch: Sequence[int]) -> list[Observation]:
        """Runs the pairs of one batch, capturing. Changes no state but the pipeline scheduler's."""
        with torch.no_grad(), one_pair_at_a_time() if self.pairs_at_once == 1 else nullcontext():
            return self.way_for(pipeline).observe(self, pipeline, batch)

    def probe(self, pipeline: Any, batch: Sequence[int]) -> dict[int, dict[str, Figure]]:
        """Pair number → name of the probe (`probes.PROBES`) → the loss with the reference changed so. As `observe`."""
        with torch.no_grad():
            return dict(zip(batch, self.way_for(pipeline).probe(self, pipeline, batch), strict=True))

    def sample(self, pipeline: Any, index: int, pair: ValidationPair | None = None) -> Image.Image:
        """The picture the pipeline makes of a pair, or of `pair` in its place. Changes no state but the scheduler's."""
        call = self.call or default_call(pipeline, self.num_inference_steps, size=self.size)
        noise = torch.Generator().manual_seed(self.seed + index)
        with torch.no_grad():
            return picture_of(call(pipeline, pair or self.pairs[index], noise))

    def score(
        self,
        observations: Sequence[Observation],
        *,
        global_step: int,
        pipeline: Any,
        baseline: Mapping[str, Any] | None,
    ) -> Evaluation:
        """Scores all pairs' observations, in order. `baseline` holds "i/r2g", "i/g2r", … of pair i, unified maps."""
        started = time.monotonic()
        layers = observations[0].maps.layers
        pairs = [self.pairs[observation.index] for observation in observations]
        scored = score(observations, pairs, settings=self.imacs, sampled=self._sampled, baseline=baseline or {})
        choice = self.choice or Choice()
        return Evaluation(
            global_step=global_step,
            pairs=tuple(pair.name for pair in pairs),
            figures=scored.figures,
            errors=scored.errors,
            layers=layers,
            copying_layer=scored.copying_layer,
            reference_lines=scored.reference_lines,
            fingerprint=self.fingerprint(pipeline, layers),
            sampling=scored.sampling,
            heads=choice.heads,
            times=choice.times,
            chosen=choice.words,
            spread=choice.spread,
            declared={figure.tag: figure for figure in own_figures()},
            seconds=time.monotonic() - started,
        )

    def fingerprint(self, pipeline: Any, layers: Sequence[str]) -> dict[str, Any]:
        """All that the figures depend on beside the model, readable, since differences are told in its words."""
        if not hasattr(self, "_pair_hashes"):
            self.check(pipeline)
        way, family = self.way_for(pipeline), self.family_of(pipeline)
        return {
            "pairs": self._pair_hashes,
            "regions": self._regions,
            "kept_threshold": self.kept_threshold,
            "way": way.name,
            "not_teacher_forced": way.instead or None,
            "seed": self.seed,
            "num_inference_steps": self.num_inference_steps if way.name == "sampling" else None,
            "batch_size": self._asked_at_once if self.noise_is_by_pair else self._fitting,
            "size": None if self.size is None or way.name == "loss_fn" else list(self.size),
            "no_reference": None if way.name == "sampling" else list(blank_colour(pipeline, family)),
            **{name: code if name in _CODE_OF[way.name] else None for name, code in self._code.items()},
            **of_pipeline(pipeline),
            "plan": self.plan.to_dict(),
            "heads": heads_in_short(self.heads),
            **({} if self.choice is None or self.choice.times is None else {"times": list(self.choice.times)}),
            "imacs": self.imacs.to_dict(),
            **of_family(family),
            "layers": list(layers),
            "version": __version__,
        }

    def trace(self, pipeline: Any, pairs: Sequence[ValidationPair], family: Family | None = None) -> Trace:
        """A trace of a pipeline or a denoiser that looks at what the plan says, at the regions of these pairs."""
        choice, plan = self.choice or Choice(), self.plan
        if plan.budget is not None and choice.heads is not None:
            plan = replace(plan, budget=None, layers=tuple(choice.heads))
        if self._takes("loss_fn"):  # called at the plan's noise times, with no sampler that steps could be drawn from
            plan = replace(plan, budget=None, sampler_steps=None)
        return (self.make_trace or trace)(
            pipeline,
            plan=plan,
            family=family or self.family,
            mask=[p.region for p in pairs],
            reference_mask=_all_or_none([p.reference_region for p in pairs]),
            heads=choice.heads,
            steps=choice.times,
        )

    def family_of(self, pipeline: Any) -> Family:
        """The family given, or the one found from the model."""
        return self.family or find_family(pipeline, find_denoiser(pipeline))

    def _takes(self, way: WayName) -> bool:
        return self.chosen is not None and self.chosen.name == way

    def _heads_of(self, pipeline: Any) -> int | None:
        """How many (layer, head) pairs the plan's layers have, or None when the modules do not say."""
        modules = self.family_of(pipeline).layers(find_denoiser(pipeline))
        counts = [getattr(m, "heads", None) for n, m in modules.items() if self.plan.looks_at(n)]
        known = [c for c in counts if c is not None]
        return sum(known) if len(known) == len(counts) else None

    def _sampled(self, observation: Observation) -> Sampled:
        choice = self.choice or Choice()
        return Sampled(
            steps=self.steps_stood_for(observation),
            heads=choice.draws_heads,
            times=choice.times is not None,
            spread=choice.spread,
        )

    def steps_stood_for(self, observation: Observation) -> int:
        """How many steps the looked-at ones stand for; noise times of the teacher-forced way are a sample of very many."""
        return observation.maps.total_steps if self._takes("sampling") else 10**6


def _all_or_none(masks: list[np.ndarray | None]) -> list[np.ndarray] | None:
    return None if any(m is None for m in masks) else masks  # type: ignore[return-value]
