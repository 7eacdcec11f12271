"""Validation pairs: what a fixed evaluation looks at. Knows files and pictures, nothing of models.

A pair is checked when it is made; `ValidationPairs` makes its pairs when they are asked for, so that a folder of large
pictures does not stay in memory.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import InvalidPair

ImageLike = Any
"""A PIL image, a path, an array (H, W, 3) uint8 or float in [0, 1], or a tensor (3, H, W) in [0, 1]."""

_COLUMNS = {
    "file_name": "target",
    "reference_file_name": "reference",
    "mask_file_name": "mask",
    "reference_mask_file_name": "reference_mask",
}
_FURTHER = "further_reference_file_names"


@dataclass(frozen=True, kw_only=True)
class ValidationPair:
    """One reference and the picture it belongs to.

    Raises:
        InvalidPair: a picture that can't be read or has NaN pixels; a mask of another size than its picture, empty or full.
    """

    name: str
    """Names the pair in logs, tags and errors."""
    reference: Image.Image
    """RGB."""
    target: Image.Image
    """The truth, RGB; the inpainting pipelines get it with the hole cut out."""
    mask: np.ndarray | None = None
    """The hole in the target, (H, W) bool, True = generate. Greyscale input is cut at 0.5."""
    reference_mask: np.ndarray | None = None
    """The object in the reference, (H, W) bool."""
    further_references: Sequence[Image.Image] = ()
    """References 1, 2, … of a model that takes several, RGB, in the order in which the pipeline takes them."""
    prompt: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further keyword arguments of the pipeline call."""

    def __post_init__(self) -> None:
        for key in ("reference", "target"):
            object.__setattr__(self, key, _to_rgb(getattr(self, key), self.name, key))
        further = enumerate(_listed(self.further_references, self.name), 1)
        opened = tuple(_to_rgb(one, self.name, f"reference {number}") for number, one in further)
        object.__setattr__(self, "further_references", opened)
        for key, picture in (("mask", self.target), ("reference_mask", self.reference)):
            if getattr(self, key) is not None:
                object.__setattr__(self, key, _to_mask(getattr(self, key), picture, self.name, key))

    @property
    def mask_image(self) -> Image.Image | None:
        """The hole as a black and white picture, as pipelines take it."""
        return None if self.mask is None else Image.fromarray(self.mask.astype(np.uint8) * 255)

    def content_hash(self) -> str:
        """Twelve hex digits that change with any pixel, mask, prompt or extra argument."""
        digest = hashlib.sha256()
        own = {key: getattr(self, key) for key in ("reference", "target", "mask", "reference_mask")}
        further = {f"reference_{number}": picture for number, picture in enumerate(self.further_references, 1)}
        for key, value in (own | further).items():
            array = None if value is None else np.asarray(value)
            digest.update(f"{key}{None if array is None else array.shape}".encode())
            digest.update(b"" if array is None else array.tobytes())
        digest.update(repr((self.prompt, _plain(self.extra))).encode())
        return digest.hexdigest()[:12]


