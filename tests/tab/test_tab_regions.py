"""Outlines of the hole, the object and what an edit changes: what is stored and served of them, and where they are drawn."""

from __future__ import annotations

import base64
import io
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from stored_runs import evaluation, maps, mark
from tab_page import Tab
from test_tab_backend import asker, own

from benchmarks.browser import tensorboard
from i2am_debug.pairs.pair import ValidationPair
from i2am_debug.pairs.region_words import called_together, titled
from i2am_debug.store.packing import pack_pictures
from i2am_debug.store.run_store import RunStore
from i2am_debug.tab import regions

OLD = Path(__file__).parents[1] / "fixtures" / "written_by_0.1.0" / "run"
MARKUP = "<img src=x onerror=parent.hacked=1>"
DERIVED = "derived: Otsu, |target − reference| < 0.081"
SIZE, REFERENCE_SIZE = (26, 39), (20, 45)
"""Heights and widths; none of the widths fills whole bytes."""


# -- the runs --------------------------------------------------------------------------------------------------------


def blob(size: tuple[int, int], *, top: float = 0.2, left: float = 0.3) -> np.ndarray:
    """A rectangle with a notch in it and one pixel apart from it, at shares of a picture."""
    height, width = size
    found = np.zeros(size, bool)
    found[int(top * height) : int(0.75 * height), int(left * width) : int(0.8 * width)] = True
    found[int(top * height) : int(0.4 * height), int(0.55 * width) : int(0.65 * width)] = False
    found[-3, 2] = True
    return found


def picture(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.full((*size, 3), (70, 110, 160), np.uint8))


def pair(name: str, **regions_of_it: Any) -> ValidationPair:
    return ValidationPair(name=name, reference=picture(REFERENCE_SIZE), target=picture(SIZE), **regions_of_it)


HOLE, OBJECT = blob(SIZE), blob(REFERENCE_SIZE, top=0.1)
KEPT = np.arange(SIZE[1])[None] < np.full((SIZE[0], 1), 17)  # touches three edges of the picture
PAIRS = [
    pair("both", mask=HOLE, reference_mask=OBJECT),
    pair("none"),
    pair("kept", kept=KEPT, kept_origin=DERIVED),
    pair("kept and object", kept=KEPT, kept_origin="file", reference_mask=OBJECT),
    pair("kept and hole", kept=KEPT, mask=HOLE),
    pair("two references", mask=HOLE, reference_mask=OBJECT, further_references=[picture((16, 16))]),
    pair("named", kept=KEPT, kept_origin=MARKUP),
]


def write(run: Path, given: list[ValidationPair], *, steps: tuple[int, ...] = (0, 8), bars: bool = False) -> Path:
    store, count = RunStore(run), len(given)
    found = maps(count, peak=5)
    for number, one in enumerate(given):
        found[f"{number}/information"] = np.ones((2, 3), np.float32)
        for name in ("r2g", "g2r") if one.further_references else ():
            found[f"{number}/reference_1/{name}/unified"] = found[f"{number}/{name}/unified"]
        if bars:
            found[f"{number}/g2r/unified"] = np.full((1, 8), 1 / 8, np.float32)
    for step in steps:
        names = tuple(one.name for one in given)
        told = {"pairs": list(names), "seed": 0, "regions": [one.region_in_words for one in given]}
        evaluated = evaluation(step, count=count, pairs=names, fingerprint=told)
        store.write(evaluated, found, {})
        store.write_pairs(evaluated, given)
    return run


def pairs_file(run: Path) -> Path:
    return next(own(run).glob("pairs_*"))


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    mark(write(folder / "run", PAIRS))
    mark(write(folder / "bars", PAIRS[:1], bars=True))
    mark(write(folder / "plain", [pair("none"), pair("neither")]))
    shutil.copytree(OLD, folder / "old")
    mark(folder / "old")
    spoilt = pairs_file(mark(write(folder / "spoilt", PAIRS)))
    save_file({**load_file(spoilt), "0/mask": np.frombuffer(b"<script>", np.uint8)}, spoilt, metadata={"format": "1"})
    return folder


