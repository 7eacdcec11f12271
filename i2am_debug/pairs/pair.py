"""Validation pairs: what a fixed evaluation looks at. Knows files and pictures, nothing of models.

A pair is checked when it is made; `ValidationPairs` makes its pairs when they are asked for, so that a folder of large
pictures does not stay in memory.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InvalidPair
from .kept import NoKeptRegion, brought_to, kept_region
from .pictures import to_mask, to_rgb

_GIVEN, _DERIVED = "given", "derived: "
_NAME_LENGTH = 1000


@dataclass(frozen=True, kw_only=True)
class ValidationPair:
    """One reference and the picture it belongs to.

    Raises:
        InvalidPair: a picture that can't be read, has NaN pixels or no known range; a mask of another size than its picture,
            empty or full; a name that is no line of text.
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
    kept: np.ndarray | None = None
    """Where the target is what the reference is, (H, W) bool of the target: for editing pairs, whose reference is the picture
    being edited. A patch that is kept has a known source, its own place."""
    kept_origin: str | None = None
    """"file", "given", or by which threshold it was derived; None without a kept region."""
    undefined_kept: str | None = None
    """Why no kept region could be derived, or None."""
    further_references: Sequence[Image.Image] = ()
    """References 1, 2, … of a model that takes several, RGB, in the order in which the pipeline takes them."""
    prompt: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further keyword arguments of the pipeline call."""

    def __post_init__(self) -> None:
        if wrong := what_is_wrong_with_name(self.name):
            raise InvalidPair(f"the name of a pair {wrong}")
        for key in ("reference", "target"):
            object.__setattr__(self, key, to_rgb(getattr(self, key), self.name, key))
        further = enumerate(_listed(self.further_references, self.name), 1)
        opened = tuple(to_rgb(one, self.name, f"reference {number}") for number, one in further)
        object.__setattr__(self, "further_references", opened)
        for key, picture in (("mask", self.target), ("reference_mask", self.reference), ("kept", self.target)):
            if getattr(self, key) is not None:
                object.__setattr__(self, key, to_mask(getattr(self, key), picture, self.name, key))
        object.__setattr__(self, "kept_origin", None if self.kept is None else self.kept_origin or _GIVEN)

    @property
    def mask_image(self) -> Image.Image | None:
        """The hole as a black and white picture, as pipelines take it."""
        return None if self.mask is None else Image.fromarray(self.mask.astype(np.uint8) * 255)

    @property
    def region(self) -> np.ndarray | None:
        """(H, W) bool: the region of the generated picture that ought to draw on the reference: the hole, else what is kept."""
        return self.kept if self.mask is None else self.mask

    @property
    def reference_region(self) -> np.ndarray | None:
        """(H, W) bool of the reference: the region that ought to be drawn on: the object, else, where the kept region is the
        pair's `region`, the same on the reference."""
        if self.reference_mask is not None or self.mask is not None or self.kept is None:
            return self.reference_mask
        inside = brought_to(self.kept, self.reference.size)
        return (
            None if inside.all() or not inside.any() else inside
        )  # a speck may fall between a smaller picture's pixels

    @property
    def region_in_words(self) -> str:
        """What `region` is, for what depends on it: "hole", "kept: given", "kept: Otsu, |target − reference| < 0.081" or
        "none". What was given is not told apart further, since it is part of `content_hash`."""
        if self.region is None:
            return "none"
        return "hole" if self.mask is not None else f"kept: {(self._derived or _GIVEN).removeprefix(_DERIVED)}"

    @property
    def _derived(self) -> str | None:
        return self.kept_origin if self.kept_origin is not None and self.kept_origin.startswith(_DERIVED) else None

    def with_kept_region(self, threshold: float | None = None) -> ValidationPair:
        """The pair with its kept region derived from its two pictures (`kept.kept_region`).

        It is the same pair where it has a mask or its kept region was given. Where none can be derived, `kept` is None and
        `undefined_kept` says why.

        Args:
            threshold: in (0, 1), for the absolute difference; by default Otsu's.

        Raises:
            ValueError: a threshold that can't be one.
        """
        if self.mask is not None or (self.kept is not None and self._derived is None):
            return self
        try:
            found = kept_region(self.reference, self.target, threshold)
        except NoKeptRegion as none:
            return replace(self, kept=None, kept_origin=None, undefined_kept=str(none))
        return replace(self, kept=found.inside, kept_origin=f"{_DERIVED}{found}", undefined_kept=None)

    def content_hash(self) -> str:
        """Twelve hex digits that change with any pixel, mask, prompt or extra argument; a derived region is none of them."""
        digest = hashlib.sha256()
        own = {key: getattr(self, key) for key in ("reference", "target", "mask", "reference_mask")}
        if self.kept is not None and self._derived is None:  # others keep the hashes that are stored with baselines
            own["kept"] = self.kept
        further = {f"reference_{number}": picture for number, picture in enumerate(self.further_references, 1)}
        for key, value in (own | further).items():
            array = None if value is None else np.asarray(value)
            digest.update(f"{key}{None if array is None else array.shape}".encode())
            digest.update(b"" if array is None else array.tobytes())
        digest.update(repr((self.prompt, _plain(self.extra))).encode())
        return digest.hexdigest()[:12]


def what_is_wrong_with_name(name: Any) -> str | None:
    """Why it can't name a pair in logs, tables and reports, as the end of a sentence; None if it can."""
    if not (isinstance(name, str) and name):
        return f"is {name!r:.200}; expected a text"
    if len(name) > _NAME_LENGTH:
        return f"has {len(name)} characters, such as {name[:40]!r}…; at most {_NAME_LENGTH} are taken"
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
        return f"is {name!r}; expected one line without control characters"
    return None


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


def _listed(value: Any, pair: str) -> Sequence[Any]:
    if isinstance(value, (str, Path, Image.Image)) or not isinstance(value, Sequence):
        raise InvalidPair(
            f"pair {pair!r}: further_references is a {type(value).__name__}; expected a list of pictures, "
            "those after the first reference"
        )
    return value
