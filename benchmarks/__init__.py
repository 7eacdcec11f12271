"""Evidence too slow for the tests: each module is a command, `python -m benchmarks.<name> --json F`."""
