"""What the regions of pairs are called wherever a person reads of them: on panels, in the tab."""

from __future__ import annotations

from collections.abc import Iterable

HOLE, OBJECT = "the hole", "the object"
KEPT, CHANGED = "the kept region", "the changed part"  # of an edit; the one is all that the other is not
ALL = "all of the picture"


def called(region: str) -> str:
    """What `ValidationPair.region_in_words` says, as a person calls it."""
    return HOLE if region == "hole" else KEPT if region.startswith("kept") else ALL


def called_together(regions: Iterable[str]) -> str:
    """The same for several pairs: of runs with unlike pairs the hole goes first. Nothing known is taken for a hole."""
    found = set(map(called, regions)) or {HOLE}
    return next(name for name in (HOLE, KEPT, ALL) if name in found)


def titled(title: str, region: str) -> str:
    """A figure's title where its region is called so: titles are declared for a hole."""
    return title.replace(f"of {HOLE}", f"of {region}")