class ValidationPairs(Sequence[ValidationPair]):
    """The fixed set of pairs that every evaluation of a run looks at.

    Args:
        pairs: `ValidationPair`s, or functions without arguments that make one when it is needed.
    """

    def __init__(self, pairs: Sequence[ValidationPair | Callable[[], ValidationPair]]) -> None:
        for i, pair in enumerate(pairs):
            if not (isinstance(pair, ValidationPair) or callable(pair)):
                raise InvalidPair(
                    f"pair {i} is a {type(pair).__name__}; expected a ValidationPair "
                    "(for files use ValidationPairs.from_folder, for a datasets.Dataset use ValidationPairs.from_dataset)"
                )
        self._pairs = list(pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return ValidationPairs(self._pairs[index])
        pair = self._pairs[index]
        return pair if isinstance(pair, ValidationPair) else pair()

    def __iter__(self) -> Iterator[ValidationPair]:
        return (self[i] for i in range(len(self)))

    def check(self, also: Callable[[ValidationPair], Any] | None = None) -> list[str]:
        """Makes every pair once, and calls `also` with it; returns their content hashes in order.

        Raises:
            InvalidPair: there are no pairs, two have the same name, or one can't be used.
        """
        if not len(self):
            raise InvalidPair("there are 0 validation pairs; at least 1 is needed, and 8 or more for a drift test")
        names: set[str] = set()
        hashes = []
        for pair in self:
            if pair.name in names:
                raise InvalidPair(f"two validation pairs are named {pair.name!r}; give each a name of its own")
            names.add(pair.name)
            hashes.append(pair.content_hash())
            if also is not None:
                also(pair)
        return hashes

    @classmethod
    def from_folder(cls, folder: str | Path) -> ValidationPairs:
        """Reads a folder with a `metadata.jsonl`, as Hugging Face's imagefolder does.

        Each line is an object with `file_name` (the target) and `reference_file_name`, both relative to the folder, and
        optionally `mask_file_name`, `reference_mask_file_name`, `further_reference_file_names` (a list), `prompt` and
        `name`. Further keys are passed on to the pipeline call. Files are looked for now and read when needed.

        Raises:
            InvalidPair: no `metadata.jsonl`, a line that is not an object, a missing key or file.
        """
        folder = Path(folder)
        listing = folder / "metadata.jsonl"
        if not listing.is_file():
            raise InvalidPair(
                f"no {listing}; expected one JSON object a line, such as "
                '{"file_name": "target_0.png", "reference_file_name": "reference_0.png", "mask_file_name": "mask_0.png"}'
            )
        makers = []
        try:
            text = listing.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InvalidPair(f"{listing} is not UTF-8: {error}; save it as UTF-8") from None
        # str.splitlines would also cut at characters such as U+2028, which may stand in a JSON string
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                makers.append(_maker(folder, _parse(line, f"{listing}, line {number}"), f"{listing}, line {number}"))
        return cls(makers)

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        *,
        target: str = "target",
        reference: str = "reference",
        mask: str | None = None,
        reference_mask: str | None = None,
        prompt: str | None = None,
        name: str | None = None,
        further_references: str | None = None,
        limit: int | None = None,
    ) -> ValidationPairs:
        """Takes a `datasets.Dataset` (or anything with `len`, integer indexing to a mapping, and columns of pictures).

        Args:
            target, reference, mask, reference_mask, prompt, name: the columns to read; other columns are left alone.
            further_references: the column with each row's list of further pictures.
            limit: take the first so many rows.
        """
        columns = dict(target=target, reference=reference, mask=mask, reference_mask=reference_mask, prompt=prompt)
        columns["further_references"] = further_references
        count = len(dataset) if limit is None else min(limit, len(dataset))

        def make(index: int) -> ValidationPair:
            row = dataset[index]
            missing = [c for c in (*columns.values(), name) if c is not None and c not in row]
            if missing:
                raise InvalidPair(f"row {index} of the dataset has no column {missing[0]!r}; it has {sorted(row)}")
            own_name = str(row[name]) if name else f"row_{index:04d}"
            given = {k: row[c] for k, c in columns.items() if c is not None}
            if given.get("further_references", ()) is None:  # how a dataset writes that there are none
                del given["further_references"]
            return ValidationPair(name=own_name, **given)

        return cls([partial(make, i) for i in range(count)])


def _plain(value: Any) -> Any:
    """The value in a form whose `repr` depends on nothing but its content."""
    if isinstance(value, Mapping):
        return sorted((str(k), _plain(v)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "detach"):  # a torch tensor; bfloat16 has no numpy counterpart
        value = value.detach().cpu()
        value = value.double().numpy() if value.is_floating_point() else value.numpy()
    if isinstance(value, (np.ndarray, Image.Image)):
        array = np.ascontiguousarray(value)
        return str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()
    return value


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InvalidPair(f"{where} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise InvalidPair(f"{where} is a {type(row).__name__}; expected a JSON object")
    return row


def _maker(folder: Path, row: dict[str, Any], where: str) -> Callable[[], ValidationPair]:
    row = dict(row)
    arguments: dict[str, Any] = {}
    for column, key in _COLUMNS.items():
        value = row.pop(column, None)
        if value is not None:
            arguments[key] = _file(folder, value, column, where)
        elif key in ("target", "reference"):
            raise InvalidPair(f"{where} has no {column!r}; a pair needs file_name and reference_file_name")
    further = row.pop(_FURTHER, None)
    if further is not None:
        if not isinstance(further, list):
            raise InvalidPair(f"{where}: {_FURTHER} is {further!r}; expected a list of names of files")
        arguments["further_references"] = [_file(folder, value, _FURTHER, where) for value in further]
    name = row.pop("name", None) or Path(arguments["target"]).stem
    arguments.update(name=str(name), prompt=row.pop("prompt", None), extra=row)
    return lambda: ValidationPair(**arguments)


def _file(folder: Path, value: Any, column: str, where: str) -> Path:
    if not isinstance(value, str):
        raise InvalidPair(f"{where}: {column} is {value!r}; expected the name of a file")
    path = folder / value
    if not path.is_file():
        raise InvalidPair(f"{where}: {column} names {path}, which does not exist")
    return path


def _listed(value: Any, pair: str) -> Sequence[Any]:
    if isinstance(value, (str, Path, Image.Image)) or not isinstance(value, Sequence):
        raise InvalidPair(
            f"pair {pair!r}: further_references is a {type(value).__name__}; expected a list of pictures, "
            "those after the first reference"
        )
    return value


def _to_rgb(value: ImageLike, pair: str, key: str) -> Image.Image:
    return value.convert("RGB") if isinstance(value, Image.Image) else _open(value, pair, key).convert("RGB")


def _to_mask(value: ImageLike, picture: Image.Image, pair: str, key: str) -> np.ndarray:
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
