"""Inpainting by example: the reference is read through cross-attention."""
