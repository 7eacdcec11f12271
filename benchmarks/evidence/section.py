"""What a part has found, as it stands in docs/evidence.md and is kept beside the code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FOUND = Path(__file__).parent / "found"
"""Where what the parts found is kept, a JSON file each, so that one can be made anew without the others."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells under a line of words; a cell is text as it is to be read."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return f"{self.title}\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part's section."""

    title: str
    asked: str
    """What is asked, and how it is measured."""
    said: str
    """What came out, in sentences that the numbers below bear."""
    tables: Sequence[Table] = ()
    pictures: Sequence[tuple[str, str]] = ()
    """(file in examples/pictures, what is seen on it)."""
    command: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The figures themselves, for whoever reads the file by program."""

    def markdown(self) -> str:
        pictures = [f"![{words}](../examples/pictures/{name})" for name, words in self.pictures]
        blocks = [f"## {self.title}", self.asked, *[t.markdown() for t in self.tables], *pictures, self.said]
        return "\n\n".join([*blocks, f"`{self.command}`"])

    def keep(self, name: str, folder: Path = FOUND) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def kept(cls, name: str, folder: Path = FOUND) -> Section | None:
        """As it was kept; None where that part has not been measured."""
        file = folder / f"{name}.json"
        if not file.is_file():
            return None
        read = json.loads(file.read_text(encoding="utf-8"))
        return cls(**{**read, "tables": [Table(**table) for table in read["tables"]]})


def with_interval(value: float, low: float, high: float, digits: int = 2) -> str:
    """A value and its 95 % interval, in text."""
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
