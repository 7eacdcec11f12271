"""Where the generated and the reference tokens sit in an attention product: one file a family, and the registry.

A family answers for one kind of denoiser; `find_family` picks the first that knows the model.
"""

from .family import About, Family, Layout, Product, Reference, Tokens
from .latents import half_of_guidance, level_grid, patch_grid
from .registry import find_family, register_family, registered

__all__ = [
    "Family",
    "Product",
    "Layout",
    "Reference",
    "Tokens",
    "About",
    "half_of_guidance",
    "level_grid",
    "patch_grid",
    "find_family",
    "register_family",
    "registered",
]
