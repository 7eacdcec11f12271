"""Every case, most used first."""

from __future__ import annotations

from . import flux, flux2

CASES = {
    case.name: case
    for case in (
        *flux.CASES,
        *flux2.CASES,
    )
}
