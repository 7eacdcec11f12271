"""The figures there are: this package's and those of your own. Knows nothing of how they are used; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from .declaration import COPYING_LAYER, DeclaredFigure
from .declared import FIGURES
from .margin import Margin
from .values import Undefined, of_any_reference

_REGISTERED: list[DeclaredFigure] = []

LAYER = "layer/"
"""A tag that begins so is of one layer: "layer/<layer>/<tag>"."""


def register_figure(figure: DeclaredFigure) -> None:
    """Adds a figure of your own: computed, stored, tracked, charted, judged and shown as this package's are.

    Register it before the callback or the rules are made, in every process of the run.

    Raises:
        ValueError: it computes nothing, or another figure has its tag.
    """
    if not isinstance(figure, DeclaredFigure):
        raise ValueError(f"register_figure: expected a DeclaredFigure, got a {type(figure).__name__}")
    if figure.compute is None and figure.compute_of_layer is None:
        raise ValueError(f"figure {figure.tag!r} computes nothing; give it compute= or compute_of_layer=")
    if figure.tag in {known.tag for known in all_figures()}:
        raise ValueError(f"there is a figure {figure.tag!r} already; give yours a tag of its own")
    _REGISTERED.append(figure)


def all_figures() -> tuple[DeclaredFigure, ...]:
    """This package's figures, then those of your own in the order in which they came."""
    return (*FIGURES, *_REGISTERED)


def own_figures() -> tuple[DeclaredFigure, ...]:
    """Those of your own."""
    return tuple(_REGISTERED)


def declaration_of(tag: str, stored: Mapping[str, DeclaredFigure] | None = None) -> DeclaredFigure | None:
    """What is declared of a figure, whichever reference or layer it is of; None of an unknown one.

    Args:
        stored: figures by tag that another program registered, as an evaluation keeps them (`Evaluation.declared`).
    """
    plain = of_any_reference(tag)
    known = {figure.tag: figure for figure in all_figures()}
    if plain not in known and plain.startswith((LAYER, COPYING_LAYER)):
        plain = plain.rpartition("/")[2]
    if plain in known:
        return known[plain]
    return (stored or {}).get(plain)


def higher_is_worse(tag: str, stored: Mapping[str, DeclaredFigure] | None = None) -> bool:
    """Which way is worse; down for a figure that nothing is known of."""
    declared = declaration_of(tag, stored)
    return declared is not None and declared.worse == "up"


def default_margin(tag: str, stored: Mapping[str, DeclaredFigure] | None = None) -> Margin | None:
    """The declared margin of a figure; None of one without, and of single layers, whose figures scatter more."""
    declared, plain = declaration_of(tag, stored), of_any_reference(tag)
    if declared is None or declared.tag != plain or declared.margin is None:
        return None
    return Margin.parse(declared.margin)


def of_copying_layer(tag: str, layer: str | Undefined) -> str | Undefined:
    """The tag under which a figure is stored: "copying_layer/…" is that of the layer given; any other is its own."""
    if not tag.startswith(COPYING_LAYER) or isinstance(layer, Undefined):
        return layer if tag.startswith(COPYING_LAYER) else tag
    return f"{LAYER}{layer}/{tag.removeprefix(COPYING_LAYER)}"


def first_shown(figures: tuple[DeclaredFigure, ...]) -> tuple[DeclaredFigure, ...]:
    """Those that may be shown where there is room for one, the most telling first."""
    return tuple(sorted((f for f in figures if f.prominence), key=lambda f: -f.prominence))
