"""The figures of one evaluation: what is stored, compared and reported. Knows no model, no picture; imports no torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .declaration import DeclaredFigure
from .estimates import Estimate, estimates
from .margin import Margin
from .sampling_error import SamplingError, Spread
from .stored_form import entry, finite_or_none, listed, mapped, number, optional, plain, text, whole_number, wrong
from .values import OF_FURTHER, Figure, Undefined, as_figure, figure_from_json, figure_to_json, name_from_json

FORMAT = 1
"""Version of the stored form. A reader refuses a higher one."""

_SHORT = 60  # characters of a value in an error
_TOLD = 8  # differences named in an error


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
    """Standard errors from looking at some of the heads and sampler steps only, for the figures that have one."""
    layers: tuple[str, ...]
    copying_layer: str | Undefined
    """The layer with the highest attention information (mean over pairs) in this evaluation."""
    watched_layer: str | None = None
    """The baseline's copying layer, which the figures "copying_layer/…" and the finest rows are of."""
    reference_lines: Mapping[str, Mapping[str, float]]
    """Score tag → "constant", "random", "blob", "perfect": what maps without a model score on these pairs."""
    fingerprint: Mapping[str, Any]
    """All that the figures depend on beside the model. Evaluations that differ here are not comparable."""
    heads: Mapping[str, Mapping[int, float]] | None = None
    """The (layer, head) pairs that a pilot chose, with weights; None where all were looked at."""
    times: tuple[int, ...] | None = None
    """Numbers of the plan's noise times that a budget chose; None where all were looked at."""
    chosen: str = ""
    """What a budget chose and why, in words."""
    spread: Mapping[str, Spread] = field(default_factory=dict)
    """Tag → how much the pilot saw a figure move with other heads and noise times."""
    sampling: Mapping[str, SamplingError | Undefined] = field(default_factory=dict)
    """Tag → standard error of the mean over pairs from looking at some of the heads and sampler steps only."""
    margins: Mapping[str, float | str] = field(default_factory=dict)
    """Of a calibrated baseline: figure → how far it may fall (`margin.Margin`)."""
    declared: Mapping[str, DeclaredFigure] = field(default_factory=dict, compare=False)
    """What the program that made it had registered: tag → what is said of a figure that this package does not know."""
    seconds: float = field(default=0.0, compare=False)
    """Wall time it took."""

    @property
    def comparable_id(self) -> str:
        """Twelve hex digits; evaluations that share them are comparable."""
        flat = {name: _one_kind_of_number(value) for name, value in _depends_on(self).items()}
        text = json.dumps(flat, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def further_references(self) -> tuple[int, ...]:
        """Numbers of the references 1, 2, … that have figures."""
        found = (OF_FURTHER.match(tag) for tag in self.figures)
        return tuple(sorted({int(match[1]) for match in found if match}))

    def mean(self, tag: str) -> Figure:
        """Mean of a figure over the pairs that have it; undefined when none has, or the tag is unknown."""
        values = self.figures.get(tag)
        if values is None:
            return Undefined("not recorded")
        numbers = [v for v in values if not isinstance(v, Undefined)]
        if not numbers:
            return Undefined(self._why(tag))
        with np.errstate(over="ignore"):
            return as_figure(float(np.mean(numbers)), "its mean is beyond what a float holds")

    def estimate(self, tag: str) -> Estimate | Undefined:
        """The mean of a figure with its interval; undefined as `mean` is."""
        mean = self.mean(tag)
        return mean if isinstance(mean, Undefined) else self._estimates([tag])[tag]

    def estimates(self) -> dict[str, Estimate | Undefined]:
        """`estimate` of every figure."""
        known = self._estimates(self.figures)
        return {tag: known[tag] if tag in known else Undefined(self._why(tag)) for tag in self.figures}

    def _estimates(self, tags: Iterable[str]) -> dict[str, Estimate]:
        reach = {tag: found.reach for tag, found in self.sampling.items() if isinstance(found, SamplingError)}
        known = estimates({tag: self.values(tag) for tag in tags})
        return {tag: replace(one, sampling=reach[tag]) if tag in reach else one for tag, one in known.items()}

    def reasons(self, tag: str, among: Sequence[bool] | None = None) -> tuple[str, ...]:
        """Why pairs have no value of a figure, each reason once; `among`: of which pairs, one truth value a pair."""
        values = self.figures.get(tag, [Undefined("not recorded")] * len(self.pairs))
        asked = among if among is not None else [True] * len(values)
        return tuple(
            sorted({v.reason for v, ask in zip(values, asked, strict=True) if ask and isinstance(v, Undefined)})
        )

    def _why(self, tag: str) -> str:
        return "; ".join(self.reasons(tag)) or "no pairs"

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
            "watched_layer": self.watched_layer,
            "reference_lines": {k: dict(v) for k, v in self.reference_lines.items()},
            "fingerprint": dict(self.fingerprint),
            "heads": None
            if self.heads is None
            else {layer: {str(h): w for h, w in heads.items()} for layer, heads in self.heads.items()},
            **({} if self.times is None else {"times": list(self.times)}),
            **({"chosen": self.chosen} if self.chosen else {}),
            "spread": {tag: one.to_json() for tag, one in self.spread.items()},
            "sampling": {
                tag: figure_to_json(one) if isinstance(one, Undefined) else one.to_json()
                for tag, one in self.sampling.items()
            },
            "margins": dict(self.margins),
            "seconds": self.seconds,
            **({"declared": [figure.to_json() for figure in self.declared.values()]} if self.declared else {}),
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Evaluation:
        """The inverse of `to_json`; a figure that is not finite is undefined.

        Raises:
            ValueError: it has another form; names the place.
        """
        pairs = entry(row, "pairs", listed(text))
        if len(set(pairs)) < len(pairs):
            raise ValueError(f"two pairs are named {next(p for p in pairs if pairs.count(p) > 1)!r:.100}")
        lines = entry(row, "reference_lines", mapped(mapped(finite_or_none)))
        declared = listed(DeclaredFigure.from_json)(row.get("declared", ()), "declared")
        return cls(
            global_step=entry(row, "global_step", whole_number),
            pairs=pairs,
            figures=_columns(row, "figures", len(pairs)),
            errors=_columns(row, "errors", len(pairs)),
            layers=entry(row, "layers", listed(text)),
            copying_layer=entry(row, "copying_layer", name_from_json),
            watched_layer=optional(text)(row.get("watched_layer"), "watched_layer"),
            reference_lines={tag: {k: v for k, v in own.items() if v is not None} for tag, own in lines.items()},
            fingerprint=entry(row, "fingerprint", mapped(plain)),
            heads=entry(row, "heads", optional(mapped(_weights))),
            times=optional(listed(whole_number))(row.get("times"), "times"),
            chosen=text(row.get("chosen", ""), "chosen"),
            spread=mapped(Spread.from_json)(row.get("spread", {}), "spread"),
            sampling=mapped(_sampling)(row.get("sampling", {}), "sampling"),
            margins=mapped(_margin)(row.get("margins", {}), "margins"),
            declared={figure.tag: figure for figure in declared},
            seconds=entry(row, "seconds", number),
        )


def _columns(row: Mapping[str, Any], key: str, pairs: int) -> dict[str, tuple[Figure, ...]]:
    """Tag → one value a pair."""
    columns = entry(row, key, mapped(_column))
    for tag, values in columns.items():
        if len(values) != pairs:
            raise ValueError(f"{key}/{tag:.100} has {len(values)} values for {pairs} pairs")
    return columns


def _column(value: Any, where: str) -> tuple[Figure, ...]:
    if isinstance(value, list) and all(type(v) is float and math.isfinite(v) for v in value):
        return tuple(value)  # nearly all of them, so this is most of the time that reading takes
    return listed(figure_from_json)(value, where)


def _weights(value: Any, where: str) -> dict[int, float]:
    """Number of a head → its weight."""
    found = mapped(number)(value, where)
    for head in found:
        if not (head.isascii() and head.isdecimal() and len(head) < 10):
            raise wrong(head, where, "the number of a head")
    return {int(head): weight for head, weight in found.items()}


def _sampling(value: Any, where: str) -> SamplingError | Undefined:
    if isinstance(value, Mapping):
        return Undefined(entry(value, "undefined", text, where))
    return SamplingError.from_json(value, where)


def _margin(value: Any, where: str) -> float | str:
    """As it stands, if it is one."""
    try:
        Margin.parse(value)
    except ValueError as error:
        raise ValueError(f"{where:.100}: {error}") from None
    as_it_stands: float | str = value
    return as_it_stands


def differences(ours: Evaluation, theirs: Evaluation) -> dict[str, tuple[Any, Any]]:
    """What two evaluations' figures depend on and do not share: name → (ours, theirs); empty when they are comparable.

    What one of them does not name, as those of an older version don't, is not shared: nobody knows what it was.
    """
    a, b = _depends_on(ours), _depends_on(theirs)
    unlike = [k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k) or (k in a) != (k in b)]
    apart = {k: (a.get(k), b.get(k)) for k in unlike}
    if "heads" in apart and ours.heads is not None and theirs.heads is not None:
        apart["heads"] = _heads_apart(ours.heads, theirs.heads), _heads_apart(theirs.heads, ours.heads)
    return apart


