"""Tiny, random and complete diffusers pipelines, called as their users call them."""
