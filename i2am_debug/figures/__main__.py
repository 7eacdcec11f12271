"""`python -m i2am_debug.figures` prints docs/figures.md, read off the declarations."""

from __future__ import annotations

from .declaration import DeclaredFigure
from .margin import Margin
from .registry import all_figures

_HEAD = """# The figures

<!-- python -m i2am_debug.figures > docs/figures.md -->

Every figure that an evaluation records, one value a pair. TensorBoard has its mean over the pairs as `i2am/<figure>`; rules,
`check` and `baseline show` call it `<figure>`. A figure without a value is *undefined*, with its reason, and never 0. They are
declared in [i2am_debug/figures/declared.py](../i2am_debug/figures/declared.py); how maps and scores are formed is said there
and in [figures/scores.py](../i2am_debug/figures/scores.py).

Words: *R2G*, on the generated picture, is where the reference goes; *G2R*, on the reference, is what is drawn on. IMACS is the
mean of the map inside a mask minus penalty × the mean outside (Park & Jang, ICLR 2025), after the map is brought to [0, 1] and
values up to the threshold are set to 0. The *kept region* of an edit, whose reference is the picture being edited, is where
target and reference agree; where a pair has no hole it stands in for hole and object
([pairs](training-loops.md#what-it-needs)). The *copying layer* is the one with the highest attention information at the
baseline. A *margin* is how far the mean may go in its bad direction before a drop rule speaks, unless the rule or a calibrated
baseline says otherwise.

| figure | what | unit, range | worse | margin | needs |
|---|---|---|---|---|---|
"""

_LINES = (
    "what maps without a model score on these pairs, to read a chart by: `constant`, `random`, `blob` (in the middle, "
    "knows nothing), `perfect` (the mask itself on the token grid)"
)
_TAIL = """
## Of single layers

As `i2am/layer/<layer>/<figure>`: {of_layer}. Their scatter is larger; they have no margin of their own.

## Of further references

Where a model takes several references, those after the first have, as `i2am/reference_1/<figure>` and so on: {of_further}.
They have no masks, so nothing is said of where in them the model looks.

## Beside the figures

| tag | what |
|---|---|
| `i2am/interval/<figure>/low`, `…/high` | 95 % interval over pairs of the mean, for {bands} |
| `i2am/reference_lines/<figure>/<line>` | {line_kinds}; for {lines} |
| `i2am/alert`, `i2am/alert/text` | 1 at an evaluation that raised an alert, else 0; its words |
| `i2am/undefined` | what has no value, and why |
| `i2am/pair_00` … | in the run `<run>/i2am_pictures`: a panel a pair; `/time`, `/heads`, `/layers`, `/specific` of the first |

Under *Custom Scalars* TensorBoard charts {charts} with their reference lines, and each figure that has an interval with it.

## A figure of your own

```python
from i2am_debug import DeclaredFigure, register_figure

register_figure(
    DeclaredFigure(
        tag="on_the_face",
        title="R2G on the upper half",
        meaning="Share of the reference's influence that lands on the upper half of the generated picture.",
        unit="share of the map",
        range=(0.0, 1.0),
        margin="20%",
        watched_as="face",
        compute=lambda view: float(view.maps.r2g.unified[: view.maps.r2g.unified.shape[0] // 2].sum()),
    )
)
```

Before the callback is made, in every process. It is then computed for every pair, stored, tracked, charted, shown in the tab,
judged by the rules `face-drop` and `face-below-best`, and known to `check`. `view` is a
[`PairView`](../i2am_debug/figures/pair_view.py): the pair, what was seen of it, its maps, masks and losses. What raises
`UndefinedFigure("why")` is recorded as undefined.
"""


def as_markdown() -> str:
    """The page."""
    figures = all_figures()

    def named(which: list[DeclaredFigure]) -> str:
        return ", ".join(f"`{figure.tag}`" for figure in which)

    charts = dict.fromkeys(figure.chart for figure in figures if figure.chart)
    return (
        _HEAD
        + "\n".join(map(_row, figures))
        + "\n"
        + _TAIL.format(
            of_layer=named([f for f in figures if f.compute_of_layer is not None]),
            of_further=named([f for f in figures if f.of_further_references]),
            bands=named([f for f in figures if f.band]),
            line_kinds=_LINES,
            lines=named([f for f in figures if f.reference_lines is not None]),
            charts=" and ".join(map(str, charts)),
        )
    )


def _row(figure: DeclaredFigure) -> str:
    margin = "" if figure.margin is None else str(Margin.parse(figure.margin)).replace("%", " %")
    cells = (
        f"`{figure.tag}`",
        f"**{figure.title}.** {figure.meaning}",
        "; ".join(filter(None, (figure.unit, _range(figure.range)))),
        figure.worse,
        margin,
        "; ".join(need.value for need in figure.needs),
    )
    return f"| {' | '.join(cells)} |"


def _range(range: tuple[float | None, float | None]) -> str:
    low, high = range
    if low is None and high is None:
        return ""
    if low is None:
        return f"at most {high:g}"
    return f"at least {low:g}" if high is None else f"{low:g} to {high:g}"


if __name__ == "__main__":
    print(as_markdown(), end="")
