"""Text inside a drawn picture: the font, and words made to fit. Imports matplotlib for its fonts."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from unicodedata import normalize

from PIL import ImageFont

SMALLEST_TEXT = 12  # pixels


@lru_cache(maxsize=32)
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans of this height in pixels."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path(), "fonts/ttf", f"DejaVuSans{'-Bold' * bold}.ttf")), size)


@lru_cache(maxsize=4096)
def _shown(character: str) -> str:
    """The character, or its escape where the font has only an empty box for it: two names must not look the same."""
    face = font(14)
    if character.isprintable() and (
        character.isascii() or bytes(face.getmask(character)) != bytes(face.getmask("\U0010ffff"))
    ):
        return character
    return character.encode("unicode_escape").decode()


@lru_cache(maxsize=4096)  # most words of a picture stand on the next evaluation's too
def shorten(text: str, face: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, its middle replaced by "…" if it is wider than `width`: names often differ at either end."""
    text = "".join(map(_shown, normalize("NFC", " ".join(text.split()))))
    keep, cut = len(text), text
    while face.getlength(cut) > width and keep > 1:
        keep = max(1, min(keep - 1, round(keep * width / face.getlength(cut))))
        cut = f"{text[: (keep + 1) // 2].rstrip('._ ')}…{text[len(text) - keep // 2 :].lstrip('._ ')}"
    return cut


def wrap(text: str, face: ImageFont.FreeTypeFont, width: float, lines: int) -> list[str]:
    """The text in at most `lines` lines; what does not fit is marked by "…"."""
    done = [""]
    for word in text.split():
        word = shorten(word, face, width)
        longer = f"{done[-1]} {word}".strip()
        done = [*done[:-1], longer] if face.getlength(longer) <= width else [*done, word]
    return done if len(done) <= lines else [*done[: lines - 1], shorten(" ".join(done[lines - 1 :]), face, width)]
