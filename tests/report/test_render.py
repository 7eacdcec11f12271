"""What pictures must show, checked on their pixels and on the words drawn into them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from i2am_debug.report import lettering, render, sheet
from i2am_debug.report.panels import panel, specific_grid, strip
from i2am_debug.report.patches import choose_patches
from i2am_debug.report.render import heat

GREY = Image.new("RGB", (32, 32), (128, 128, 128))


def peak_map(h: int, w: int, row: int, column: int) -> np.ndarray:
    """(h, w), sum 1, one token far above an even ground."""
    map = np.full((h, w), 1.0, dtype=np.float32)
    map[row, column] = 30.0
    return map / map.sum()


def brightest(image: Image.Image) -> tuple[float, float]:
    """Where the picture is brightest, as (row, column) fractions of its size: the middle of the 20 brightest pixels."""
    light = np.asarray(image, dtype=np.float64).sum(2)
    rows, columns = np.unravel_index(np.argsort(light, axis=None)[-20:], light.shape)
    return float(rows.mean() + 0.5) / image.height, float(columns.mean() + 0.5) / image.width


def colourful(image: Image.Image) -> int:
    """How many pixels have a colour: heat colours do, neutral tiles, frames and text don't."""
    pixels = np.asarray(image, dtype=int)
    return int((np.ptp(pixels, axis=2) > 40).sum())


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Every text drawn from here on, with its font's size."""
    drawn: list[tuple[str, float]] = []
    original = ImageDraw.ImageDraw.text

    def spy(self, xy, text, fill=None, font=None, *rest, **options):
        drawn.append((text, font.size))
        return original(self, xy, text, fill, font, *rest, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", spy)
    return drawn


def said(words: list[tuple[str, float]]) -> str:
    return " ".join(" ".join(text for text, _ in words).split())


def pair(**changes: object) -> dict:
    hole = np.zeros((32, 32), dtype=bool)
    hole[8:24, 16:30] = True
    return {
        "name": "pair 03",
        "reference": GREY,
        "masked_input": GREY,
        "generated": GREY,
        "truth": GREY,
        "r2g": peak_map(16, 16, 8, 11),
        "g2r": peak_map(8, 8, 2, 5),
        "region": hole,
        "reference_region": hole.T,
        "figures": {"IMACS_g": "0.36", "IMACS_r": "0.27"},
        "subtitle": "step 500",
    } | changes


@pytest.mark.parametrize("ground", [(0, 0, 0), (128, 128, 128), (255, 255, 255)])
@pytest.mark.parametrize("grid", [(16, 16), (8, 8), (64, 48)])
def test_the_peak_lands_on_its_token_on_any_ground(grid: tuple[int, int], ground: tuple[int, int, int]) -> None:
    row, column = grid[0] // 4, grid[1] - 2
    drawn = heat(Image.new("RGB", (96, 128), ground), peak_map(*grid, row, column), size=(240, 320))
    found = brightest(drawn)
    assert drawn.size == (240, 320)
    assert found == pytest.approx(((row + 0.5) / grid[0], (column + 0.5) / grid[1]), abs=0.5 / min(grid))


def test_brightness_rises_with_the_share_even_on_white() -> None:
    ramp = np.tile(np.linspace(0, 1, 32, dtype=np.float32), (32, 1))
    # Bicubic interpolation of a ramp is a ramp except near its ends.
    light = np.asarray(heat(Image.new("RGB", (32, 32), "white"), ramp, size=(320, 320)).convert("L"), dtype=int)[
        160, 20:300
    ]
    assert light[-1] - light[0] > 60
    assert light[140:].tolist() == sorted(light[140:].tolist())


def test_an_even_map_does_not_look_hot_and_vmax_is_in_the_maps_units() -> None:
    even = np.full((8, 8), 1 / 64, dtype=np.float32)
    flat, hot = (np.asarray(heat(GREY, even, size=(64, 64), vmax=vmax)) for vmax in (None, 1 / 64))
    assert np.ptp(flat.reshape(-1, 3), axis=0).max() <= 1
    assert hot.sum() > flat.sum() * 1.3
    assert np.array_equal(heat(GREY, even, size=(64, 64), vmax=2 / 64), flat)


@pytest.mark.parametrize(
    ("map", "reason"),
    [
        ("one reference token", "undefined: one reference token"),
        ("undefined: one reference token", "undefined: one reference token"),
        (np.full((4, 4), np.nan, dtype=np.float32), "undefined: not finite"),
        (np.full((4, 4), np.inf, dtype=np.float32), "undefined: not finite"),
        (np.zeros((4, 4), dtype=np.float32), "undefined: all zero"),
        (np.array([[0.5, -0.5], [0.5, 0.5]], dtype=np.float32), "undefined: negative attention"),
        (np.ones((1, 1), dtype=np.float32), "undefined: one token"),
    ],
)
def test_an_undefined_map_is_a_neutral_tile_with_its_reason(map, reason: str, words) -> None:
    tile = heat(Image.new("RGB", (32, 32), (255, 0, 0)), map, size=(200, 200))
    assert said(words) == reason
    assert colourful(tile) == 0
    assert colourful(heat(GREY, peak_map(4, 4, 1, 1), size=(200, 200))) > 100


def test_a_map_of_another_rank_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \(h, w\), got shape \(4,\)"):
        heat(GREY, np.ones(4, dtype=np.float32), size=(64, 64))


@pytest.mark.parametrize("shape", [(1, 10), (10, 1)])
def test_tokens_without_a_grid_become_bars(shape: tuple[int, int]) -> None:
    map = np.full(10, 1.0, dtype=np.float32)
    map[7] = 6.0
    drawn = np.asarray(heat(GREY, map.reshape(shape), size=(200, 200)))
    filled = (drawn != render._NEUTRAL).any(2).sum(0)
    assert filled.argmax() // 20 == 7
    assert filled[150] == pytest.approx(188, abs=2)
    assert filled[50] == pytest.approx(188 / 6, abs=2)


def test_no_token_is_lost_when_there_are_more_tokens_than_pixels() -> None:
    map = np.full((1, 1000), 1.0, dtype=np.float32)
    map[0, 777] = 50.0
    filled = (np.asarray(heat(GREY, map, size=(100, 100))) != render._NEUTRAL).any(2).sum(0)
    assert filled.argmax() == 77


def test_small_pictures_stay_crisp_and_large_ones_are_smoothed() -> None:
    checks = np.indices((16, 16)).sum(0) % 2 * 255
    small = Image.fromarray(checks.astype(np.uint8))
    assert len(np.unique(np.asarray(render.scaled(small, (160, 160))))) == 2
    large = small.resize((1600, 1600), Image.Resampling.NEAREST)
    assert len(np.unique(np.asarray(render.scaled(large, (150, 150))))) > 2


@pytest.mark.parametrize("size", [(32, 32), (512, 384), (384, 512), (1600, 200), (100, 900), (1, 1)])
def test_pictures_fit_and_keep_their_aspect(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, (10, 200, 90))
    drawn = heat(picture, peak_map(8, 8, 2, 2), size=(300, 200))
    assert drawn.width == 300 or drawn.height == 200
    assert drawn.width / drawn.height == pytest.approx(size[0] / size[1], rel=0.05)
    sheets = [
        panel(**pair(reference=picture)),
        panel(**pair(generated=picture, truth=picture, masked_input=picture)),
        strip(title="heads", picture=picture, maps=[peak_map(8, 8, 1, 1)] * 7, labels=list("abcdefg")),
        strip(title="one", picture=picture, maps=[peak_map(8, 8, 1, 1)], labels=["a"]),
    ]
    for drawn in sheets:
        assert drawn.mode == "RGB"
        assert max(drawn.size) <= sheet.LONGEST
        assert (np.asarray(drawn)[-sheet.MARGIN + 6 :] == sheet._PAPER).all(), "nothing is cut off at the bottom"


def test_a_panel_says_what_it_shows(words) -> None:
    panel(**pair())
    text = said(words)
    for expected in (
        "pair 03", "step 500", "Reference", "Masked input", "Generated", "Truth", "R2G on the generated",
        "which regions the reference influences", "G2R on the reference", "what the hole draws from it",
        "IMACS_g", "0.36", "IMACS_r", "0.27", "low", "high share of attention", "its own maximum",
        "R2G max 26.9 × uniform (1/256), the hole outlined.", "G2R max 20.6 × uniform (1/64), the object outlined.",
    ):  # fmt: skip
        assert expected in text


@pytest.mark.parametrize(
    ("absent", "r2g_title", "columns"),
    [
        ((), "R2G on the generated", 3),
        (("truth",), "R2G on the generated", 3),
        (("masked_input",), "R2G on the generated", 3),
        (("truth", "masked_input"), "R2G on the generated", 2),
        (("generated",), "R2G on the truth", 3),
        (("generated", "truth"), "R2G on the masked input", 2),
        (("generated", "truth", "masked_input"), "R2G on the empty canvas", 3),
    ],
)
def test_absent_pictures_are_left_out(absent: tuple[str, ...], r2g_title: str, columns: int, words) -> None:
    sheet = panel(**pair(**dict.fromkeys(absent)))
    titles = {"masked_input": "Masked input", "generated": "Generated", "truth": "Truth"}
    drawn = [text for text, _ in words]
    assert r2g_title in drawn
    assert all((title in drawn) == (key not in absent) for key, title in titles.items())
    assert sheet.width == 1024 if columns == 3 else sheet.width < 900


def test_the_outline_shows_on_black_and_on_white() -> None:
    mask = np.zeros((8, 8), dtype=bool)
    mask[2:6, :4] = True
    for ground in (0, 255):
        plain = np.full((80, 80, 3), ground, dtype=int)
        drawn = np.asarray(render.outlined_on(Image.fromarray(plain.astype(np.uint8)), mask, (80, 80)), dtype=int)
        changed = abs(drawn - plain).max(2) > 150
        assert changed[18:24, 10:30].any(0).all(), "upper border"
        assert changed[30:50, :4].any(1).all(), "closed where the mask touches the picture's edge"
        assert not changed[28:52, 8:32].any(), "the inside stays as it was"
        assert not changed[:, 46:].any()


def test_an_undefined_map_in_a_panel_says_so_and_draws_no_heat(words) -> None:
    sheet = panel(**pair(g2r="one reference token", r2g=np.full((4, 4), np.nan, dtype=np.float32)))
    assert "undefined: one reference token" in said(words)
    assert "undefined: not finite" in said(words)
    assert "high share" not in said(words)
    assert colourful(sheet) == 0


def test_a_strip_has_one_scale_across_grids_of_different_size() -> None:
    even = [np.full(grid, 1 / np.prod(grid), dtype=np.float32) for grid in ((4, 4), (32, 32))]
    sheet = strip(title="layers", picture=GREY, maps=[*even, peak_map(4, 4, 0, 0)], labels=["a", "b", "c"])
    pixels = np.asarray(sheet, dtype=int)
    middle = pixels[pixels.shape[0] // 2]
    ground = [run for run in np.unique(middle, axis=0, return_counts=True)[1] if run > 150]
    left, right = middle[150], middle[480]
    assert ground
    assert abs(left - right).max() <= 1
    assert np.ptp(left) < np.ptp(np.asarray(heat(GREY, even[0], size=(64, 64)))[32, 32]), "an even map is faint here"


def test_a_strip_states_its_scale_and_shortens_long_labels_in_the_middle(words) -> None:
    names = [f"up_blocks.{index}.attentions.1.transformer_blocks.0.attn1" for index in range(20)]
    strip(title="layers", picture=GREY, maps=[peak_map(16, 16, 3, 3)] * 19 + ["not captured"], labels=names)
    assert "26.9 × uniform" in said(words)
    assert "One colour scale" in said(words)
    assert "undefined: not captured" in said(words)
    labels = [text for text, _ in words if text.startswith("up_b")]
    assert len(labels) == 20
    assert all("…" in label and label.endswith("attn1") for label in labels)


def test_a_strip_refuses_what_it_cannot_show() -> None:
    map = peak_map(4, 4, 0, 0)
    for maps, labels, columns in (([], [], None), ([map], [], None), ([map], ["a"], 0)):
        with pytest.raises(ValueError, match="strip needs"):
            strip(title="", picture=GREY, maps=maps, labels=labels, columns=columns)
    with pytest.raises(ValueError, match=r"1000 tiles in .* can't be seen"):
        strip(title="", picture=GREY, maps=[map] * 1000, labels=["a"] * 1000)


def test_specific_grid_shows_the_row_of_the_chosen_patch(words, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.full((6 * 4, 3 * 5), 0.01, dtype=np.float32)
    rows[4 * 4 + 1, 2 * 5 + 3] = 1.0
    seen = []
    original = sheet.overlay
    monkeypatch.setattr(
        sheet,
        "overlay",
        lambda picture, map, *rest, **marks: seen.append(map) or original(picture, map, *rest, **marks),
    )
    options = dict(
        title="patches", generated=GREY, reference=GREY, rows=rows, generated_grid=(6, 4), reference_grid=(3, 5)
    )
    drawn = specific_grid(**options, patches=[(4, 1), (0, 0)])
    assert max(drawn.size) <= sheet.LONGEST
    assert np.unravel_index(seen[0].argmax(), seen[0].shape) == (2, 3)
    assert np.ptp(seen[1]) == 0
    for expected in ("1 generated", "patch (4, 1)", "2 generated", "patch (0, 0)", "max 1.0 ×", "one patch boxed"):
        assert expected in said(words)
    with pytest.raises(ValueError, match=r"on a 6x4 grid, got \[\(6, 0\)\]"):
        specific_grid(**options, patches=[(6, 0)])
    with pytest.raises(ValueError, match=r"rows must be \(24, 4\)"):
        specific_grid(**options | {"reference_grid": (2, 2)}, patches=[(0, 0)])


def test_text_is_never_too_small_and_never_leaves_the_picture(words) -> None:
    long = "очень-длинное-имя_" * 20
    panel(**pair(name=long, subtitle=long, figures={long: long, "a": long}))
    strip(title=long, picture=GREY, maps=[long] + [peak_map(4, 4, 1, 1)] * 11, labels=[long] * 12)
    assert min(size for _, size in words) >= lettering.SMALLEST_TEXT
    for text, size in words:
        for line in text.splitlines():
            assert lettering.font(int(size), bold=True).getlength(line) < 1100


def test_names_that_the_font_lacks_stay_distinguishable(words) -> None:
    for name in ("дом Ä", "中", "文", "two\nlines", "\x07"):
        panel(**pair(name=name))
    titles = [text for text, size in words if size == 21]
    assert titles == ["дом Ä", "\\u4e2d", "\\u6587", "two lines", "\\x07"]


@pytest.mark.parametrize("grid", [(16, 16), (12, 40), (3, 3)])
def test_chosen_patches_lie_inside_the_hole_and_apart(grid: tuple[int, int]) -> None:
    hole = np.zeros((64, 80), dtype=bool)
    hole[20:60, 30:75] = True
    patches = choose_patches(hole, grid)
    assert len(patches) == len(set(patches)) > 0
    assert patches == sorted(patches) == choose_patches(hole, grid)
    for row, column in patches:
        assert hole[int((row + 0.5) * 64 / grid[0]), int((column + 0.5) * 80 / grid[1])]
    if grid == (16, 16):
        places = np.array(patches)
        assert min(abs(a - b).sum() for i, a in enumerate(places) for b in places[:i]) >= 3
        assert np.ptp(places, axis=0).min() >= 4, "spread over the hole's whole height and width"


def test_patches_without_a_hole_in_a_tiny_one_and_in_an_empty_one() -> None:
    assert len(choose_patches(None, (8, 6), count=5)) == 5
    assert len(choose_patches(None, (1, 3), count=6)) == 3
    tiny = np.zeros((64, 64), dtype=bool)
    tiny[41, 9] = True
    assert choose_patches(tiny, (8, 8)) == [(5, 1)]
    with pytest.raises(ValueError, match="hole that is not empty"):
        choose_patches(np.zeros((8, 8), dtype=bool), (4, 4))
    with pytest.raises(ValueError, match="count=0"):
        choose_patches(None, (4, 4), count=0)


def test_importing_render_imports_neither_torch_nor_matplotlib() -> None:
    code = "import sys, i2am_debug.report.render; print(sorted({'torch', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
