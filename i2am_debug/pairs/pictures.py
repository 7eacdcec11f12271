"""Pictures and masks in whatever form they come, as RGB pictures and boolean arrays, or an error that names the pair."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InvalidPair

ImageLike = Any
"""A PIL image, a path, an array (H, W, 3) uint8 or float in [0, 1], or a tensor (3, H, W) in [0, 1]."""


def to_rgb(value: ImageLike, pair: str, key: str) -> Image.Image:
    return value.convert("RGB") if isinstance(value, Image.Image) else _open(value, pair, key).convert("RGB")


def to_mask(value: ImageLike, picture: Image.Image, pair: str, key: str) -> np.ndarray:
    if isinstance(value, np.ndarray) and value.dtype == bool and value.ndim == 2:
        mask, top = value, 255
    else:
        image = value if isinstance(value, Image.Image) else _open(value, pair, key)
        levels = np.asarray(image.convert("L"))
        grey, top = levels / np.float32(255), levels.max()
        mask = grey > 0.5
        # Antialiased edges are ordinary; a mask whose bulk is grey is probably something else (a depth map, a photograph).
        if ((grey > 0.1) & (grey < 0.9)).mean() > 0.1:
            warnings.warn(
                f"pair {pair!r}: {key} is not black and white; values above 0.5 count as inside ({mask.mean():.0%} of it)",
                stacklevel=4,
            )
    if mask.shape != (picture.height, picture.width):
        raise InvalidPair(
            f"pair {pair!r}: {key} is {mask.shape[1]}x{mask.shape[0]} pixels, its picture is "
            f"{picture.width}x{picture.height}; resize the mask (nearest neighbour) to the picture"
        )
    if not mask.any() or mask.all():
        state = "empty (no pixel" if not mask.any() else "full (every pixel"
        labels = " (its values are 0 and 1 of 255: multiply it by 255)" if top == 1 else ""
        raise InvalidPair(
            f"pair {pair!r}: {key} is {state} above 0.5){labels}; nothing can be scored inside against outside"
        )
    return mask


def _open(value: ImageLike, pair: str, key: str) -> Image.Image:
    if isinstance(value, (str, Path)):
        try:
            with Image.open(value) as image:
                image.load()
                return ImageOps.exif_transpose(image)  # cameras store portraits lying down, with a note to turn them
        except FileNotFoundError:
            raise InvalidPair(f"pair {pair!r}: {key} names {value}, which does not exist") from None
        except (UnidentifiedImageError, OSError) as error:
            raise InvalidPair(f"pair {pair!r}: {key} {value} can't be read as a picture: {error}") from None
    if hasattr(value, "detach"):  # a torch tensor, without importing torch for it
        value = value.detach().cpu().float().numpy()
        value = value.transpose(1, 2, 0) if value.ndim == 3 else value
    if not isinstance(value, np.ndarray):
        raise InvalidPair(f"pair {pair!r}: {key} is a {type(value).__name__}; expected a picture, a path or an array")
    return _from_array(value, pair, key)


def _from_array(array: np.ndarray, pair: str, key: str) -> Image.Image:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise InvalidPair(f"pair {pair!r}: {key} has shape {array.shape}; expected (H, W), (H, W, 3) or (H, W, 4)")
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise InvalidPair(f"pair {pair!r}: {key} has NaN or infinite pixels")
        if array.min() < -1e-3 or array.max() > 1 + 1e-3:
            raise InvalidPair(
                f"pair {pair!r}: {key} has values from {array.min():.3g} to {array.max():.3g}; "
                "floating-point pictures must lie in [0, 1]"
            )
        array = (array.clip(0, 1) * 255).round().astype(np.uint8)
    elif array.dtype != np.uint8:
        raise InvalidPair(f"pair {pair!r}: {key} has dtype {array.dtype}; expected uint8, bool or float in [0, 1]")
    return Image.fromarray(array)
