"""How much memory was held at most: the accelerator's where there is one in use, else the process's."""

from __future__ import annotations

import sys

import torch


def peak_memory() -> int:
    """Bytes, the most so far. Nothing is reset: a script may be measuring too."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
