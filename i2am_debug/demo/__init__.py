"""Procedural pairs, a tiny image-to-image model that really learned, and a fine-tune that breaks on purpose."""
