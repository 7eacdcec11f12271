"""The memory that looking takes: how much was held at most, what to do when there is none left."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_CURE = (
    "not even one pair at a time fits in memory while training holds its own; look at smaller pictures, size=(width, height) "
    "or in your loss_fn, at fewer noise times and heads, plan=CapturePlan(sampler_steps=2, heads=16), or at fewer references"
)


def peak_memory() -> int:
    """Bytes, the most so far: the accelerator's where there is one in use, else the process's. Nothing is reset: a script may
    be measuring too."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether a device had too little memory; not every one raises a `torch.OutOfMemoryError`."""
    from accelerate.utils.memory import should_reduce_batch_size  # knows the devices' texts

    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and should_reduce_batch_size(error)
    )


def free_memory() -> None:
    """Gives back what nobody holds any more."""
    from accelerate.utils.memory import clear_device_cache

    gc.collect()
    clear_device_cache()


@contextmanager
def one_pair_at_a_time() -> Iterator[None]:
    """What runs out of memory inside says what can be done.

    Raises:
        torch.OutOfMemoryError: the device's text and the cure.
    """
    try:
        yield
    except RuntimeError as error:
        if not ran_out_of_memory(error):
            raise
        raise torch.OutOfMemoryError(f"{error}: {_CURE}") from error
