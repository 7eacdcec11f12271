"""The random states of Python, numpy and torch, on the CPU and on every CUDA, MPS or XPU device."""

from __future__ import annotations

import random
from contextlib import ExitStack

import numpy as np
import torch


class RandomStates:
    """All of them as they are now."""

    def __init__(self) -> None:
        self._python, self._numpy, self._cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self._devices = {}
        for name in ("cuda", "mps", "xpu"):
            backend = getattr(torch, name, None)
            if backend is not None and backend.is_available():
                many = getattr(backend, "get_rng_state_all", None)
                self._devices[name] = many() if many else backend.get_rng_state()

    def put_back(self) -> None:
        """One that fails does not keep the others from being put back."""
        with ExitStack() as stack:
            for name, state in self._devices.items():
                backend = getattr(torch, name)
                stack.callback(getattr(backend, "set_rng_state_all", None) or backend.set_rng_state, state)
            stack.callback(torch.set_rng_state, self._cpu)
            stack.callback(np.random.set_state, self._numpy)
            stack.callback(random.setstate, self._python)
