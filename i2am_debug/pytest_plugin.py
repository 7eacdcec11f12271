"""The name under which the pytest plugin is asked for: `pytest_plugins = ["i2am_debug.pytest_plugin"]`."""

from .gate.pytest_plugin import i2am_regression, pytest_addoption

__all__ = ["i2am_regression", "pytest_addoption"]
