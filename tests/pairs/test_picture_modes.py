"""Every mode that Pillow knows is brought to 8 bits by the range of its values, or refused; against arithmetic in numpy."""

from __future__ import annotations

import colorsys
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageMode, PngImagePlugin

from i2am_debug.errors import InvalidPair
from i2am_debug.pairs.pictures import to_mask, to_rgb

RNG = np.random.default_rng(0)
H, W = 7, 9
BYTES = {count: RNG.integers(0, 256, (H, W, count), dtype=np.uint8) for count in (1, 2, 3, 4)}
DEEP = RNG.integers(0, 2**16, (H, W)).astype(np.uint16)
DEEP[0, 0], DEEP[0, 1] = 0, 65535
FLOATS = RNG.random((H, W)).astype(np.float32)
FLOATS[0, 0], FLOATS[0, 1] = 0, 1
PALETTE = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
HALF = np.zeros((H, W), dtype=bool)
HALF[2:, :] = True


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def as_sixteen_bits(values: np.ndarray) -> np.ndarray:
    return grey(np.rint(values.astype(float) / 257).astype(np.uint8))


def raw(mode: str, values: np.ndarray) -> Image.Image:
    return Image.frombytes(mode, (W, H), np.ascontiguousarray(values).tobytes())


def palettised(mode: str) -> Image.Image:
    picture = raw(mode, BYTES[1][..., 0] if mode == "P" else BYTES[2])
    picture.putpalette(PALETTE.tobytes())
    return picture


