"""Whether the package's figures tell a pair of the editing model from one with a wrong reference or a wrong prompt; and what
the model makes of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from i2am_debug.demo.edit.pairs import EditBatch
from i2am_debug.demo.edit.pipeline import TinyEditPipeline
from i2am_debug.evaluation.references import blank_reference
from i2am_debug.figures.values import Undefined
from i2am_debug.pairs.collection import ValidationPairs
from i2am_debug.pairs.pair import ValidationPair

from .edited_patches import other_prompts
from .forced import GREY
from .looked_at import look

FIGURES = {
    "kept_place": "`kept_place`",
    "edited_mass": "`edited_mass`",
    "reference_mass": "`reference_mass`",
    "attention_information": "`attention_information`",
    "loss": "−loss",
}
"""Tag → name in the table; the last, turned so that more is better, is what they are to beat."""
RIGHT, REFERENCE, PROMPT = "right", "another's reference", "another's prompt"
NO_REFERENCE = "no reference tokens"
REGIONS = {
    "kept": "what is kept",
    "recoloured": "the object's place, recoloured",
    "other": "its old and new place, other edits",
}
UNEDITED = "the reference as it is, no model"
SAMPLER_STEPS = 20


def figures_of(
    pipeline: TinyEditPipeline, pairs: ValidationPairs, batch: EditBatch
) -> dict[str, dict[str, np.ndarray]]:
    """`RIGHT`, `REFERENCE` or `PROMPT` → figure → (B,) values, by teacher forcing at the evaluator's own noise times."""
    found = {}
    for name, each in variants(list(pairs), batch).items():
        evaluator, seen = look("edit", ValidationPairs(_with_truly_kept(each, batch)), pipeline)
        columns = evaluator.score(seen, global_step=0, pipeline=pipeline, baseline=None).figures
        found[name] = {tag: (-1 if tag == "loss" else 1) * _numbers(columns[tag]) for tag in FIGURES}
    return found


def variants(pairs: list[ValidationPair], batch: EditBatch) -> dict[str, list[ValidationPair]]:
    """What is told apart: by name, the pairs themselves, with another's reference, with another's prompt."""
    prompts = other_prompts(batch.prompts)
    return {
        RIGHT: pairs,
        REFERENCE: [replace(pair, reference=pairs[i - 1].reference) for i, pair in enumerate(pairs)],
        PROMPT: [replace(pair, prompt=prompt) for pair, prompt in zip(pairs, prompts, strict=True)],
    }


def _with_truly_kept(pairs: list[ValidationPair], batch: EditBatch) -> list[ValidationPair]:
    return [replace(pair, kept=kept) for pair, kept in zip(pairs, batch.kept_B1SS[:, 0].numpy(), strict=True)]


def kept_regions_derived(pairs: list[ValidationPair]) -> int:
    """Of how many pairs the package itself finds what is kept."""
    return sum(pair.with_kept_region().kept is not None for pair in pairs)


def _numbers(column: Sequence[Any]) -> np.ndarray:
    return np.array([np.nan if isinstance(value, Undefined) else value for value in column], dtype=float)


def superiority(right: np.ndarray, wrong: np.ndarray) -> float:
    """Probability that a right pair's value is above a wrong one's, ties counting half; 0.5: not told apart."""
    return float(((right[:, None] > wrong) + 0.5 * (right[:, None] == wrong)).mean())


@torch.no_grad()
def made(pipeline: TinyEditPipeline, pairs: ValidationPairs, batch: EditBatch) -> dict[str, dict[str, np.ndarray]]:
    """What is sampled from → of `REGIONS` → PSNR there, dB, of the pairs that have such a region."""
    references, grey = [pair.reference for pair in pairs], [blank_reference(pair, GREY) for pair in pairs]
    recoloured = np.array([prompt.startswith("recolour") for prompt in batch.prompts])

    def sampled(images: Any, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        pictures = pipeline(
            image=images,
            prompt=list(prompts),
            num_inference_steps=SAMPLER_STEPS,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images
        return psnr(pictures * 2 - 1)

    def psnr(pictures_B3SS: torch.Tensor) -> dict[str, np.ndarray]:
        error = ((pictures_B3SS - batch.target_B3SS) ** 2).mean(1, keepdim=True)
        kept, edited = (
            (10 * torch.log10(4 * inside.sum((1, 2, 3)) / (error * inside).sum((1, 2, 3)))).numpy()
            for inside in (batch.kept_B1SS, ~batch.kept_B1SS)
        )
        return {"kept": kept, "recoloured": edited[recoloured], "other": edited[~recoloured]}

    return {
        RIGHT: sampled(references, batch.prompts),
        REFERENCE: sampled([references[-1], *references[:-1]], batch.prompts),
        "a grey reference": sampled(grey, batch.prompts),
        NO_REFERENCE: sampled(None, batch.prompts),
        PROMPT: sampled(references, other_prompts(batch.prompts)),
        UNEDITED: {name: values for name, values in psnr(batch.reference_B3SS).items() if name != "kept"},  # is exact
    }
