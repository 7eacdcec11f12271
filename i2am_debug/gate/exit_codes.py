"""What `i2am-debug` ends with, declared once."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Of every command; `check` uses all four, `doctor` the first three."""

    OK = 0
    """Done; of `check`: no rule fired; of `doctor`: ready."""
    FAILED = 1
    """An error; of `check`: a regression; of `doctor`: usable with limits."""
    USAGE = 2
    """Wrong words or settings; argparse's own. Of `doctor` also: not usable."""
    NOT_COMPARABLE = 3
    """`check` could not judge: no baseline, another fingerprint, figures without a value, too few pairs. Never 0."""
