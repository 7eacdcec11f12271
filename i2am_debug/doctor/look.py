"""A short look at the first pairs: what it shows, and what a whole evaluation would cost."""

from __future__ import annotations

import inspect
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..capture.plan import choose_heads
from ..evaluation.calls import edits_its_reference
from ..evaluation.evaluator import Evaluator
from ..evaluation.memory import peak_memory
from ..evaluation.pilot import Choice
from ..figures.observation import Observation
from ..figures.record import Evaluation
from ..pairs.collection import regions_in_words
from ..report.found import WAYS, counted_regions, figures_found, grids_in_words
from .cards import UTILISATION, Card
from .cures import cure_of_reason
from .findings import Diagnosis, duration, size
from .model import weights_of
from .operations import Operations

SECTION = "a look at the pairs"
COSTS = "what an evaluation costs"
_PACKAGE = Path(__file__).parents[1]
_LONG = 20.0  # seconds of a look that is not repeated
_FEW_STEPS = 2  # of a sampler, where looking is by sampling
_ENOUGH = 8  # pairs
_SIZES = 3  # that are told
_LEAST = 0.1  # seconds on another device: below, it is not arithmetic that takes the time


@dataclass(frozen=True, kw_only=True)
class _Cost:
    """Of looking at one pair."""

    drawn: float
    """Seconds, of the first pairs, of which a picture is made too."""
    plain: float
    """Seconds, of the others."""
    operations: float
    memory: int
    """Bytes by which the peak grew."""
    looked_at: int
    steps: tuple[int, int] | None
    """Sampler steps run, and of a whole call; None where they are not cut short."""

    @property
    def times(self) -> float:
        """How often a whole call takes it."""
        return 1.0 if self.steps is None else self.steps[1] / self.steps[0]

    def seconds(self, pairs: int, drawn: int) -> float:
        """Of looking at so many pairs, and making pictures of the first ones."""
        drawn = min(drawn, pairs)
        return self.times * (self.drawn * drawn + self.plain * (pairs - drawn))


def look(diagnosis: Diagnosis, evaluator: Evaluator, pipeline: Any, card: Card | None) -> None:
    """Checks pairs and call, looks at a few pairs, and adds what was found.

    Raises:
        Exception: whatever the pipeline or its pairs can't do.
    """
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        evaluator.check(pipeline)
    for text in dict.fromkeys(str(one.message) for one in seen if Path(one.filename).is_relative_to(_PACKAGE)):
        diagnosis.find(text)
    observations, cost = _looked(evaluator, pipeline)
    evaluation = evaluator.score(observations, global_step=0, pipeline=pipeline, baseline=None)
    _add_what_was_seen(diagnosis, evaluator, evaluation, observations)
    _add_costs(diagnosis, cost, len(evaluator.pairs), evaluator.pictures)
    if card is not None:
        _add_card(diagnosis, card, cost, len(evaluator.pairs), pipeline)
    _find_limits(diagnosis, evaluator, evaluation)
    _find_what_pairs_lack(diagnosis, evaluator, pipeline)


def _looked(evaluator: Evaluator, pipeline: Any) -> tuple[list[Observation], _Cost]:
    """The first look counts and is of all heads; where it is short, further ones are timed, as an evaluation looks: two each
    of the pairs that a picture is made of and of the others, since a blank reference is tried with every second pair."""
    before, (first, *others) = peak_memory(), evaluator.batches
    drawn, plain = [first, *others[:1]], [batch for batch in others[1:] if min(batch) >= evaluator.pictures][:2]
    with _few_steps(evaluator, pipeline) as steps:
        with Operations() as operations:
            observations, seconds = _timed(evaluator, pipeline, [first])
        heads = choose_heads(
            {la: bits.tolist() for la, bits in observations[0].maps.information.items()}, evaluator.plan
        )
        if evaluator.choice is None and evaluator.plan.budget is None and heads is not None:
            evaluator.choice = Choice(heads=heads)
        own = without = seconds / len(first)
        if seconds < _LONG:
            observations, seconds = _timed(evaluator, pipeline, drawn)
            own = without = seconds / len(observations)
            if plain:
                more, seconds = _timed(evaluator, pipeline, plain)
                observations, without = [*observations, *more], seconds / len(more)
    return observations, _Cost(
        drawn=own,
        plain=without,
        operations=operations.count / len(first),
        memory=peak_memory() - before,
        looked_at=len(observations),
        steps=steps,
    )


