"""What TensorBoard loads at its start. A tab that can't be had is absent; TensorBoard starts all the same.

TensorBoard imports this module unguarded, so nothing of ours is imported before `Loader.load` is called.
"""

from __future__ import annotations

import logging
from typing import Any

from tensorboard.plugins import base_plugin


class Loader(base_plugin.TBLoader):
    """Entry point `tensorboard_plugins`."""

    def load(self, context: Any) -> Any:
        """The tab, or None, with a warning in TensorBoard's log, where anything it needs is missing or broken."""
        try:
            from .backend import Backend

            return Backend(context)
        except Exception as error:  # a broken dependency may raise anything: ImportError, OSError, ValueError, …
            logging.getLogger(__name__).warning("TensorBoard goes on without the I2AM tab: %r", error)
            return None
