"""The tab in TensorBoard: a loader that can't fail, routes that only read, and static files. Imports no torch."""
