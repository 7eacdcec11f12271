"""What can break, by kind: how an alert calls it, and where to look first. Each has its page in docs/what-broke.md.

Which of them it is, `diagnosis` says; how it shows itself was measured (`signatures.json`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Group = Literal["reference lost", "values", "not the reference", "optimizer", "harmless"]


@dataclass(frozen=True, kw_only=True)
class Cause:
    """One kind of fault."""

    name: str
    """Names it in alerts, reports and in docs/what-broke.md."""
    group: Group
    headline: str
    """What has happened, as the end of "critical: …"."""
    first: str
    """What to look at first."""


CAUSES: dict[str, Cause] = {
    cause.name: cause
    for cause in (
        Cause(
            name="wrong-reference",
            group="reference lost",
            headline="the model unlearns its reference: it seems to be trained on references of other samples",
            first="the loader's pairing, as pictures: does each reference belong to its target (a shuffle, an index off by "
            "one, a cache that went stale)?",
        ),
        Cause(
            name="no-reference",
            group="reference lost",
            headline="the model unlearns its reference: it seems to be trained without one",
            first="the reference tensor that reaches the model: is it zero or blank, or is the dropout of the condition far "
            "above the usual 10 %?",
        ),
        Cause(
            name="misplaced-reference",
            group="reference lost",
            headline="the model copies from the wrong place: references and targets seem mirrored or moved against each other",
            first="augmentations that reference and target do not share (flip, crop, shift), and the order of the reference's "
            "positions",
        ),
        Cause(
            name="reference-weights",
            group="reference lost",
            headline="the way from the reference into the model broke",
            first="the checkpoint and the modules between the reference and the attention (image encoder, projection, to_q, "
            "to_k): loaded, not random, not overwritten, in the optimizer or deliberately frozen?",
        ),
        Cause(
            name="colours",
            group="values",
            headline="the references' colours seem wrong",
            first="the order of the reference's colour channels (RGB or BGR) and colour augmentations that the target does not "
            "share",
        ),
        Cause(
            name="range",
            group="values",
            headline="the references' range or normalisation seems wrong",
            first="the range and normalisation of the reference ([0, 1] or [-1, 1], mean and standard deviation, a scale that "
            "is applied twice)",
        ),
        Cause(
            name="mask",
            group="not the reference",
            headline="the masks seem wrong: the model learns to paint elsewhere",
            first="the masks as pictures, over their targets: inverted, empty, full, shifted, or resized with smoothing?",
        ),
        Cause(
            name="target",
            group="not the reference",
            headline="the targets seem wrong, or what the loss compares with them",
            first="the targets as pictures, and what the loss compares: noise, sample or velocity (prediction_type)?",
        ),
        Cause(
            name="prompt",
            group="not the reference",
            headline="the instructions, not the reference, broke",
            first="the prompts that reach the text encoder: do they belong to their pairs?",
        ),
        Cause(
            name="learning-rate",
            group="optimizer",
            headline="the training diverges: the learning rate seems too high",
            first="learning rate, warm-up, gradient norm and clipping; then resume from before it",
        ),
        Cause(
            name="reordered",
            group="harmless",
            headline="where it looks has changed, what it achieves has not",
            first="what changed the order of the reference's tokens; nothing is lost",
        ),
    )
}
"""In the order in which they are listed; a name is never reused for another kind."""

HEADLINES: dict[Group, str] = {
    "reference lost": "the model unlearns its reference",
    "values": "the values of its references seem wrong",
    "not the reference": "something beside the reference broke",
    "optimizer": "the training diverges",
    "harmless": "where it looks has changed, what it achieves has not",
}
"""What an alert says where the group is clear and the kind is not."""

UNKNOWN = "none of these"
"""In place of a kind, where what is seen is like none of them."""

STALE = Cause(
    name="stale-weights",
    group="not the reference",
    headline="the weights that are evaluated are not those that are trained",
    first="which weights the evaluated pipeline has: a copy made before training, an EMA that is never updated, a learning "
    "rate of 0, no parameter that requires a gradient?",
)
"""Needs no likelihood: every figure of every pair stayed the same to the last bit."""
