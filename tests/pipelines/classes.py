"""Every case."""

from __future__ import annotations

from . import flux, flux2, qwen_image, stable_diffusion

GROUPS = (flux, flux2, qwen_image, stable_diffusion)
CASES = {case.name: case for group in GROUPS for case in group.CASES}