def _timed(evaluator: Evaluator, pipeline: Any, batches: Sequence[Sequence[int]]) -> tuple[list[Observation], float]:
    begin = time.perf_counter()
    observations = [one for batch in batches for one in evaluator.observe(pipeline, batch)]
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return observations, time.perf_counter() - begin


@contextmanager
def _few_steps(evaluator: Evaluator, pipeline: Any) -> Iterator[tuple[int, int] | None]:
    """Sampling is cut to a few steps, whose cost tells that of all; yields both numbers, or None where it is not."""
    wanted = total = evaluator.num_inference_steps
    by_default = evaluator.chosen is not None and evaluator.chosen.name == "sampling" and evaluator.call is None
    if by_default and total is None:
        parameter = inspect.signature(type(pipeline).__call__).parameters.get("num_inference_steps")
        total = getattr(parameter, "default", None)
    if not by_default or not isinstance(total, int) or total <= _FEW_STEPS:
        yield None
        return
    evaluator.num_inference_steps = _FEW_STEPS
    try:
        yield _FEW_STEPS, total
    finally:
        evaluator.num_inference_steps = wanted


def _add_what_was_seen(
    diagnosis: Diagnosis, evaluator: Evaluator, evaluation: Evaluation, observations: Sequence[Observation]
) -> None:
    maps, way = observations[0].maps, evaluator.chosen
    assert way is not None
    there, missing = figures_found(evaluation)
    diagnosis.add(SECTION, "pairs", f"{len(evaluator.pairs)}, {len(observations)} of them looked at")
    diagnosis.add(SECTION, "way", WAYS[way.name] + (f"; not by teacher forcing: {way.instead}" if way.instead else ""))
    diagnosis.add(SECTION, "sizes", _sizes_in_words(evaluator.sizes))
    diagnosis.add(SECTION, "regions", counted_regions(regions_in_words(evaluator.pairs)))
    if evaluator.of_masks:
        diagnosis.add(SECTION, "masks", evaluator.of_masks)
    diagnosis.add(SECTION, "tokens", grids_in_words(maps))
    by_layer: dict[str, list[str]] = {}
    for layer, of_layer in maps.r2g.by_layer.items():
        by_layer.setdefault("×".join(map(str, of_layer.shape)), []).append(layer)
    diagnosis.add(SECTION, "layers' grids", ", ".join(f"{grid} in {len(layers)}" for grid, layers in by_layer.items()))
    looked_at = sum(map(len, maps.heads.values()))
    diagnosis.add(
        SECTION, "heads looked at", f"{looked_at} ({'all' if evaluation.heads is None else 'chosen by a pilot'})"
    )
    diagnosis.add(SECTION, "copying layer", str(evaluation.copying_layer))
    if len(observations[0].further):
        diagnosis.add(SECTION, "references", f"{1 + len(observations[0].further)} a pair")
    diagnosis.add(SECTION, "figures", "; ".join(there) or "none")
    for reason, titles in missing.items():
        diagnosis.add("figures without a value", reason, "; ".join(titles))


def _add_costs(diagnosis: Diagnosis, cost: _Cost, pairs: int, pictures: int) -> None:
    whole = cost.seconds(pairs, pictures)
    scaled = "" if cost.steps is None else f", taken from {cost.steps[0]} of {cost.steps[1]} sampler steps"
    diagnosis.add(
        COSTS,
        "here",
        f"{duration(whole)} for all {pairs} pairs, {duration(whole / pairs)} a pair (measured on {cost.looked_at}{scaled}); "
        "the first one of a run some more",
    )
    diagnosis.add(COSTS, "memory here", f"{size(cost.memory)} above what was held at most before")
    diagnosis.add(COSTS, "operations", f"{cost.operations * cost.times / 1e12:.3g} × 10^12 a pair")
    diagnosis.add(COSTS, "in training", "budget=0.02 spaces evaluations so that they take 2 % of the time")


