"""Every case."""

from __future__ import annotations

from . import flux, flux2, kandinsky, others, qwen_image, stable_diffusion, video

GROUPS = (flux, flux2, qwen_image, stable_diffusion, video, kandinsky, others)
CASES = {case.name: case for group in GROUPS for case in group.CASES}
