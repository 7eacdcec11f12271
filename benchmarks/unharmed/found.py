"""What a part has found: a table, and every harm that was done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Found:
    """One part's outcome; `harm` is empty when nothing was harmed."""

    rows: Sequence[Mapping[str, Any]]
    """One a case: column → value; the same columns in each."""
    harm: Sequence[str]
    """What was harmed, each in words that name the case."""
    counted: Mapping[str, Any]
    """The figures that sum it up, such as how many cases fired."""

    def table(self) -> str:
        """As Markdown."""
        if not self.rows:
            return ""
        columns = list(self.rows[0])
        lines = [columns, ["---"] * len(columns), *([str(row[c]) for c in columns] for row in self.rows)]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
