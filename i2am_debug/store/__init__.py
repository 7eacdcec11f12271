"""A run on disk: how maps are packed, one file an evaluation, the index, and which run a person means. No torch."""
