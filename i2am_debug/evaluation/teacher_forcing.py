"""The way of teacher forcing: pairs are seen in a few forwards of the pipeline's own call on their noised truth.

Needs nothing but a pipeline and pairs. The pipeline's scheduler is replaced for the time of a call (`forced_scheduler`), which
gives the denoising loss, the same with another reference and with a blank one, and the attention on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ..capture.maps import AttributionMaps
from ..capture.sampler_steps import scheduler_name
from ..errors import CannotForce
from ..figures.observation import Observation, maps_of
from ..figures.values import Figure, Undefined, as_figure
from ..pairs.pair import ValidationPair
from .call_arguments import picture_size
from .calls import default_call, picture_of
from .forced_scheduler import Finished, ForcedDiffusion, ForcedFlow, forced_scheduler
from .noise_times import noise_times, over_times, times_of_a_gap, weights
from .probes import PREDICTIONS, What, probe
from .prompts import prompts_encoded_once
from .references import Colour, blank_colour, blank_reference, with_reference, wrong_references
from .truth import encoded, read_off_the_reference

if TYPE_CHECKING:
    from .evaluator import Evaluator

_NOISE_TIMES = 10  # where the plan does not say how many
_NOT_FINITE = "the loss is not finite"
_BLANK_OF_EVERY = 2
"""A blank reference is tried with one pair of so many: it costs forwards, and its mean is what is asked for."""
_NOT_TRIED = "a blank reference is tried with every second pair"


def observe_by_teacher_forcing(evaluator: Evaluator, pipeline: Any, batch: Sequence[int]) -> list[Observation]:
    """Runs the pairs of one batch through the pipeline's call, capturing that with the right reference.

    Raises:
        CannotForce: the call can't be teacher-forced; says why.
    """
    pairs = [evaluator.pairs[i] for i in batch]
    times = noise_times(evaluator.plan.sampler_steps or _NOISE_TIMES)
    few = times_of_a_gap(times)
    with _forced(pipeline) as scheduler, prompts_encoded_once(pipeline):
        forced = _ForcedCall(evaluator, pipeline, scheduler, batch, pairs)
        forced.read_truth()
        draws = any(i < evaluator.pictures for i in batch)
        with evaluator.trace(pipeline, pairs) as t:
            own, pictures = forced.run(pairs, times, picture_from=min(1, len(times) - 1) if draws else None)
        by_place = scheduler.loss_by_place(weights(times))
        others = wrong_references(evaluator.pairs, batch)
        changed = [with_reference(p, o) for p, o in zip(pairs, others, strict=True) if not isinstance(o, Undefined)]
        other = forced.run(changed, [times[n] for n in few])[0] if len(changed) == len(pairs) else None
        blank = _blank_losses(forced, batch, pairs, [times[n] for n in few], every=evaluator.in_step)
    loss = over_times(torch.tensor(weights(times)), own)
    share = torch.tensor(weights([times[n] for n in few]))

    def worse(losses: torch.Tensor | None, row: int, reason: str) -> Any:
        """The mean loss over all times plus by how much it was higher at those that were tried."""
        if losses is None:
            return Undefined(reason)
        return as_figure(float(loss[row] + over_times(share, (losses - own[few])[:, row])), _NOT_FINITE)

    observations = []
    for row, index in enumerate(batch):
        maps, further = maps_of(t, row)
        reason = next((o.reason for o in others if isinstance(o, Undefined)), "")
        observations.append(
            Observation(
                index=index,
                maps=maps,
                further=further,
                generated=pictures[row] if pictures and index < evaluator.pictures else None,
                painted=f"predicted in one step from {times[min(1, len(times) - 1)]:.0%} noise",
                loss=as_figure(float(loss[row]), _NOT_FINITE),
                **_loss_map(by_place, row, maps),
                wrong_reference_loss=worse(other, row, reason),
                no_reference_loss=worse(blank if index % _BLANK_OF_EVERY == 0 else None, row, _NOT_TRIED),
            )
        )
    return observations


def probe_by_teacher_forcing(evaluator: Evaluator, pipeline: Any, batch: Sequence[int]) -> list[dict[str, Figure]]:
    """The losses of the pairs of one batch, changed, at the two noise times that a gap is measured at; and those of the
    unchanged ones, their predictions taken for something else."""
    times = noise_times(evaluator.plan.sampler_steps or _NOISE_TIMES)
    few = [times[n] for n in times_of_a_gap(times)]
    share = torch.tensor(weights(few))
    taken_for: dict[str, list[Figure]] = {}

    def figures(by_time: torch.Tensor) -> list[Figure]:
        return [as_figure(float(loss), _NOT_FINITE) for loss in over_times(share, by_time)]

    with _forced(pipeline) as scheduler, prompts_encoded_once(pipeline):
        own = _ForcedCall(evaluator, pipeline, scheduler, batch, [evaluator.pairs[i] for i in batch])
        own.read_truth()

        def losses(changed: list[ValidationPair], what: What) -> list[Figure]:
            forced = own
            if what == "target":
                forced = _ForcedCall(evaluator, pipeline, scheduler, batch, changed)
                forced.read_truth()
            by_time = forced.run(changed, few)[0]
            if what == "nothing":
                taken_for.update({kind: figures(loss) for kind, loss in scheduler.losses_if_it_predicts(PREDICTIONS)})
            return figures(by_time)

        found = probe(evaluator.pairs, batch, losses)
    for kind, column in taken_for.items():
        for row, loss in zip(found, column, strict=True):
            row[f"as_{kind}"] = loss
    return found


def _loss_map(by_place: torch.Tensor | str, row: int, maps: AttributionMaps) -> dict[str, Any]:
    """`Observation.loss_map` of one pair, or why there is none; packed latents lie on the grid of the generated tokens."""
    if isinstance(by_place, str):
        return {"no_loss_map": by_place}
    own, grid = by_place[row], maps.r2g.unified.shape
    if own.ndim == 1 and len(own) != grid[0] * grid[1]:
        return {"no_loss_map": f"the loss is of {len(own)} tokens, the generated grid has {grid[0]}×{grid[1]}"}
    return {"loss_map": (own.reshape(grid) if own.ndim == 1 else own).numpy()}


def check_teacher_forcing(evaluator: Evaluator, pipeline: Any) -> None:
    """Tries a call at two noise times, of the first pair of each combination of sizes.

    Raises:
        CannotForce: the call can't be teacher-forced; says why.
    """
    of_sizes: dict[Any, tuple[int, ValidationPair]] = {}
    for index, pair in enumerate(evaluator.pairs):
        of_sizes.setdefault((pair.target.size, pair.reference.size, len(pair.further_references)), (index, pair))
    with torch.no_grad(), _forced(pipeline) as scheduler:
        for index, pair in of_sizes.values():
            forced = _ForcedCall(evaluator, pipeline, scheduler, [index], [pair])
            forced.read_truth()
            try:
                forced.run([pair], noise_times(2))
            except CannotForce as error:
                where = f"pair {pair.name!r}: " if len(of_sizes) > 1 else ""
                raise CannotForce(f"{where}{error}") from None


def _blank_losses(
    forced: _ForcedCall, batch: Sequence[int], pairs: Sequence[ValidationPair], times: Sequence[float], *, every: bool
) -> torch.Tensor:
    """(times, B) with a blank reference; NaN for the pairs that it is not tried with. `every`: for the sake of equal forwards
    it is tried with all; what is made of the losses is the same."""
    losses = torch.full((len(times), len(batch)), torch.nan)
    rows = [row for row, index in enumerate(batch) if every or index % _BLANK_OF_EVERY == 0]
    if rows:
        blank = [with_reference(pairs[row], blank_reference(pairs[row], forced.blank_colour)) for row in rows]
        losses[:, rows] = forced.of_rows(rows).run(blank, times)[0]
    return losses


class _ForcedCall:
    """One batch of pairs, and how its pipeline is called."""

    def __init__(
        self,
        evaluator: Evaluator,
        pipeline: Any,
        scheduler: ForcedDiffusion | ForcedFlow,
        batch: Sequence[int],
        pairs: Sequence[ValidationPair],
    ) -> None:
        self._evaluator, self._pipeline, self._scheduler = evaluator, pipeline, scheduler
        self._batch, self._pairs = batch, pairs
        self._latents: torch.Tensor | None = None
        self._read: torch.Tensor | None = None

    @cached_property
    def blank_colour(self) -> Colour:
        """Of the picture that is no reference to this model."""
        return blank_colour(self._pipeline, self._evaluator.family_of(self._pipeline))

    def read_truth(self) -> None:
        """What the pipeline makes of the targets as references, in a call that ends at the first denoiser input."""
        evaluator = self._evaluator
        if evaluator.encode is None and evaluator.call is None:
            self._scheduler.force([1.0], self._truth, None)
            targets = [with_reference(pair, pair.target) for pair in self._pairs]
            family = evaluator.family_of(self._pipeline)
            self._read = read_off_the_reference(self._pipeline, family, lambda: self._call(targets))

    def of_rows(self, rows: Sequence[int]) -> _ForcedCall:
        """The same for some of the batch's pairs."""
        batch, pairs = [self._batch[row] for row in rows], [self._pairs[row] for row in rows]
        some = _ForcedCall(self._evaluator, self._pipeline, self._scheduler, batch, pairs)
        some._latents = None if self._latents is None else self._latents[list(rows)]
        return some

    def run(
        self, pairs: Sequence[ValidationPair], times: Sequence[float], picture_from: int | None = None
    ) -> tuple[torch.Tensor, list[Image.Image] | None]:
        """Losses (times, B) on the CPU, and the pictures made of the prediction at time number `picture_from`."""
        self._scheduler.force(times, self._truth, picture_from)
        output = None
        try:
            output = self._call(pairs)
        except Finished:
            if hasattr(self._pipeline, "maybe_free_model_hooks"):
                self._pipeline.maybe_free_model_hooks()  # the call was left before it came to that
        losses = self._scheduler.losses
        if len(losses) < len(times) or len(losses[0]) != len(pairs):
            seen = f"{len(losses)} of {len(times)} noise times" if losses else "no step of the scheduler"
            raise CannotForce(
                f"a call of {len(pairs)} pairs showed {seen}, of {len(losses[0]) if losses else 0} pictures"
            )
        pictures = None if output is None else [picture_of(output, row) for row in range(len(pairs))]
        return torch.stack(losses).cpu(), pictures

    def _call(self, pairs: Sequence[ValidationPair]) -> Any:
        """As the user or the pipeline's class wants it; the noise of a pair is the same in all calls."""
        generators = [torch.Generator().manual_seed(self._evaluator.seed + index) for index in self._batch]
        if self._evaluator.call is not None:
            return self._evaluator.call(self._pipeline, pairs[0], generators[0])
        steps, size = len(self._scheduler.times), self._evaluator.size
        return default_call(self._pipeline, steps, size=size, plain=True).batch(self._pipeline, pairs, generators)

    def _truth(self, sample: torch.Tensor) -> torch.Tensor:
        """(B, …) in the layout of the pipeline's latents; made when a call first asks for it, kept for the others."""
        if self._latents is None:
            self._latents = self._made(sample)
        return self._latents

    def _made(self, sample: torch.Tensor) -> torch.Tensor:
        evaluator, pipeline = self._evaluator, self._pipeline
        if evaluator.encode is not None:
            said = torch.cat([evaluator.encode(pipeline, pair) for pair in self._pairs])
            if said.shape != sample.shape:
                raise CannotForce(
                    f"encode= gave {tuple(said.shape)} for {len(self._pairs)} pairs, the pipeline's latents are "
                    f"{tuple(sample.shape)}: it must return a pair's target in their layout, (1, …)"
                )
            return said
        if self._read is not None and self._read.shape[1:] == sample.shape[1:]:
            return self._read
        sizes = [picture_size(pipeline, pair, evaluator.size) for pair in self._pairs]
        return torch.cat([encoded(pipeline, p, size, sample) for p, size in zip(self._pairs, sizes, strict=True)])


@contextmanager
def _forced(pipeline: Any) -> Iterator[ForcedDiffusion | ForcedFlow]:
    """The pipeline with a forced scheduler in place of its own, which is put back whatever happens."""
    name = scheduler_name(pipeline)
    if name is None:
        raise CannotForce(
            f"{type(pipeline).__name__} has no scheduler, or several and none under a usual name: scheduler, noise_scheduler"
        )
    own = getattr(pipeline, name)
    forced = forced_scheduler(own)
    pipeline.__dict__[name] = forced  # not by setattr, which would write the class into the pipeline's configuration
    try:
        yield forced
    finally:
        pipeline.__dict__[name] = own
