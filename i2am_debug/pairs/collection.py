"""The fixed set of pairs that every evaluation of a run looks at: from a list, a folder or a dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import InvalidPair
from .folder import makers_of
from .pair import ValidationPair


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
            raise InvalidPair(
                "there are 0 validation pairs; at least 1 is needed, and 8 or more to tell a fall from noise"
            )
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

    def with_kept_regions(self, threshold: float | None = None) -> ValidationPairs:
        """The same pairs, each with its kept region (`ValidationPair.with_kept_region`), found when first asked for."""
        found: dict[int, dict[str, Any]] = {}

        def make(index: int) -> ValidationPair:
            pair: ValidationPair = self[index]
            if index in found:
                return replace(pair, **found[index])
            pair = pair if pair.undefined_kept is not None else pair.with_kept_region(threshold)
            found[index] = {key: getattr(pair, key) for key in ("kept", "kept_origin", "undefined_kept")}
            return pair

        return ValidationPairs([partial(make, index) for index in range(len(self))])

    @classmethod
    def from_folder(cls, folder: str | Path, *, allow_outside: bool = False) -> ValidationPairs:
        """Reads a folder with a `metadata.jsonl`, as Hugging Face's imagefolder does.

        Each line is an object with `file_name` (the target) and `reference_file_name`, both relative to the folder, and
        optionally `mask_file_name`, `reference_mask_file_name`, `kept_mask_file_name`, `further_reference_file_names` (a
        list), `prompt` and `name`. Further keys are passed on to the pipeline call. Files are looked for now and read when
        needed.

        Args:
            allow_outside: whether names may lead out of the folder, by "..", from the root or over links.

        Raises:
            InvalidPair: no `metadata.jsonl`, a line that is not an object, a missing key or file, a file outside.
        """
        return cls(makers_of(Path(folder), allow_outside=allow_outside))

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        *,
        target: str = "target",
        reference: str = "reference",
        mask: str | None = None,
        reference_mask: str | None = None,
        kept: str | None = None,
        prompt: str | None = None,
        name: str | None = None,
        further_references: str | None = None,
        limit: int | None = None,
    ) -> ValidationPairs:
        """Takes a `datasets.Dataset` (or anything with `len`, integer indexing to a mapping, and columns of pictures).

        Args:
            target, reference, mask, reference_mask, kept, prompt, name: the columns to read; other columns are left alone.
            further_references: the column with each row's list of further pictures.
            limit: take the first so many rows.
        """
        columns = dict(target=target, reference=reference, mask=mask, reference_mask=reference_mask, prompt=prompt)
        columns.update(kept=kept, further_references=further_references)
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


def regions_in_words(pairs: Iterable[ValidationPair]) -> list[str]:
    """What each pair's `region` is, in their order (`ValidationPair.region_in_words`)."""
    return [pair.region_in_words for pair in pairs]