def cure(unlike: Mapping[str, tuple[Any, Any]]) -> str:
    """What to do about `differences`, where that does not go without saying; else nothing."""
    if "heads" not in unlike:
        return ""
    return "; for the same heads start the run with baseline=FILE, or both with a plan that has heads=None"


def in_words(unlike: Mapping[str, tuple[Any, Any]]) -> str:
    """`differences` as text; long values, such as the hashes of all pairs, shortened, and many differences not all named."""

    def short(ours: Any, theirs: Any) -> tuple[str, str]:
        texts = repr(ours), repr(theirs)
        if max(map(len, texts)) <= _SHORT:
            return texts
        begin = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
        begin = max(0, begin - _SHORT // 2)  # around the first difference
        one, other = (
            f"{'…' if begin else ''}{t[begin : begin + _SHORT]}{'…' if len(t) > begin + _SHORT else ''}" for t in texts
        )
        return one, other

    # Another scheduler has other settings, which goes without saying.
    named = [name for name in unlike if name.rpartition(".")[0] not in unlike]
    told = {name: short(*unlike[name]) for name in named[:_TOLD]}
    if "pairs" in unlike and all(isinstance(hashes, list) for hashes in unlike["pairs"]):
        ours, theirs = (list(map(str, hashes)) for hashes in unlike["pairs"])
        same = len(set(ours) & set(theirs))
        told["pairs"] = f"{len(ours)}", f"{len(theirs)}, {same} of them the same"
    if "heads" in told:
        told["heads"] = unlike["heads"]
    words = [f"{name} ({ours}, was {theirs})" for name, (ours, theirs) in told.items()]
    more = [f"and {len(named) - _TOLD} more"] if len(named) > _TOLD else []
    return "; ".join([*words, *more]) + cure(unlike)


def heads_in_short(heads: Mapping[str, Mapping[int, float]] | None) -> str:
    """A choice of heads in a few words, other ones for another choice."""
    if heads is None:
        return "all"
    said = {layer: {str(head): float(weight) for head, weight in each.items()} for layer, each in heads.items()}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]
    return f"{sum(map(len, heads.values()))} in {len(heads)} layers, {digest}"


def _heads_apart(own: Mapping[str, Mapping[int, float]], other: Mapping[str, Mapping[int, float]]) -> str:
    """How many of `own` the other choice has not, or weights otherwise."""
    apart = [len(each.items() - other.get(layer, {}).items()) for layer, each in own.items()]
    total, layers = sum(map(len, own.values())), sum(count > 0 for count in apart)
    return f"{total} in {len(own)} layers, {sum(apart)} of them, in {layers} layers, not in both"


def _depends_on(evaluation: Evaluation) -> dict[str, Any]:
    """Name → value. What was made before the fingerprint named the heads has them all the same."""
    return _flat({"heads": heads_in_short(evaluation.heads), **evaluation.fingerprint})


def _one_kind_of_number(value: Any) -> Any:
    """Numbers that are equal are written the same: 1, 1.0 and True; 0.0 and -0.0."""
    if isinstance(value, list):
        return [_one_kind_of_number(v) for v in value]
    return float(value) + 0.0 if isinstance(value, (bool, int, float)) else value


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
