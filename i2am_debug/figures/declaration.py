"""What is said of a figure, once: its meaning, unit, direction, margin, needs and chart, and how it is computed.

Plain values; knows no figure by name (`declared` lists them) and imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UndefinedFigure
from .margin import Margin
from .stored_form import entry, finite_or_none, listed, one_of, plain, text, truth, whole_number, wrong

if TYPE_CHECKING:
    import numpy as np

    from .pair_view import PairView

COPYING_LAYER = "copying_layer/"
"""A tag that begins so is of the baseline's copying layer, whichever that is: it is read off "layer/<that one>/…"."""

Worse = Literal["down", "up"]

_TAG = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")
_TAKEN = re.compile(
    r"(layer|copying_layer|interval|reference_lines|reference_\d+|pair_\d+)/.*|pair_\d+|alert(/text)?|undefined|evaluations"
)
"""Tags that mean something else in TensorBoard or in the store."""


class Need(Enum):
    """What must be there for a figure to have a value; the value is how it reads."""

    HOLE = "a mask of the hole, or a kept region"
    OBJECT = "a mask of the object in the reference, or a kept region"
    KEPT = "a kept region"
    SEVERAL_TOKENS = "more than one reference token"
    LOSS = "a loss (every way has one)"
    SECOND_PAIR = "another pair's reference"
    BASELINE = "a baseline"
    PROBES = "probes"
    JOINT_ATTENTION = "reference and other tokens in one attention"
    DECOUPLED_ATTENTION = "decoupled cross-attention"


@dataclass(frozen=True, kw_only=True)
class DeclaredFigure:
    """One figure of a pair.

    Raises:
        ValueError: a tag that can't be one, or an unknown direction.
    """

    tag: str
    """Names it in the store, in rules and, after "i2am/", in TensorBoard."""
    title: str
    """What a person calls it: in the log, on panels and charts."""
    meaning: str
    """One sentence."""
    unit: str = ""
    """"bit", "share of …", …; empty for a pure number."""
    range: tuple[float | None, float | None] = (None, None)
    """The least and the most it can be; None where there is no such bound."""
    worse: Worse = "down"
    """Which way is worse."""
    margin: Margin | float | str | None = None
    """How far its mean may go that way before that is a drop; 0.03, "10%" of the baseline, or None: only a rule knows."""
    needs: tuple[Need, ...] = ()
    compute: Callable[[PairView], float] | None = None
    """Its value for a pair; raises `UndefinedFigure` where there is none. None: it exists by layer only."""
    compute_of_layer: Callable[[PairView, str], float] | None = None
    """Its value in one layer, stored as "layer/<layer>/<tag>"; None: it is of no layer."""
    without_each_step: Callable[[PairView], np.ndarray] | None = None
    """(S,) its value with each of S looked-at sampler steps left out, in order, for its standard error; None: it has none."""
    without_each_step_of_layer: Callable[[PairView, str], np.ndarray] | None = None
    """The same of its value in a layer; asked for the copying layer only."""
    reference_lines: Callable[[PairView], Mapping[str, float]] | None = None
    """Line → what a map without a model scores on this pair, to read a chart by."""
    lines_of: str | None = None
    """Tag of the figure whose reference lines stand beside this one; by default its own, if it has any."""
    of_further_references: bool = False
    """Also computed for references 1, 2, … as "reference_1/<tag>": needs no mask of the reference."""
    tells_of_use: bool = True
    """Whether getting worse says that the reference is used less, rather than that something changed."""
    watched_as: str | None = None
    """The default rules on it are called "<this>-drop" and "<this>-below-best" (or "-rise", "-above-best"); None: no rule."""
    chart: str | None = None
    """Title of the chart under Custom Scalars that it shares with its reference lines."""
    band: bool = False
    """Whether it has a chart with its 95 % interval over pairs."""
    in_log: bool = False
    """Whether it stands in the log line of an evaluation."""
    on_panel: bool = False
    """Whether it stands on a pair's panel."""
    prominence: int = 0
    """Where there is room for one figure only, the one with the highest that has values is shown first."""

    def __post_init__(self) -> None:
        plain = self.tag.removeprefix(COPYING_LAYER)
        if not _TAG.fullmatch(plain):
            raise ValueError(
                f"tag {self.tag!r}: expected letters, digits, _ . - and single slashes, such as 'sharpness'"
            )
        if _TAKEN.fullmatch(plain):
            raise ValueError(f"tag {self.tag!r}: tags like this one mean something else; take another name")
        if self.worse not in ("down", "up"):
            raise ValueError(f"figure {self.tag!r}: worse={self.worse!r}: expected 'down' or 'up'")
        if self.margin is not None:
            try:
                object.__setattr__(self, "margin", Margin.parse(self.margin))
            except ValueError as error:
                raise ValueError(f"figure {self.tag!r}: {error}") from None

    @property
    def label(self) -> str:
        """Title and unit, for a chart."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    def to_json(self) -> dict[str, Any]:
        """What a reader without the functions needs: plain values, for the store and the tab."""
        return {
            "tag": self.tag,
            "title": self.title,
            "meaning": self.meaning,
            "unit": self.unit,
            "range": list(self.range),
            "worse": self.worse,
            "margin": self.margin.to_json() if isinstance(self.margin, Margin) else None,
            "needs": [need.value for need in self.needs],
            "of_layer": self.compute_of_layer is not None,
            "of_further_references": self.of_further_references,
            "lines_of": self.lines_of or self.tag,
            "prominence": self.prominence,
        }

    @classmethod
    def from_json(cls, row: Any, where: str = "declared") -> DeclaredFigure:
        """As much of it as `to_json` keeps: a figure that another program computed.

        Raises:
            ValueError: it is none that `to_json` made; names `where` it stands.
        """
        words: dict[str, Any] = {k: entry(row, k, text, where) for k in ("tag", "title", "meaning", "unit", "lines_of")}
        bounds = entry(row, "range", listed(finite_or_none), where)
        if len(bounds) != 2:
            raise wrong(row["range"], f"{where}/range", "two numbers")
        return cls(
            compute_of_layer=_elsewhere if entry(row, "of_layer", truth, where) else None,
            **words,
            range=(bounds[0], bounds[1]),
            worse=entry(row, "worse", one_of(("down", "up")), where),
            margin=entry(row, "margin", plain, where),
            of_further_references=entry(row, "of_further_references", truth, where),
            prominence=entry(row, "prominence", whole_number, where),
        )


def _elsewhere(view: PairView, layer: str) -> float:
    raise UndefinedFigure("another program knows how it is computed")
