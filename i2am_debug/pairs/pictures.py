"""Pictures and masks in whatever form they come, as RGB pictures and boolean arrays, or an error that names the pair.

All are brought to 8 bits by the range of their kind: integers of 16 bits are divided by 257, numbers in [0, 1] multiplied by
255. What has no known range is refused, nothing is clipped. Transparency is left out: a pixel is its colour, whatever its
alpha. Of several frames the first is taken.
"""

from __future__ import annotations

import stat
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InvalidPair

ImageLike = Any
"""A PIL image, a path, an array (H, W), (H, W, 3) or (H, W, 4), bool, uint8, uint16 or float in [0, 1], or a tensor (3, H, W)
in [0, 1]."""

_SIXTEEN_BITS = 2**16 - 1
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM")
"""What Pillow reads from these as 32-bit integers has 16 bits: a PNG has no more, and a PGM is scaled to them."""

_FROM_SIXTEEN_BITS = ((np.arange(2**16) + 128) // 257).astype(np.uint8)  # 65535 → 255, to the nearest
_SMALLER = "make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if it is meant to be so large"
_SHOWN = 200  # characters of a name in an error


def to_rgb(value: ImageLike, pair: str, key: str) -> Image.Image:
    """A picture as RGB.

    Raises:
        InvalidPair: it can't be read, or has no known range.
    """
    return _image(value, pair, key).convert("RGB")


def to_mask(value: ImageLike, picture: Image.Image, pair: str, key: str) -> np.ndarray:
    """A mask as (H, W) bool, of its picture's size: what lies above half its range.

    Raises:
        InvalidPair: as `to_rgb`; or it has another size than its picture, is empty or full.
    """
    if isinstance(value, np.ndarray) and value.dtype == bool and value.ndim == 2:
        _refuse_another_size(value.shape[::-1], picture, f"pair {pair!r}: {key}")
        mask, top = value, 255
    else:
        image = _image(value, pair, key)
        _refuse_another_size(image.size, picture, f"pair {pair!r}: {key}")
        levels = np.asarray(image.convert("L"))
        grey, top = levels / np.float32(255), levels.max()
        mask = grey > 0.5
        # Antialiased edges are ordinary; a mask whose bulk is grey is probably something else (a depth map, a photograph).
        if ((grey > 0.1) & (grey < 0.9)).mean() > 0.1:
            warnings.warn(
                f"pair {pair!r}: {key} is not black and white; values above 0.5 count as inside ({mask.mean():.0%} of it)",
                stacklevel=4,
            )
    if not mask.any() or mask.all():
        state = "empty (no pixel" if not mask.any() else "full (every pixel"
        labels = " (its values are 0 and 1 of 255: multiply it by 255)" if top == 1 else ""
        raise InvalidPair(
            f"pair {pair!r}: {key} is {state} above 0.5){labels}; nothing can be scored inside against outside"
        )
    return mask


def _refuse_another_size(size: tuple[int, ...], picture: Image.Image, what: str) -> None:
    if tuple(size) != picture.size:
        raise InvalidPair(
            f"{what} is {size[0]}x{size[1]} pixels, its picture is {picture.width}x{picture.height}; "
            "resize the mask (nearest neighbour) to the picture"
        )


def _image(value: ImageLike, pair: str, key: str) -> Image.Image:
    """RGB or greyscale, 8 bits a channel."""
    what = f"pair {pair!r}: {key}"
    if isinstance(value, (str, Path)):
        return _read(value, what)
    if isinstance(value, Image.Image):
        try:
            return _eight_bits(value, what, value.format)
        except InvalidPair:
            raise
        except Exception as error:  # it may not be loaded yet, and then this reads its file
            raise InvalidPair(f"{what} can't be read as a picture: {error or type(error).__name__}") from None
    if hasattr(value, "detach"):  # a torch tensor, without importing torch for it
        value = value.detach().cpu().float().numpy()
        value = value.transpose(1, 2, 0) if value.ndim == 3 else value
    if not isinstance(value, np.ndarray):
        raise InvalidPair(f"{what} is a {type(value).__name__}; expected a picture, a path or an array")
    return _from_array(value, what)


def _read(path: str | Path, what: str) -> Image.Image:
    _refuse_what_is_no_file(path, what)
    what = f"{what} {path}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # an error here, by the same limit
            with open(path, "rb") as file, Image.open(file) as image:  # given a path Pillow may map it, and not turn it
                most = Image.MAX_IMAGE_PIXELS
                if most is not None and image.width * image.height > most:  # before a pixel is read
                    raise InvalidPair(
                        f"{what} has {image.width}x{image.height} pixels, more than the limit of {most}; {_SMALLER}"
                    )
                upright = ImageOps.exif_transpose(image)  # cameras store portraits lying down, with a note to turn them
                return _eight_bits(upright, what, image.format)
    except InvalidPair:
        raise
    except UnidentifiedImageError:
        raise InvalidPair(f"{what} can't be read as a picture: it has no format that Pillow knows") from None
    except Image.DecompressionBombError as error:
        raise InvalidPair(f"{what} is too large: {error} {_SMALLER}") from None
    except Exception as error:  # of a broken file Pillow raises anything: OSError, SyntaxError, struct.error, …
        raise InvalidPair(f"{what} can't be read as a picture: {error or type(error).__name__}") from None


def _refuse_what_is_no_file(path: str | Path, what: str) -> None:
    try:
        is_file = stat.S_ISREG(Path(path).stat().st_mode)  # opening a pipe would wait for a writer
    except FileNotFoundError:
        raise InvalidPair(f"{what} names {path}, which does not exist") from None
    except (OSError, ValueError) as error:  # a name that is too long, or that no file can have
        raise InvalidPair(f"{what} {str(path)[:_SHOWN]!r} can't be opened: {why_not_opened(error)}") from None
    if not is_file:
        raise InvalidPair(f"{what} {path} is no plain file; expected a picture")


def why_not_opened(error: Exception) -> str:
    """What the system says of a file, without its name, which may be what is wrong."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _eight_bits(image: Image.Image, what: str, file_format: str | None) -> Image.Image:
    """RGB or greyscale, 8 bits a channel, by the range of the mode's values; loaded."""
    if not image.width or not image.height:
        raise InvalidPair(f"{what} has no pixels: it is {image.width}x{image.height}")
    if image.mode == "F":
        return _from_array(np.asarray(image), what)
    if image.mode.startswith("I;"):
        return _from_array(np.asarray(image), what)
    if image.mode == "I":
        values = np.asarray(image)
        least, most = int(values.min()), int(values.max())
        if not (file_format in _SIXTEEN_BIT_FORMATS or (least >= 0 and 255 < most <= _SIXTEEN_BITS)):
            raise InvalidPair(
                f"{what} has 32-bit integers from {least} to {most}, whose range is not known; save it with 8 or 16 bits, "
                "or as floats in [0, 1]"
            )
        return _from_array(values.astype(np.uint16), what)
    if image.mode in ("1", "L"):
        return image.convert("L")
    # Two modes can't be converted but to the same with plain alpha; of palettes Pillow would say that they have transparency.
    over = {"La": "LA", "RGBa": "RGBA", "P": "RGBA"}.get(image.mode)
    return (image if over is None else image.convert(over)).convert("RGB")


def _from_array(array: np.ndarray, what: str) -> Image.Image:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise InvalidPair(f"{what} has shape {array.shape}; expected (H, W), (H, W, 3) or (H, W, 4)")
    if not array.size:
        raise InvalidPair(f"{what} has no pixels: its shape is {array.shape}")
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise InvalidPair(f"{what} has NaN or infinite pixels")
        if array.min() < -1e-3 or array.max() > 1 + 1e-3:
            raise InvalidPair(
                f"{what} has values from {array.min():.3g} to {array.max():.3g}; "
                "floating-point pictures must lie in [0, 1]: divide them by their range"
            )
        array = (array.clip(0, 1) * 255).round().astype(np.uint8)
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:  # of either order of bytes
        array = _FROM_SIXTEEN_BITS[array]
    elif array.dtype != np.uint8:
        raise InvalidPair(f"{what} has dtype {array.dtype}; expected uint8, uint16, bool or float in [0, 1]")
    picture = Image.fromarray(array)
    return picture if picture.mode == "L" else picture.convert("RGB")
