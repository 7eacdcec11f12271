"""`python -m i2am_debug`, as `accelerate launch -m i2am_debug run …` calls it."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