# -- what is served --------------------------------------------------------------------------------------------------


def served(logdir: Path, number: int, run: str = "run") -> list[tuple[str, list[str], str, np.ndarray]]:
    found = asker(logdir, run).json("regions", run=run, step=8, pair=number)["regions"]
    return [(one["name"], one["of"], one["origin"], inside(one)) for one in found]


def inside(region: dict[str, Any]) -> np.ndarray:
    """(h, w) bool, bit by bit."""
    digits = "".join(f"{byte:08b}" for byte in base64.b64decode(region["bits"]))
    height, width = region["height"], region["width"]
    assert len(digits) == -(-height * width // 8) * 8 and set(digits[height * width :]) <= {"0"}
    return np.array([digit == "1" for digit in digits[: height * width]]).reshape(height, width)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, [("the hole", ["generated"], "", HOLE), ("the object", ["reference"], "", OBJECT)]),
        (1, []),
        (2, [("the changed part", ["generated", "reference"], DERIVED, ~KEPT)]),
        (3, [("the object", ["reference"], "", OBJECT), ("the changed part", ["generated"], "file", ~KEPT)]),
        (4, [("the hole", ["generated"], "", HOLE)]),
        (6, [("the changed part", ["generated", "reference"], MARKUP, ~KEPT)]),
    ],
    ids=lambda value: PAIRS[value].name if isinstance(value, int) else "",
)
def test_a_pairs_regions_are_those_that_its_figures_look_at(logdir: Path, number: int, expected: list[Any]) -> None:
    one, found = PAIRS[number], served(logdir, number)
    assert [region[:3] for region in found] == [region[:3] for region in expected]
    for (*_, got), (*_, truth) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, truth)
    of = {side: got for _, sides, _, got in found for side in sides}
    assert ("generated" in of) == (one.region is not None)
    assert ("reference" in of) == (one.reference_region is not None)
    if one.region is not None:
        np.testing.assert_array_equal(of["generated"], one.region if one.mask is not None else ~one.region)


def test_a_run_of_version_0_1_0_has_the_regions_whose_masks_it_stored(logdir: Path) -> None:
    found = {name: got for name, _, _, got in served(logdir, 0, "old")}
    stored = load_file(pairs_file(OLD))
    for name, mask in (("the hole", "0/mask"), ("the object", "0/reference_mask")):
        truth = np.asarray(Image.open(io.BytesIO(stored[mask].tobytes())).convert("L")) > 127
        np.testing.assert_array_equal(found[name], truth)


def test_what_figures_look_at_has_one_name(logdir: Path) -> None:
    def named(run: str, step: int = 8) -> tuple[str, list[str]]:
        found = asker(logdir, run).json("evaluation", run=run, step=step)
        return found["region"], found["regions"]

    kept, none = "the kept region", "all of the picture"
    assert named("run") == ("the hole", ["the hole", none, kept, kept, "the hole", "the hole", kept])
    assert named("plain") == (none, [none, none])
    assert set(named("old")[1]) == {"the hole"}, "older runs don't say"
    assert called_together(["none", "kept: given"]) == kept
    assert [titled("IMACS_r of the hole above chance", one) for one in (kept, "the hole")] == [
        "IMACS_r of the kept region above chance",
        "IMACS_r of the hole above chance",
    ]


def test_a_region_of_a_large_picture_is_small_and_lies_where_it_lay(tmp_path: Path) -> None:
    mask = blob((1500, 1000))
    large = ValidationPair(name="a", reference=picture((8, 8)), target=picture((1500, 1000)), mask=mask)
    write(tmp_path / "run", [large])
    ((*_, found),) = served(tmp_path, 0)
    assert max(found.shape) <= regions.SIDE and found.shape[0] / found.shape[1] == pytest.approx(1.5)
    y, x = (((np.arange(n) + 0.5) * many / n).astype(int) for n, many in zip(found.shape, mask.shape, strict=True))
    assert (found != mask[np.ix_(y, x)]).mean() < 0.005
    assert pack_pictures(large)["mask"].nbytes < 2000, "one bit a pixel"


