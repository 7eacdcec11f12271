"""Whether the plugin ever harms the run it watches: `python -m benchmarks.unharmed PART …`, a module each part.

A part is a module with `measure(*, long) -> Found`. Its short form (`long=False`) is also run by the tests.
"""