def premultiplied(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Plain values of an opaque left half and a transparent right one, and what is stored of them."""
    plain = BYTES[count].copy()
    plain[..., -1] = 255
    plain[:, W // 2 :, -1] = 128
    stored = plain.copy()
    stored[..., :-1] = np.rint(plain[..., :-1] * (plain[..., -1:] / 255))
    return plain[..., :-1], stored


def in_rgb(convert: Any) -> np.ndarray:
    unit = BYTES[3].reshape(-1, 3) / 255
    return np.rint(255 * np.array([convert(*one) for one in unit])).reshape(H, W, 3)


def ycbcr() -> np.ndarray:
    y, cb, cr = (BYTES[3][..., i].astype(float) for i in range(3))
    found = [y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)]
    return np.stack(found, 2).clip(0, 255)


def lab() -> tuple[Image.Image, np.ndarray]:
    """A grey ramp: lightness alone, by CIE 1976 and the curve of sRGB."""
    lightness = np.linspace(0, 255, H * W).round().astype(np.uint8).reshape(H, W)
    star = lightness / 255 * 100
    y = np.where(star > 8, ((star + 16) / 116) ** 3, star / 903.3)
    curve = np.where(y <= 0.0031308, 12.92 * y, 1.055 * y ** (1 / 2.4) - 0.055)
    neutral = np.stack([lightness, np.zeros_like(lightness), np.zeros_like(lightness)], 2)
    return raw("LAB", neutral), grey(curve * 255)


CMYK = BYTES[4].astype(float)
OPAQUE_LA, STORED_LA = premultiplied(2)
OPAQUE_RGBA, STORED_RGBA = premultiplied(4)
EXPECTED = {  # mode: the picture, what its RGB is, how far it may be off
    "1": (Image.fromarray(HALF), grey(HALF * 255), 0),
    "L": (raw("L", BYTES[1][..., 0]), grey(BYTES[1][..., 0]), 0),
    "LA": (raw("LA", BYTES[2]), grey(BYTES[2][..., 0]), 0),
    "La": (raw("La", STORED_LA), grey(OPAQUE_LA[..., 0]), 1),
    "P": (palettised("P"), PALETTE[BYTES[1][..., 0]], 0),
    "PA": (palettised("PA"), PALETTE[BYTES[2][..., 0]], 0),
    "RGB": (raw("RGB", BYTES[3]), BYTES[3], 0),
    "RGBA": (raw("RGBA", BYTES[4]), BYTES[4][..., :3], 0),
    "RGBX": (raw("RGBX", BYTES[4]), BYTES[4][..., :3], 0),
    "RGBa": (raw("RGBa", STORED_RGBA), OPAQUE_RGBA, 1),
    "CMYK": (raw("CMYK", BYTES[4]), (255 - CMYK[..., :3]) * (255 - CMYK[..., 3:]) / 255, 1),
    "YCbCr": (raw("YCbCr", BYTES[3]), ycbcr(), 2),
    "HSV": (raw("HSV", BYTES[3]), in_rgb(colorsys.hsv_to_rgb), 4),
    "LAB": (*lab(), 3),
    "I": (raw("I", DEEP.astype(np.int32)), as_sixteen_bits(DEEP), 0),
    "I;16": (raw("I;16", DEEP.astype("<u2")), as_sixteen_bits(DEEP), 0),
    "I;16L": (raw("I;16L", DEEP.astype("<u2")), as_sixteen_bits(DEEP), 0),
    "I;16B": (raw("I;16B", DEEP.astype(">u2")), as_sixteen_bits(DEEP), 0),
    "I;16N": (raw("I;16N", DEEP), as_sixteen_bits(DEEP), 0),
    "F": (raw("F", FLOATS), grey(np.rint(FLOATS.astype(float) * 255)), 0),
}


@pytest.mark.parametrize("mode", EXPECTED)
def test_a_mode_is_brought_to_eight_bits_by_its_range(mode: str) -> None:
    picture, expected, off = EXPECTED[mode]
    assert picture.mode == mode
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = to_rgb(picture, "cup", "target")
    assert found.mode == "RGB"
    assert np.abs(np.asarray(found).astype(float) - expected).max() <= off


def test_every_mode_that_pillow_knows_is_among_them() -> None:
    known = set(Image._MODEINFO) if hasattr(Image, "_MODEINFO") else set(Image.MODES)
    assert {ImageMode.getmode(mode).mode for mode in known} <= set(EXPECTED)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def deep_png(values: np.ndarray) -> bytes:
    """16 bits a channel, written by hand: Pillow writes no such colours."""
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2]]
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    size = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    return PngImagePlugin._MAGIC + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_png_of_sixteen_bits(channels: int, tmp_path: Path) -> None:
    values = RNG.integers(0, 2**16, (H, W, channels)).astype(np.uint16)
    values[0, 0], values[0, 1] = 0, 65535
    (tmp_path / "deep.png").write_bytes(deep_png(values))
    colours = values[..., : 3 if channels > 2 else 1]
    found = np.asarray(to_rgb(tmp_path / "deep.png", "cup", "target")).astype(float)
    assert (
        np.abs(found - np.broadcast_to(colours / 257, (H, W, 3))).max() < 1
    )  # Pillow takes the higher byte of colours
    np.testing.assert_array_equal(found[0, :2], [[0] * 3, [255] * 3])


def test_a_dark_png_of_sixteen_bits_is_dark(tmp_path: Path) -> None:
    """Of 8-bit values in 16 bits, which an older Pillow reads as it reads 32 bits."""
    (tmp_path / "deep.png").write_bytes(deep_png(np.full((H, W, 1), 200, dtype=np.uint16)))
    assert np.asarray(to_rgb(tmp_path / "deep.png", "cup", "target")).max() == 1


FILES = {
    "deep.tiff": (Image.fromarray(DEEP), as_sixteen_bits(DEEP)),
    "floats.tiff": (raw("F", FLOATS), grey(np.rint(FLOATS.astype(float) * 255))),
    "whole.tiff": (raw("I", DEEP.astype(np.int32)), as_sixteen_bits(DEEP)),
    "floats.pfm": (raw("F", FLOATS), grey(np.rint(FLOATS.astype(float) * 255))),
    "deep.pgm": (raw("I", DEEP.astype(np.int32)), as_sixteen_bits(DEEP)),
    "deep.jp2": (Image.fromarray(DEEP), as_sixteen_bits(DEEP)),
    "palette.gif": (palettised("P"), PALETTE[BYTES[1][..., 0]]),
    "palette.png": (palettised("P"), PALETTE[BYTES[1][..., 0]]),
    "alpha.webp": (raw("RGBA", np.dstack([BYTES[3], np.full((H, W), 90, np.uint8)])), BYTES[3]),
    "bits.png": (Image.fromarray(HALF), grey(HALF * 255)),
    "inks.tiff": (raw("CMYK", BYTES[4]), (255 - CMYK[..., :3]) * (255 - CMYK[..., 3:]) / 255),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_brought_to_eight_bits_by_its_range(name: str, tmp_path: Path) -> None:
    picture, expected = FILES[name]
    picture.save(tmp_path / name, **({"lossless": True, "exact": True} if name.endswith("webp") else {}))
    found = np.asarray(to_rgb(tmp_path / name, "cup", "target")).astype(float)
    assert np.abs(found - expected).max() <= 1


def test_transparency_is_left_out_without_a_word(tmp_path: Path) -> None:
    palettised("P").save(tmp_path / "p.png", transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = to_rgb(tmp_path / "p.png", "cup", "target")
    np.testing.assert_array_equal(np.asarray(found), PALETTE[BYTES[1][..., 0]])


@pytest.mark.parametrize("ending", ["gif", "png", "tiff", "webp"])
def test_of_several_frames_the_first_is_taken(ending: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (W, H), colour) for colour in ("black", "white", "red")]
    frames[0].save(tmp_path / f"moving.{ending}", save_all=True, append_images=frames[1:])
    assert np.asarray(to_rgb(tmp_path / f"moving.{ending}", "cup", "target")).max() == 0


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (np.full((H, W), 70000, dtype=np.int32), ["from 70000 to 70000", "16 bits"]),
        (np.linspace(-5, 900, H * W).reshape(H, W).astype(np.int32), ["from -5 to 900"]),
        (np.arange(H * W).reshape(H, W).astype(np.int32), ["32-bit integers from 0 to 62", "floats in [0, 1]"]),
        (np.full((H, W), 255, dtype=np.float32), ["from 255 to 255", "[0, 1]"]),
        (np.full((H, W), np.nan, dtype=np.float32), ["NaN"]),
    ],
)
@pytest.mark.parametrize("how", ["file", "picture", "mask"])
def test_what_has_no_known_range_is_refused(values: np.ndarray, texts: list[str], how: str, tmp_path: Path) -> None:
    picture = Image.fromarray(values)
    picture.save(tmp_path / "values.tiff")
    with pytest.raises(InvalidPair) as caught:
        if how == "mask":
            to_mask(picture, Image.new("RGB", (W, H)), "cup", "mask")
        else:
            to_rgb(picture if how == "picture" else tmp_path / "values.tiff", "cup", "target")
    assert all(text in str(caught.value) for text in ("pair 'cup'", *texts))


@pytest.mark.parametrize("kind", ["uint16", "I;16", "F", "file"])
def test_a_mask_is_cut_at_half_of_its_own_range(kind: str, tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, H * W).round().astype(np.uint16).reshape(H, W)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    given = {
        "uint16": ramp,
        "I;16": Image.fromarray(ramp),
        "F": Image.fromarray(np.float32(ramp / 65535)),
        "file": tmp_path / "ramp.png",
    }[kind]
    with pytest.warns(UserWarning, match="not black and white"):
        mask = to_mask(given, Image.new("RGB", (W, H)), "cup", "mask")
    np.testing.assert_array_equal(mask, ramp > 65535 / 2)


def test_an_array_of_sixteen_bits_in_colour() -> None:
    values = RNG.integers(0, 2**16, (H, W, 3)).astype(np.uint16)
    found = np.asarray(to_rgb(values, "cup", "target"))
    np.testing.assert_array_equal(found, np.rint(values / 257.0).astype(np.uint8))


def bomb(path: Path, side: int) -> Path:
    """A PNG of a few bytes that claims `side` × `side` pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(PngImagePlugin._MAGIC + chunk(b"IHDR", head) + chunk(b"IDAT", b""))
    return path


@pytest.mark.parametrize("side", [10_000, 100_000])
def test_a_bomb_is_refused_before_it_is_read(side: int, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InvalidPair) as caught:
            to_rgb(bomb(tmp_path / "bomb.png", side), "cup", "target")
    expected = ["pair 'cup': target", "bomb.png", "limit of", "make it smaller", "PIL.Image.MAX_IMAGE_PIXELS"]
    expected.append("10000x10000" if side == 10_000 else str(side**2))
    assert all(text in str(caught.value) for text in expected)


def test_the_limit_is_pillows_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (W, H)).save(tmp_path / "small.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", H * W - 1)
    with pytest.raises(InvalidPair, match=f"9x7 pixels, more than the limit of {H * W - 1}"):
        to_rgb(tmp_path / "small.png", "cup", "target")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert to_rgb(tmp_path / "small.png", "cup", "target").size == (W, H)


