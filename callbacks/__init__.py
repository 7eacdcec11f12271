"""Training-loop callbacks: the only code of the project that knows a training loop. Import it as `i2am_debug.callbacks`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if __name__ != "i2am_debug.callbacks":
    raise ImportError(
        "this folder is packaged as i2am_debug.callbacks; `import callbacks` from a checkout would load a second copy. "
        "Install the project (pip install -e .) and use: from i2am_debug.callbacks import I2AMCallback"
    )

_HOME = {
    "I2AMCallback": "accelerate_loop",
    "I2AMPlainCallback": "plain_loop",
    "I2AMLightningCallback": "lightning_loop",
    "I2AMTrainerCallback": "trainer_loop",
}

__all__ = list(_HOME)

if TYPE_CHECKING:  # "as": mypy's --strict takes no other name for one that is meant to be imported from here
    from .accelerate_loop import I2AMCallback as I2AMCallback
    from .lightning_loop import I2AMLightningCallback as I2AMLightningCallback
    from .plain_loop import I2AMPlainCallback as I2AMPlainCallback
    from .trainer_loop import I2AMTrainerCallback as I2AMTrainerCallback


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