def test_the_noisiest_region_is_within_the_bounds(tmp_path: Path) -> None:
    noisy = np.random.default_rng(0).random((500, 500)) < 0.5
    write(
        tmp_path / "run", [ValidationPair(name="a", reference=picture((8, 8)), target=picture((500, 500)), mask=noisy)]
    )
    assert [name for name, *_ in served(tmp_path, 0)] == ["the hole"]


# -- what is refused -------------------------------------------------------------------------------------------------


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def claiming(width: int, height: int) -> bytes:
    """A PNG whose header tells of more pixels than it has; its checksum is made to fit."""
    content = bytearray(encoded(Image.new("1", (8, 8))))
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


GOOD = encoded(Image.fromarray(HOLE))
NO_REGION = {
    "nothing": (b"", "is no PNG that can be read"),
    "markup": (b"<svg onload=alert(1)>", "is no PNG that can be read"),
    "a signature alone": (GOOD[:8], "is no PNG that can be read"),
    "cut off": (GOOD[:50], "is no PNG that can be read"),
    "a JPEG": (encoded(Image.new("L", (8, 8)), "JPEG"), "is no PNG that can be read"),
    "a GIF": (encoded(Image.new("L", (8, 8)), "GIF"), "is no PNG that can be read"),
    "colours": (encoded(Image.new("RGB", (8, 8))), "is not black and white"),
    "a palette": (encoded(Image.new("P", (8, 8))), "is not black and white"),
    "16 bits": (encoded(Image.new("I;16", (8, 8))), "is not black and white"),
    "too wide": (encoded(Image.new("1", (513, 2))), "more pixels a side than 512"),
    "too high": (encoded(Image.new("1", (2, 513))), "more pixels a side than 512"),
    "gigapixels": (claiming(50_000, 50_000), "more pixels a side than 512"),
    "terapixels": (claiming(2**31 - 1, 2**31 - 1), "more pixels a side than 512"),
    "fewer pixels than claimed": (claiming(500, 500), "is no PNG that can be read"),
}


def stored_as(tmp_path: Path, changed: dict[str, np.ndarray]) -> Any:
    path = pairs_file(write(tmp_path / "run", PAIRS))
    save_file({**load_file(path), **changed}, path, metadata={"format": "1"})
    return asker(tmp_path, "run")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", NO_REGION)
def test_what_is_no_small_black_and_white_png_is_refused(tmp_path: Path, case: str) -> None:
    content, words = NO_REGION[case]
    ask = stored_as(tmp_path, {"0/mask": np.frombuffer(content, np.uint8)})
    text = ask.refusal(422, "regions", run="run", step=8, pair=0)
    assert words in text and text.startswith("0/mask in pairs_")
    assert ask.ask("regions", run="run", step=8, pair=5).status_code == 200, "the other pairs have theirs"
    assert ask.ask("picture", run="run", step=8, pair=0, which="target").status_code == 200


@pytest.mark.parametrize(
    ("changed", "status", "words"),
    [
        ({"0/mask": np.zeros(9, np.float32)}, 404, "is of dtype F32"),
        ({"0/mask": np.zeros(regions.BYTES + 1, np.uint8)}, 404, f"more than the {regions.BYTES}"),
        ({"2/kept_origin": np.zeros(9, np.float32)}, 404, "is of dtype F32"),
        ({"2/kept_origin": np.full(5000, 65, np.uint8)}, 404, "more than the 4096"),
        ({"2/kept_origin": np.array([0xFF, 0xFE], np.uint8)}, 422, "2/kept_origin in pairs_"),
    ],
)
def test_a_region_of_another_form_is_refused(
    tmp_path: Path, changed: dict[str, np.ndarray], status: int, words: str
) -> None:
    (name,) = changed
    ask = stored_as(tmp_path, changed)
    assert words in ask.refusal(status, "regions", run="run", step=8, pair=int(name[0]))


