"""What the doctor found, as plain text and as JSON. Knows no model; imports no torch."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..gate.exit_codes import ExitCode

WIDTH = 92
_LABEL = 16

_RESULTS = {
    ExitCode.OK: "ready",
    ExitCode.FAILED: "usable with limits",
    ExitCode.USAGE: "not usable",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that stands in the way, and what to do about it."""

    what: str
    cure: str = ""
    """Empty where the text of an error says it too."""
    fatal: bool = False
    """Nothing can be seen; otherwise less than could be."""


@dataclass
class Diagnosis:
    """Sections of facts in the order in which they were found out, and the findings."""

    sections: dict[str, dict[str, str]] = field(default_factory=dict)
    """Title → label → what is so."""
    findings: list[Finding] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    """What could not be checked since it was not named, and how it is."""

    def add(self, section: str, label: str, text: object) -> None:
        """Adds a fact."""
        self.sections.setdefault(section, {})[label] = str(text)

    def find(self, what: str, cure: str = "", *, fatal: bool = False) -> None:
        """Adds a finding."""
        self.findings.append(Finding(what=what, cure=cure, fatal=fatal))

    @property
    def exit_code(self) -> ExitCode:
        """0 ready, 1 usable with limits, 2 not usable."""
        if any(one.fatal for one in self.findings):
            return ExitCode.USAGE
        return ExitCode.FAILED if self.findings else ExitCode.OK

    @property
    def result(self) -> str:
        """The exit code in words."""
        return _RESULTS[self.exit_code]

    def as_text(self) -> str:
        """Lines of at most `WIDTH` characters, for a terminal and for an issue."""
        lines: list[str] = []
        for title, facts in self.sections.items():
            lines += [title, *(line for label, text in facts.items() for line in _fact(label, text)), ""]
        lines.append(f"result: {self.result}")
        lines += [line for one in self.unchecked for line in _wrapped("not checked: ", one, indent=2)]
        for number, one in enumerate(self.findings, 1):
            lines += _wrapped(f"{number}. ", one.what)
            lines += _wrapped("   cure: ", one.cure) if one.cure else []
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "result": self.result,
            "exit_code": int(self.exit_code),
            "not_checked": self.unchecked,
            "sections": self.sections,
            "findings": [{"what": one.what, "cure": one.cure, "fatal": one.fatal} for one in self.findings],
        }


def counted(names: Iterable[str]) -> str:
    """ "A × 3, B" of A, A, A, B."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(name if count == 1 else f"{name} × {count}" for name, count in counts.items())


def size(count: float) -> str:
    """Bytes in MiB or GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.2g} MiB"


def duration(seconds: float) -> str:
    """In the unit that a person would take."""
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _fact(label: str, text: str) -> list[str]:
    if len(label) >= _LABEL:
        return [*_wrapped("  ", f"{label}:"), *_wrapped("    ", text)]
    return _wrapped(f"  {label:<{_LABEL}}", text, indent=_LABEL + 2)


def _wrapped(begin: str, text: str, indent: int | None = None) -> list[str]:
    rest = " " * (len(begin) if indent is None else indent)
    return textwrap.wrap(text or "-", WIDTH, initial_indent=begin, subsequent_indent=rest, break_on_hyphens=False)