def _add_card(diagnosis: Diagnosis, card: Card, cost: _Cost, pairs: int, pipeline: Any) -> None:
    seconds, weights = card.seconds(cost.operations * cost.times * pairs), weights_of(pipeline)
    room = "; the weights alone don't fit" if weights > card.gibibytes * 2**30 else ""
    takes = f"about {duration(seconds)}" if seconds >= _LEAST else f"less than {_LEAST} s"
    diagnosis.add(
        COSTS,
        f"on {card.name}",
        f"{takes} for all pairs, if {UTILISATION:.0%} of its {card.teraflops:g} × 10^12 operations a second (half precision) "
        f"are reached: small models and pictures reach much less; weights {size(weights)} of {card.gibibytes} GiB{room}",
    )


def _find_limits(diagnosis: Diagnosis, evaluator: Evaluator, evaluation: Evaluation) -> None:
    pairs, way = len(evaluator.pairs), evaluator.chosen
    if pairs < _ENOUGH:
        diagnosis.find(
            f"{pairs} pairs: a fall can't be told from noise, and check calls fewer than {_ENOUGH} not comparable",
            f"at least {_ENOUGH} pairs",
        )
    if way is not None and way.instead:
        diagnosis.find(
            f"pairs have to be sampled, which is slow and has no loss: {way.instead}",
            "what the reason names, or a loss_fn (docs/training-loops.md); size= and num_inference_steps= make it cheaper",
        )
    for cure, (reason, titles) in _by_cure(figures_found(evaluation)[1]).items():
        diagnosis.find(f"{reason}: without a value are {'; '.join(titles)}", cure)


def _find_what_pairs_lack(diagnosis: Diagnosis, evaluator: Evaluator, pipeline: Any) -> None:
    parameters = inspect.signature(type(pipeline).__call__).parameters
    takes_prompt = evaluator.call is None and evaluator.loss_fn is None and "prompt" in parameters
    if takes_prompt and len(evaluator.without_prompt) == len(evaluator.pairs):  # of some the evaluator itself warns
        diagnosis.find(
            f"no pair has a prompt, and {type(pipeline).__name__} takes one: they are called with an empty one",
            "prompt in metadata.jsonl (prompt= of a ValidationPair)",
        )
    unlike = sum(
        target[0] * reference[1] != target[1] * reference[0] and region not in ("hole", "kept: given")
        for (target, reference), region in zip(evaluator.sizes, regions_in_words(evaluator.pairs), strict=True)
    )
    if unlike and edits_its_reference(pipeline):
        diagnosis.find(
            f"target and reference of {unlike} pairs have unlike shapes: the reference is stretched to the target's where the "
            "two are compared, so that what is kept is found in the wrong place",
            "a reference of the target's shape; or kept_mask_file_name in metadata.jsonl (kept=), what is kept",
        )


def _sizes_in_words(sizes: Sequence[tuple[tuple[int, int], tuple[int, int]]]) -> str:
    """ "target 512×512, reference 256×256 (of 14 pairs); …", the most frequent first."""
    words = [
        f"target {target[0]}×{target[1]}, reference {reference[0]}×{reference[1]} (of {count} pairs)"
        for (target, reference), count in Counter(sizes).most_common()
    ]
    return "; ".join([*words[:_SIZES], *(["…"] if len(words) > _SIZES else [])])


def _by_cure(missing: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, list[str]]]:
    """Cure → the first reason that it helps against, and all figures that lack."""
    found: dict[str, tuple[str, list[str]]] = {}
    for reason, titles in missing.items():
        cure = cure_of_reason(reason)
        if cure is not None:
            found.setdefault(cure, (reason, []))[1].extend(titles)
    return found
