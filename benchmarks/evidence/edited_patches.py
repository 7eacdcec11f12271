"""Where the rows of the editing model look (SRAM), patch by patch, beside where each patch of the target is known to come from.

Shapes: B pairs, G patches of the generated picture, R of the reference; both 8×8, of 4×4 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from i2am_debug import CapturePlan, trace
from i2am_debug.demo.edit.model import GRID, TOKEN_CHANNELS, predict_velocity, to_tokens
from i2am_debug.demo.edit.pairs import SIZE, EditBatch
from i2am_debug.demo.edit.pipeline import TinyEditPipeline

ALL = "all layers"
PATCHES = GRID**2
_PIXELS = SIZE // GRID  # along a patch's side

KEPT = "what is kept"
MOVED = "moved object, at its new place"
UNCOVERED = "moved object, where it was"
KINDS = (
    KEPT,
    "recoloured object",
    MOVED,
    UNCOVERED,
    "replaced object",
    "removed object, where it was",
)


def patches_of_each_kind(batch: EditBatch) -> dict[str, np.ndarray]:
    """Kind of patch → (B, G) bool. A kept patch has no pixel of the object's old or new place, an object's at least half."""
    old, new = object_shares(batch.reference_object_B1SS), object_shares(batch.target_object_B1SS)
    verbs = np.array([prompt.split()[0] for prompt in batch.prompts])[:, None]
    there, left = new >= 0.5, (old >= 0.5) & (new < 0.5)
    found = (
        object_shares(batch.kept_B1SS) == 1,
        there & (verbs == "recolour"),
        there & (verbs == "move"),
        left & (verbs == "move"),
        there & (verbs == "replace"),
        left & (verbs == "remove"),
    )
    return dict(zip(KINDS, found, strict=True))


def object_shares(mask_B1SS: torch.Tensor) -> np.ndarray:
    """(B, G) how much of each patch a mask covers."""
    return F.avg_pool2d(mask_B1SS.float(), _PIXELS).flatten(1).numpy()


def sources(batch: EditBatch) -> np.ndarray:
    """(B, G) the reference's patch that an object's patch of the target shows; -1 outside the picture.

    Objects move by whole patches, the others stay.
    """
    own = np.stack(np.divmod(np.arange(PATCHES), GRID))[None]
    came_from = own - batch.shift_B2.numpy()[:, ::-1, None] // _PIXELS
    inside = ((came_from >= 0) & (came_from < GRID)).all(1)
    return np.where(inside, came_from[:, 0] * GRID + came_from[:, 1], -1)


@torch.no_grad()
def rows_at(
    pipeline: TinyEditPipeline,
    batch: EditBatch,
    noise_share: float,
    *,
    reference_B3SS: torch.Tensor | None = None,
    prompts: Sequence[str] | None = None,
    noise_seed: int = 0,
) -> tuple[dict[str, np.ndarray], torch.Tensor]:
    """Layer → (B, G, R) rows of G2R, mean over heads, and under `ALL` their mean over layers; and the clean picture (B, G, C)
    that is predicted. Given another `reference_B3SS` or other `prompts`, with those."""
    clean = to_tokens(batch.target_B3SS)
    noise = torch.randn(len(batch), PATCHES, TOKEN_CHANNELS, generator=torch.Generator().manual_seed(noise_seed))
    noisy = (1 - noise_share) * clean + noise_share * noise
    words = pipeline.instruction_encoder(batch.prompts if prompts is None else prompts)
    seen = to_tokens(batch.reference_B3SS if reference_B3SS is None else reference_B3SS)
    with trace(pipeline.transformer, plan=CapturePlan.full()) as looked:
        velocity = predict_velocity(
            pipeline.transformer, words, noisy, seen, torch.full((len(batch),), float(noise_share))
        )
    maps = [looked.maps(index).rows for index in range(len(batch))]
    rows = {layer: np.stack([one.by_layer[layer][1] for one in maps]) for layer in maps[0].by_layer}
    return {**rows, ALL: np.stack([one.unified for one in maps])}, noisy - noise_share * velocity


def other_prompts(prompts: Sequence[str]) -> list[str]:
    """For each the next one that differs."""
    count = len(prompts)
    return [
        next(prompts[(i + n) % count] for n in range(1, count) if prompts[(i + n) % count] != prompt)
        for i, prompt in enumerate(prompts)
    ]


def at(rows_BGR: np.ndarray, places_BG: np.ndarray, counted_BG: np.ndarray) -> np.ndarray:
    """(B,) share of the counted rows with their maximum at these places; NaN where none is counted."""
    return share_of(rows_BGR.argmax(2) == places_BG, counted_BG)


def near(rows_BGR: np.ndarray, places_BG: np.ndarray, counted_BG: np.ndarray) -> np.ndarray:
    """(B,) the same within one patch, in each direction."""
    found, own = (np.stack(np.divmod(places, GRID)) for places in (rows_BGR.argmax(2), places_BG))
    return share_of(np.abs(found - own).max(0) <= 1, counted_BG)


def share_of(values_BG: np.ndarray, counted_BG: np.ndarray) -> np.ndarray:
    """(B,) mean of the counted patches."""
    count = counted_BG.sum(1)
    return np.where(count > 0, (values_BG * counted_BG).sum(1) / np.maximum(count, 1), np.nan)
