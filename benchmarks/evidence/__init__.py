"""Whether the maps tell the truth: each part measured from scratch, each by name; `python -m benchmarks.evidence`."""
