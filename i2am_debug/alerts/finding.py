"""What one rule says of one evaluation, and what an evaluation must offer to be judged. Plain values; judges nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from ..figures.estimates import Estimate
from ..figures.stored_form import Read, entry, finite_or_none, listed, one_of, optional, text, truth, whole_number
from ..figures.values import Figure
from .rule import KINDS, SEVERITIES, Severity


class Judged(Protocol):
    """What is judged: an `Evaluation`, or one line of a store's index that reads its file when it must."""

    @property
    def global_step(self) -> int: ...
    def mean(self, tag: str) -> Figure:
        """Mean over the pairs."""
        ...

    def values(self, tag: str) -> np.ndarray:
        """(pairs,) with NaN where undefined."""
        ...

    def reasons(self, tag: str, among: Sequence[bool] | None = None) -> tuple[str, ...]:
        """Why values are undefined, of all pairs or of some."""
        ...


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one rule says of one evaluation."""

    rule: str
    kind: str
    severity: Severity
    figure: str
    """Tag of the figure, the copying layer's by its own name."""
    fired: bool = False
    unjudged: str | None = None
    """Why the rule could not be applied."""
    against: str = ""
    """What it was compared with, in words."""
    before: Estimate | None = None
    now: Estimate | None = None
    change: Estimate | None = None
    """Mean over pairs of how much worse each became; positive is worse."""
    allowed: float | None = None
    """How much worse it may become, or the limit, in the figure's units."""
    p: float | None = None
    """One-sided, of the paired sign-flip test; None where there were too few pairs for one."""
    pairs: tuple[str, ...] = ()
    """The pairs most to blame, worst first, at most three."""
    since: int | None = None
    """The evaluation from which on it has been so without a break."""
    words: str = ""
    """What happened, where the numbers alone don't say it."""

    def __str__(self) -> str:
        if self.unjudged is not None:
            return f"{self.figure}: not judged, {self.unjudged}"
        if self.words:
            return f"{self.figure} {self.words}"
        if self.kind == "undefined":
            return f"{self.figure}: every pair that had a value has one"
        if self.change is None or self.allowed is None:
            return f"{self.figure}: {self.now}, {self.against}"
        sure = f"p {p_in_words(self.p)}" if self.p is not None else "too few pairs for a test"
        level = abs(self.before.mean) if self.before else 0.0
        change, allowed = (
            f"{x:.3g}" + (f" ({x / level:.0%})" if level else "") for x in (abs(self.change.mean), self.allowed)
        )
        way = "worse" if self.change.mean >= 0 else "better"
        return (
            f"{self.figure}: {self.before} → {self.now}, {way} by {change}, allowed {allowed}; "
            f"{sure}, {self.change.pairs} pairs; against the {self.against}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Any, where: str = "a finding") -> Finding:
        """The inverse of `to_json`.

        Raises:
            ValueError: it has another form; names `where` it stands.
        """
        known = {key: entry(row, key, read, where) for key, read in _STORED.items()}
        if unknown := sorted(set(row) - set(known)):
            raise ValueError(f"{where} has {unknown[0]!r:.100}, which is of no finding")
        return cls(**known)


_STORED: Mapping[str, Read[Any]] = {
    **dict.fromkeys(("rule", "figure", "against", "words"), text),
    **dict.fromkeys(("before", "now", "change"), optional(Estimate.from_json)),
    **dict.fromkeys(("allowed", "p"), finite_or_none),
    "kind": one_of(KINDS),
    "severity": one_of(SEVERITIES),
    "fired": truth,
    "unjudged": optional(text),
    "pairs": listed(text),
    "since": optional(whole_number),
}


def p_in_words(p: float) -> str:
    """As it follows the letter p."""
    return f"= {p:.2g}" if p >= 0.001 else "< 0.001"
