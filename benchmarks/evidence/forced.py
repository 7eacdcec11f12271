"""The tiny models, teacher forced at fixed noise: reference tokens go in, the predicted picture comes out, nothing else moves.

Shapes: B pairs, n calls, G generated tokens, R reference tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from i2am_debug.demo.demo_model import demo_model
from i2am_debug.demo.pixel_vae import to_cells
from i2am_debug.evaluation.references import blank_reference
from i2am_debug.families.family import Family
from i2am_debug.families.registry import find_family
from i2am_debug.grids import Grid, region_weight
from i2am_debug.pairs.collection import ValidationPairs

GREY = (127, 127, 127)  # zeros where both models take pictures in
_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Forced:
    """One model and some pairs."""

    pairs: ValidationPairs
    denoiser: nn.Module
    family: Family
    grid: Grid
    """Of the predicted picture."""
    region_BG: torch.Tensor
    """How much of each predicted token lies in the hole, or, of edits, in what they keep."""
    own: torch.Tensor
    """(B, R, C) reference tokens."""
    blank: torch.Tensor
    """The same of a grey picture."""
    other: torch.Tensor
    """The same of the next pair's reference."""
    predict_at_once: Callable[[list[int], torch.Tensor, float], torch.Tensor]
    """`predict` in one call of the denoiser, with whatever hooks and gradients it has."""

    @torch.no_grad()
    def predict(self, of: Sequence[int], tokens: torch.Tensor, share: float) -> torch.Tensor:
        """(n, G, C) the predicted clean picture in [-1, 1] of the pairs `of`, given reference tokens (n, R, C), from the truth
        with this share of the noise times."""
        parts = range(0, len(of), _AT_ONCE)
        return torch.cat(
            [self.predict_at_once(list(of[i : i + _AT_ONCE]), tokens[i : i + _AT_ONCE], share) for i in parts]
        )


def forced(model: str, pairs: ValidationPairs, pipeline: Any = None, noise_seed: int = 0) -> Forced:
    """The shipped model, or a `pipeline` of its kind; of edits the pairs that have a kept region."""
    pipeline = pipeline or demo_model(model).load(device="cpu")
    return (_inpainting if model == "inpainting" else _edit)(pairs, pipeline, noise_seed)


def _noise(clean: torch.Tensor, seed: int) -> torch.Tensor:
    """A pair's is the same whatever pairs are taken with it."""
    generators = (torch.Generator().manual_seed(100_000 * seed + index) for index in range(len(clean)))
    return torch.stack([torch.randn(*clean.shape[1:], generator=generator) for generator in generators])


@torch.no_grad()
def _inpainting(pairs: ValidationPairs, pipeline: Any, noise_seed: int) -> Forced:
    from i2am_debug.demo.inpainting.model import inpainting_condition

    each = list(pairs)
    blanks = [blank_reference(pair, GREY) for pair in each]
    masks = [pair.mask_image for pair in each]
    picture, hole, reference = pipeline.prepare([p.target for p in each], masks, [p.reference for p in each])
    _, _, blank = pipeline.prepare(blanks, masks, blanks)
    condition, clean = inpainting_condition(picture, hole), to_cells(picture)
    own = pipeline.reference_encoder(reference)
    noise = _noise(clean, noise_seed)

    def predict(of: list[int], tokens: torch.Tensor, share: float) -> torch.Tensor:
        times = torch.full((len(of),), round(1000 * share) - 1)
        noisy = pipeline.scheduler.add_noise(clean[of], noise[of], times)
        predicted = pipeline.unet(torch.cat([noisy, condition[of]], 1), times, tokens).sample
        return predicted.flatten(2).transpose(1, 2)

    grid = tuple(clean.shape[-2:])
    return Forced(
        pairs=pairs,
        denoiser=pipeline.unet,
        family=find_family(pipeline, pipeline.unet),
        grid=grid,
        region_BG=region_weight(hole[:, 0], grid),
        own=own,
        blank=pipeline.reference_encoder(blank),
        other=own.roll(-1, 0),
        predict_at_once=predict,
    )


@torch.no_grad()
def _edit(pairs: ValidationPairs, pipeline: Any, noise_seed: int) -> Forced:
    from i2am_debug.demo.edit.model import GRID, predict_velocity, to_tokens
    from i2am_debug.demo.edit.pairs import SIZE

    pairs = ValidationPairs([pair for pair in pairs.with_kept_regions(None) if pair.reference_region is not None])
    each = list(pairs)

    def taken_in(pictures: list[Any]) -> torch.Tensor:
        return to_tokens(pipeline.image_processor.preprocess(pictures, SIZE, SIZE))

    clean, own = taken_in([p.target for p in each]), taken_in([p.reference for p in each])
    words = pipeline.instruction_encoder([p.prompt or "" for p in each])
    noise = _noise(clean, noise_seed)

    def predict(of: list[int], tokens: torch.Tensor, share: float) -> torch.Tensor:
        noisy = (1 - share) * clean[of] + share * noise[of]
        velocity = predict_velocity(pipeline.transformer, words[of], noisy, tokens, torch.full((len(of),), share))
        return noisy - share * velocity

    kept = torch.stack([torch.from_numpy(p.kept).float() for p in each])
    return Forced(
        pairs=pairs,
        denoiser=pipeline.transformer,
        family=find_family(pipeline, pipeline.transformer),
        grid=(GRID, GRID),
        region_BG=region_weight(kept, (GRID, GRID)),
        own=own,
        blank=taken_in([blank_reference(pair, GREY) for pair in each]),
        other=own.roll(-1, 0),
        predict_at_once=predict,
    )