def test_requests_that_make_no_sense_are_told_why(logdir: Path, tmp_path: Path) -> None:
    ask = asker(logdir, "run")
    for asked, status, words in (
        ({"pair": 7}, 404, "has no pair 7."),
        ({"pair": 10**11}, 404, "has no pair 100000000000."),
        ({"pair": -1}, 400, "pair must be an integer"),
        ({"pair": "0/mask"}, 400, "pair must be an integer"),
        ({}, 400, "pair is missing"),
        ({"pair": 0, "step": "x"}, 400, "step must be an integer"),
        ({"pair": 0, "step": 9}, 404, "There is no step_00000009"),
        ({"pair": 0, "run": "plain"}, 404, "knows no run"),
        ({"pair": 0, "run": "../run"}, 404, "knows no run"),
    ):
        assert words in ask.refusal(status, "regions", **{"run": "run", "step": 8, **asked})
    pairs_file(write(tmp_path / "run", PAIRS)).unlink()
    assert "There is no pairs_" in asker(tmp_path, "run").refusal(404, "regions", run="run", step=8, pair=0)
    outside = write(tmp_path.parent / f"{tmp_path.name}_outside", PAIRS)
    pairs_file(outside).rename(pairs_file(outside).with_name("other"))
    name = RunStore(tmp_path / "run").pairs_file(RunStore(tmp_path / "run").evaluations()[0].evaluation).name
    (own(tmp_path / "run") / name).symlink_to(own(outside) / "other")
    text = asker(tmp_path, "run").refusal(403, "regions", run="run", step=8, pair=0)
    assert "leads out of the logdir" in text


# -- what is drawn ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(logdir: Path) -> Iterator[str]:
    with tensorboard("--logdir", str(logdir)) as (started, _):
        yield started


def opened(browser: Any, address: str, run: str = "run", number: int = 0, more: str = "", **options: Any) -> Tab:
    tab = Tab(browser, address, f"p.i2am_debug.run={run}&p.i2am_debug.pair={number}{more}", **options)
    assert tab.ready() == f"{run} {24 if run == 'old' else 8}"
    tab.page.mouse.move(2, 2)
    return tab


def painted(canvas: Any) -> np.ndarray:
    """(h, w, 3) of a canvas."""
    data = canvas.evaluate("e => e.toDataURL().split(',')[1]")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def toggle(tab: Tab) -> Any:
    return tab.page.get_by_role("checkbox", name="Outlines")


def outlines(tab: Tab, canvas: Any) -> tuple[np.ndarray, np.ndarray]:
    """What a canvas shows with outlines, and where the outlines change it."""
    with_them = painted(canvas)
    toggle(tab).uncheck()
    without = painted(canvas)
    toggle(tab).check()
    np.testing.assert_array_equal(painted(canvas), with_them)
    return with_them, (with_them != without).any(-1)


def grown(mask: np.ndarray, by: int) -> np.ndarray:
    """With all pixels that are at most so many away."""
    padded = np.pad(mask, by)
    height, width = mask.shape
    return np.any([padded[y : y + height, x : x + width] for y in range(2 * by + 1) for x in range(2 * by + 1)], axis=0)