def test_what_is_no_plain_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path, text in (
        (tmp_path / "pipe.png", "no plain file"),
        (tmp_path, "no plain file"),
        ("/dev/zero", "no plain file"),
        ("a" * 5000, "File name too long"),
        ("nul\0.png", "null (byte|character)"),
        ("half\ud800.png", "can't be opened"),
        ("", "no plain file"),
    ):
        with pytest.raises(InvalidPair, match=text) as caught:
            to_rgb(path, "cup", "target")
        assert str(caught.value).startswith("pair 'cup': target ") and len(str(caught.value)) < 400


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (W, H)).save(tmp_path / "closed.png")
    (tmp_path / "closed.png").chmod(0)
    with pytest.raises(InvalidPair, match="Permission denied"):
        to_rgb(tmp_path / "closed.png", "cup", "target")


def test_a_picture_that_is_opened_but_broken_is_refused(tmp_path: Path) -> None:
    Image.fromarray(BYTES[3]).save(tmp_path / "torn.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "torn.png").read_bytes()[:80])
    with (
        Image.open(tmp_path / "torn.png") as lazy,
        pytest.raises(InvalidPair, match="pair 'cup': target can't be read"),
    ):
        to_rgb(lazy, "cup", "target")


@pytest.mark.parametrize("picture", [Image.new("RGB", (0, 5)), np.zeros((5, 0), dtype=np.uint8)])
def test_a_picture_without_pixels_is_refused(picture: Any) -> None:
    with pytest.raises(InvalidPair, match="has no pixels"):
        to_rgb(picture, "cup", "target")


def test_a_deep_portrait_stored_lying_down_stands_up(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by a quarter
    for ending in ("png", "tiff"):
        Image.fromarray(DEEP).save(tmp_path / f"lying.{ending}", exif=exif)
        found = np.asarray(to_rgb(tmp_path / f"lying.{ending}", "cup", "target"))
        np.testing.assert_array_equal(found, np.rot90(as_sixteen_bits(DEEP), -1))
