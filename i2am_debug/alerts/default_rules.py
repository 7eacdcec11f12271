"""The rules that hold where nobody says otherwise, read off what is declared of each figure.

Their margins are constants measured on the tiny model (`python -m benchmarks.alerts`): about three times the largest fall of
the six healthy fine-tunes they were set by, and 1.5 times or more that of twenty. Other models are untested;
`i2am-debug calibrate` measures a model's own.
"""

from __future__ import annotations

from ..figures.declared import ATTENTION_INFORMATION, REFERENCE_GAP
from ..figures.registry import all_figures
from .rule import ANY_FIGURE, Kind, Rule

_SMALL, _LARGE = 0.6, 1.5  # margins of the gap


def default_rules() -> tuple[Rule, ...]:
    """What is watched gets worse than at the baseline, or than at the run's best; or nothing is left of it."""
    return (
        *_on_each_watched("drop", {"down": "drop", "up": "rise"}),
        *_on_each_watched("drop_from_best", {"down": "below-best", "up": "above-best"}),
        # Of the gap a large fall counts at once, a small one when it is seen twice in a row: a tenth of its references dropped,
        # or a fault that has just begun and costs nothing yet, looks like a small one.
        Rule(name="gap-slips", kind="drop", figure=REFERENCE_GAP.tag, margins=_SMALL, patience=2),
        Rule(name="gap-slips-from-best", kind="drop_from_best", figure=REFERENCE_GAP.tag, margins=_SMALL, patience=2),
        Rule(name="gap-halved", kind="drop", figure=REFERENCE_GAP.tag, margin="50%", severity="critical"),
        Rule(name="gap-collapse", kind="collapse", figure=REFERENCE_GAP.tag, severity="critical"),
        # In bits: random attention weights have 0.3 to 0.7 in the tiny model.
        Rule(
            name="information-collapse",
            kind="collapse",
            figure=ATTENTION_INFORMATION.tag,
            severity="critical",
            nothing=0.1,
        ),
        Rule(name="stale-weights", kind="unchanged", figure=ANY_FIGURE),
        Rule(name="undefined", kind="undefined", figure=ANY_FIGURE),
        Rule(name="undefined-for-most", kind="undefined", figure=ANY_FIGURE, limit=0.5, severity="critical"),
    )


def _on_each_watched(kind: Kind, called: dict[str, str]) -> list[Rule]:
    watched = [figure for figure in all_figures() if figure.watched_as]
    return [
        Rule(
            name=f"{f.watched_as}-{called[f.worse]}",
            kind=kind,
            figure=f.tag,
            margins=_LARGE if f is REFERENCE_GAP else 1.0,
        )
        for f in watched
    ]