def border_of(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a picture of this height and width that lie inside and have a neighbour outside, or none."""
    at = np.ix_(*(((np.arange(n) + 0.5) * many / n).astype(int) for n, many in zip(size, mask.shape, strict=True)))
    large = np.pad(mask[at], 1)
    neighbours = [
        large[1 + y : 1 + y + size[0], 1 + x : 1 + x + size[1]] for y, x in ((0, 1), (0, -1), (1, 0), (-1, 0))
    ]
    return large[1:-1, 1:-1] & ~np.all(neighbours, axis=0)


def assert_outlined(shown: np.ndarray, changed: np.ndarray, mask: np.ndarray, line: int) -> None:
    """A white line within a dark rim runs along all of the mask's border, and nowhere else."""
    border = border_of(mask, shown.shape[:2])
    white, dark = (shown >= 250).all(-1) & changed, (shown <= 30).all(-1) & changed
    assert white.sum() > 100 and dark.sum() > 100
    assert not (changed & ~grown(border, line)).any(), "away from the border nothing is drawn"
    assert not (border & ~grown(white, line // 2)).any(), "no part of the border is without its line"
    assert not (grown(white, 1) & ~white & ~dark).any(), "the line has its rim on every side"


@pytest.mark.browser
@pytest.mark.parametrize("ratio", [1, 1.5, 2])
def test_hole_and_object_are_outlined_where_they_are(browser: Any, address: str, ratio: float) -> None:
    tab = opened(browser, address, device_scale_factor=ratio)
    for side, mask in (("generated", HOLE), ("reference", OBJECT)):
        shown, changed = outlines(tab, tab.canvas(side))
        box = tab.canvas(side).bounding_box()
        assert shown.shape[1] == pytest.approx(ratio * box["width"], abs=1), "a pixel of its own for each of the screen"
        assert_outlined(shown, changed, mask, 4 if ratio == 1 else 8)
    assert (
        tab.page.locator(".outlined .note").inner_text()
        == "the hole on the generated picture; the object on the reference"
    )
    assert tab.errors == []
    tab.page.close()


@pytest.mark.browser
@pytest.mark.parametrize(
    ("number", "masks", "words"),
    [
        (2, (~KEPT, ~KEPT), "the changed part on both, derived by Otsu's method (kept: |target − reference| < 0.081)"),
        (3, (~KEPT, OBJECT), "the changed part on the generated picture, from a file; the object on the reference"),
        (4, (HOLE, None), "the hole on the generated picture"),
        (6, (~KEPT, ~KEPT), f"the changed part on both ({MARKUP})"),
    ],
    ids=lambda value: PAIRS[value].name if isinstance(value, int) else "",
)
def test_what_an_edit_changes_is_outlined_where_there_is_neither_hole_nor_object(
    browser: Any, address: str, number: int, masks: tuple[Any, Any], words: str
) -> None:
    tab = opened(browser, address, number=number)
    assert tab.page.locator(".outlined .note").inner_text() == words
    variants = tab.page.get_by_label("G2R of").locator("option").all_inner_texts()
    assert variants == ["All of the picture", "The hole" if masks[0] is HOLE else "The kept region"]
    for side, mask in zip(("generated", "reference"), masks, strict=True):
        shown, changed = outlines(tab, tab.canvas(side))
        if mask is None:
            assert not changed.any()
        else:
            assert_outlined(shown, changed, mask, 4)
    assert tab.page.evaluate("window.hacked ?? parent.hacked ?? null") is None
    assert tab.errors == []
    tab.page.close()


@pytest.mark.browser
@pytest.mark.parametrize("direction", ["r2g", "g2r"])
def test_outlines_lie_on_pictures_with_and_without_a_map(browser: Any, address: str, direction: str) -> None:
    tab = opened(browser, address, more=f"&p.i2am_debug.direction={direction}")
    for side, mask in (("generated", HOLE), ("reference", OBJECT)):
        assert_outlined(*outlines(tab, tab.canvas(side)), mask, 4)
    tab.page.close()


@pytest.mark.browser
def test_above_bars_the_outline_lies_on_the_smaller_picture(browser: Any, address: str) -> None:
    tab = opened(browser, address, "bars")
    shown, changed = outlines(tab, tab.canvas("reference"))
    height, width = shown.shape[:2]
    inner = round(0.62 * height)
    across = round(inner * REFERENCE_SIZE[1] / REFERENCE_SIZE[0])
    left = (width - across) // 2
    assert not changed[inner:].any() and not changed[:, :left].any() and not changed[:, left + across :].any()
    within = np.s_[:inner, left : left + across]
    assert_outlined(shown[within], changed[within], OBJECT, 4)
    tab.page.close()


@pytest.mark.browser
def test_a_further_reference_has_no_outline(browser: Any, address: str) -> None:
    tab = opened(browser, address, number=5)
    assert outlines(tab, tab.canvas("reference"))[1].any()
    before = tab.pixels("reference")
    tab.page.get_by_role("group", name="References").get_by_role("button").nth(1).click()
    tab.changes("reference", before)
    assert not outlines(tab, tab.canvas("reference"))[1].any() and outlines(tab, tab.canvas("generated"))[1].any()
    assert tab.page.locator(".outlined .note").inner_text() == "the hole on the generated picture"
    tab.page.close()


@pytest.mark.browser
def test_keys_turn_outlines_off_and_the_link_says_so(browser: Any, address: str) -> None:
    tab = opened(browser, address)
    first = painted(tab.canvas("generated"))
    assert "outlines" not in tab.page.evaluate("location.hash")
    toggle(tab).focus()
    assert tab.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    tab.page.keyboard.press("Space")
    off = painted(tab.canvas("generated"))
    assert (off != first).any() and not toggle(tab).is_checked()
    assert tab.page.evaluate("location.hash").endswith("&p.i2am_debug.outlines=false")
    again = Tab(browser, address, tab.page.evaluate("location.hash.slice(1)"))
    again.page.mouse.move(2, 2)
    np.testing.assert_array_equal(painted(again.canvas("generated")), off)
    assert not toggle(again).is_checked()
    again.page.close()
    other = opened(browser, address, more="&p.i2am_debug.outlines=nonsense")
    assert toggle(other).is_checked(), "what is no answer is none"
    other.page.close()
    tab.page.close()


@pytest.mark.browser
def test_what_is_compared_is_outlined_too(browser: Any, address: str) -> None:
    tab = opened(browser, address, more="&p.i2am_debug.compare=true")
    tab.says("JS distance 0.000")
    for number in range(3):
        shown, changed = outlines(tab, tab.page.locator(".compare canvas").nth(number))
        assert_outlined(shown, changed, OBJECT, 4)
    assert "Outlined: the object" in tab.page.locator(".compare").inner_text()
    toggle(tab).uncheck()
    assert "Outlined" not in tab.page.locator(".compare").inner_text()
    tab.page.close()


@pytest.mark.browser
def test_a_saved_picture_has_the_outlines_that_are_shown(browser: Any, address: str, tmp_path: Path) -> None:
    tab = opened(browser, address)

    def saved() -> np.ndarray:
        with tab.page.expect_download() as download:
            tab.page.get_by_role("button", name="Save PNG").click()
        download.value.save_as(tmp_path / "saved.png")
        return np.asarray(Image.open(tmp_path / "saved.png").convert("RGB"))

    with_them = saved()
    toggle(tab).uncheck()
    without = saved()
    side, left, top = 640, 16, 58 + 34
    height = round(side * SIZE[0] / SIZE[1])
    pictures = [one[top : top + height, left : left + side] for one in (with_them, without)]
    border = border_of(HOLE, (height, side))
    changed = (pictures[0] != pictures[1]).any(-1)
    white = (pictures[0] >= 250).all(-1) & changed
    assert not (changed & ~grown(border, 8)).any() and not (border & ~grown(white, 8)).any()
    assert with_them.shape[0] > without.shape[0]
    assert with_them[top + height + 28 : top + height + 46, left : left + 200].min() < 100, "words say what is outlined"
    tab.page.close()


@pytest.mark.browser
def test_a_run_of_version_0_1_0_and_pairs_without_regions_are_shown(browser: Any, address: str) -> None:
    tab = opened(browser, address, "old")
    assert (
        tab.page.locator(".outlined .note").inner_text()
        == "the hole on the generated picture; the object on the reference"
    )
    assert outlines(tab, tab.canvas("generated"))[1].any()
    tab.page.close()
    tab = opened(browser, address, "plain")
    assert tab.page.locator(".outlined").is_hidden() and toggle(tab).count() == 0
    assert tab.page.get_by_label("G2R of").locator("option").all_inner_texts() == ["All of the picture"]
    assert " hole" not in tab.words() and "IMACS_r of all of the picture in the copying layer" in tab.words()
    assert tab.errors == []
    tab.page.close()


@pytest.mark.browser
def test_a_region_that_can_not_be_read_is_told_and_the_pictures_are_shown(browser: Any, address: str) -> None:
    tab = opened(browser, address, "spoilt")
    tab.says("No outlines: 0/mask in pairs_")
    assert toggle(tab).count() == 0 and "Target" in tab.words()
    tab.page.locator(".pair", has_text="two references").click()
    tab.says("the hole on the generated picture; the object on the reference")
    assert toggle(tab).is_checked()
    tab.page.close()
