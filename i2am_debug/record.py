"""The figures of one evaluation: what is stored, compared and reported. Knows no model, no picture; imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FORMAT = 1
"""Version of the stored form. A reader refuses a higher one."""


@dataclass(frozen=True)
class Undefined:
    """Stands where a figure has no value, and says why."""

    reason: str

    def __str__(self) -> str:
        return f"undefined: {self.reason}"


Figure = float | Undefined
"""A finite number, or why there is none."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one look at all validation pairs found.

    `figures` holds one value a pair under each tag, in the order of `pairs`. Tags are those of TensorBoard without the
    leading "i2am/", such as "imacs_g" or "layer/up_blocks.1.attentions.1/imacs_r".
    """

    global_step: int
    pairs: tuple[str, ...]
    figures: Mapping[str, tuple[Figure, ...]]
    errors: Mapping[str, tuple[Figure, ...]]
    """Standard errors from looking at some of the sampler steps only, for the figures that have one."""
    layers: tuple[str, ...]
    copying_layer: str | Undefined
    """The layer with the highest attention information (mean over pairs) in this evaluation."""
    reference_lines: Mapping[str, Mapping[str, float]]
    """Score tag → "constant", "random", "blob", "perfect": what maps without a model score on these pairs."""
    fingerprint: Mapping[str, Any]
    """All that the figures depend on beside the weights. Evaluations that differ here are not comparable."""
    heads: Mapping[str, Mapping[int, float]] | None = None
    """The (layer, head) pairs that a pilot chose, with weights; None where all were looked at."""
    seconds: float = field(default=0.0, compare=False)
    """Wall time it took."""

    def mean(self, tag: str) -> Figure:
        """Mean of a figure over the pairs that have it; undefined when none has, or the tag is unknown."""
        values = self.figures.get(tag)
        if values is None:
            return Undefined("not recorded")
        numbers = [v for v in values if not isinstance(v, Undefined)]
        if not numbers:
            reasons = sorted({v.reason for v in values if isinstance(v, Undefined)})
            return Undefined("; ".join(reasons) or "no pairs")
        return float(np.mean(numbers))

    def values(self, tag: str) -> np.ndarray:
        """(pairs,) float64 of a figure, NaN where it is undefined or the tag is unknown."""
        values = self.figures.get(tag, [Undefined("not recorded")] * len(self.pairs))
        return np.array([math.nan if isinstance(v, Undefined) else v for v in values], dtype=float)

    def to_json(self) -> dict[str, Any]:
        """Plain values for one line of JSON."""
        return {
            "format": FORMAT,
            "global_step": self.global_step,
            "pairs": list(self.pairs),
            "figures": {k: [figure_to_json(v) for v in vs] for k, vs in self.figures.items()},
            "errors": {k: [figure_to_json(v) for v in vs] for k, vs in self.errors.items()},
            "layers": list(self.layers),
            "copying_layer": figure_to_json(self.copying_layer),
            "reference_lines": {k: dict(v) for k, v in self.reference_lines.items()},
            "fingerprint": dict(self.fingerprint),
            "heads": None
            if self.heads is None
            else {layer: {str(h): w for h, w in heads.items()} for layer, heads in self.heads.items()},
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Evaluation:
        """The inverse of `to_json`."""
        heads = row["heads"]
        return cls(
            global_step=row["global_step"],
            pairs=tuple(row["pairs"]),
            figures={k: tuple(map(figure_from_json, vs)) for k, vs in row["figures"].items()},
            errors={k: tuple(map(figure_from_json, vs)) for k, vs in row["errors"].items()},
            layers=tuple(row["layers"]),
            copying_layer=figure_from_json(row["copying_layer"]),
            reference_lines=row["reference_lines"],
            fingerprint=row["fingerprint"],
            heads=None if heads is None else {la: {int(h): w for h, w in hs.items()} for la, hs in heads.items()},
            seconds=row["seconds"],
        )


def differences(ours: Evaluation, theirs: Evaluation) -> dict[str, tuple[Any, Any]]:
    """What two evaluations' figures depend on and do not share: name → (ours, theirs); empty when they are comparable."""
    a, b = _flat(ours.fingerprint), _flat(theirs.fingerprint)
    unlike = [k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k) or (k in a) != (k in b)]
    return {k: (a.get(k), b.get(k)) for k in unlike}


def figure_to_json(value: Any) -> Any:
    """A number or a name as it is, an `Undefined` as an object with its reason."""
    return {"undefined": value.reason} if isinstance(value, Undefined) else value


def figure_from_json(value: Any) -> Any:
    """The inverse of `figure_to_json`."""
    return Undefined(value["undefined"]) if isinstance(value, Mapping) else value


def as_figure(value: float, reason: str = "not a finite number") -> Figure:
    """A finite number as a float, anything else as undefined."""
    return float(value) if math.isfinite(value) else Undefined(reason)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            out.update(_flat(value, f"{prefix}{key}."))
        else:
            out[prefix + key] = json.loads(
                json.dumps(value)
            )  # one side may have been stored, which turns tuples to lists
    return out
