"""One picture explained: by a model that paints into a hole, and by one that edits its reference; and what the panels say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from editing_pipeline import before_and_after, kontext_with_text_encoders
from PIL import Image, ImageDraw

from i2am_debug import CapturePlan, cli
from i2am_debug.demo.inpainting.pairs import validation_pairs
from i2am_debug.errors import InvalidPair
from i2am_debug.evaluation.evaluator import Evaluator
from i2am_debug.gate.exit_codes import ExitCode
from i2am_debug.pairs.collection import ValidationPairs
from i2am_debug.report import pictures, render
from i2am_debug.report.explain import explain
from i2am_debug.report.pictures import level_strips, pair_panel, pictures_of

BOX = (slice(16, 64), slice(16, 64))


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text drawn from here on."""
    drawn: list[str] = []
    for name in ("text", "multiline_text"):
        original = getattr(ImageDraw.ImageDraw, name)

        def spy(self: Any, xy: Any, text: str, *rest: Any, original: Any = original, **options: Any) -> Any:
            drawn.append(text)
            return original(self, xy, text, *rest, **options)

        monkeypatch.setattr(ImageDraw.ImageDraw, name, spy)
    return drawn


@pytest.fixture
def outlines(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Every region outlined from here on."""
    seen: list[np.ndarray] = []
    original = render.outline
    monkeypatch.setattr(
        render, "outline", lambda picture, region: seen.append(np.asarray(region)) or original(picture, region)
    )
    return seen


def said(words: list[str]) -> str:
    return " ".join(" ".join(words).split())


# -- editing ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("editing")
    kontext_with_text_encoders().save_pretrained(folder / "kontext")
    before, after = before_and_after()
    before.save(folder / "before.png")
    after.save(folder / "after.png")
    kept = np.full((96, 128), 255, dtype=np.uint8)
    kept[BOX] = 0
    Image.fromarray(kept).save(folder / "kept.png")
    return folder


def command(folder: Path, *options: str, name: str = "out.png") -> int:
    where = [str(folder / "kontext"), "--reference", str(folder / "before.png"), "-o", str(folder / name)]
    return cli.main(["explain", *where, "--size", "128x96", "--steps", "1", *options])


@pytest.mark.parametrize("how", ["derived", "given"])
def test_an_edit_is_explained_over_what_is_kept(
    folder: Path, how: str, words: list[str], outlines: list[np.ndarray]
) -> None:
    given = ["--kept-mask", str(folder / "kept.png")] if how == "given" else []
    assert command(folder, "--image", str(folder / "after.png"), "--prompt", "a green box", *given) == ExitCode.OK
    text = said(words)
    for expected in (
        *("FluxKontextPipeline", "Reference", "Truth", "Generated", "what the kept region draws from it"),
        *("IMACS_r of the kept region in the copying layer", "kept patches that look at their own place"),
        "the changed part outlined",
        "Kept region: where truth and reference look alike ("
        + ("given" if how == "given" else "derived: Otsu, |truth − reference| < 0."),
    ):
        assert expected in text, text
    assert "Masked input" not in text and "undefined" not in text and " hole" not in text
    assert len(outlines) == 2
    expected = np.zeros((96, 128), dtype=bool)
    expected[BOX] = True
    for changed in outlines:
        assert (changed & expected).sum() / (changed | expected).sum() > 0.98


def test_without_a_truth_it_says_what_can_not_be_scored(folder: Path, words: list[str], outlines: list[Any]) -> None:
    assert command(folder) == ExitCode.OK
    text = said(words)
    assert "IMACS_g undefined: no mask and no kept region" in text
    assert "No kept region: there is no truth to compare the reference with." in text
    assert "Truth" not in text and "Masked input" not in text and outlines == []


def test_a_truth_that_is_the_reference_says_so(folder: Path, words: list[str]) -> None:
    assert command(folder, "--image", str(folder / "before.png")) == ExitCode.OK
    assert "No kept region: the target is the reference, but for noise." in said(words)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--mask", "kept.png"], "FluxKontextPipeline takes no mask: leave it out (--mask)"),
        (["--reference", "after.png"], "pair 'before' has 2 references, and FluxKontextPipeline takes one"),
        (["--image", "none.png"], "none.png, which does not exist"),
        (["--kept-mask", "kontext/model_index.json"], "kept .*model_index.json can't be read as a picture"),
        (["--image", "small.png", "--kept-mask", "kept.png"], "kept is 128x96 pixels, its picture is 8x8"),
    ],
)
def test_what_can_not_be_is_said(folder: Path, options: list[str], text: str, capsys: Any) -> None:
    Image.new("RGB", (8, 8)).save(folder / "small.png")
    options = [o if o.startswith("--") else str(folder / o) for o in options]
    assert command(folder, *options, name="wrong.png") == ExitCode.FAILED
    told = capsys.readouterr().err
    assert all(part in told for part in text.split(".*")), told
    assert not (folder / "wrong.png").exists()


@pytest.mark.parametrize("size", ["128", "128x", "0x96", "128x96x3", "8x96", "big"])
def test_a_size_that_is_none_is_a_usage_error(folder: Path, size: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        command(folder, "--size", size)
    assert ended.value.code == ExitCode.USAGE
    assert (
        "argument --size: expected WIDTHxHEIGHT in pixels, at least 16x16, such as 512x768" in capsys.readouterr().err
    )


# -- painting into a hole --------------------------------------------------------------------------------------------


def test_a_pipeline_that_paints_into_a_hole_says_what_it_needs(tiny_pipeline: Any) -> None:
    pair = validation_pairs(1, seed=1)[0]
    name = type(tiny_pipeline).__name__
    with pytest.raises(InvalidPair, match=f"{name} paints into a hole: a mask is needed, white where to generate"):
        explain(tiny_pipeline, reference=pair.reference, image=pair.target)
    with pytest.raises(InvalidPair, match=f"{name} starts from a picture beside its reference: an image is needed"):
        explain(tiny_pipeline, reference=pair.reference, mask=pair.mask_image)
    both = dict(reference=pair.reference, image=pair.target, mask=pair.mask_image)
    with pytest.raises(InvalidPair, match=f"{name} takes no prompt"):
        explain(tiny_pipeline, **both, prompt="a cup")
    with pytest.raises(InvalidPair, match=f"{name} takes no size"):
        explain(tiny_pipeline, **both, size=(32, 32))


def test_what_a_pipeline_refuses_is_an_error_of_ours(tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = validation_pairs(1, seed=1)[0]

    def refusing(self: Any, image: Any, mask_image: Any, example_image: Any, generator: Any = None) -> None:
        raise ValueError("`height` has to be divisible by 8")

    monkeypatch.setattr(type(tiny_pipeline), "__call__", refusing)
    with pytest.raises(InvalidPair, match="refused the call: `height` has to be divisible by 8"):
        explain(tiny_pipeline, reference=pair.reference, image=pair.target, mask=pair.mask_image)


# -- panels and strips -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(tiny_pipeline: Any) -> tuple[Any, Any, Any]:
    """A pair with a hole, what was seen of it, and its evaluation."""
    evaluator = Evaluator(pairs=validation_pairs(1, seed=1), plan=CapturePlan(sampler_steps=1), num_inference_steps=2)
    with torch.no_grad():
        (observation,) = evaluator.observe(tiny_pipeline, [0])
    evaluation = evaluator.score([observation], global_step=0, pipeline=tiny_pipeline, baseline=None)
    return evaluator.pairs[0], observation, evaluation


def test_a_hole_is_outlined_and_named(seen: Any, words: list[str], outlines: list[np.ndarray]) -> None:
    pair, observation, _ = seen
    pair_panel(observation, pair, {}, "")
    text = said(words)
    assert "Masked input" in text and "what the hole draws from it" in text and "kept" not in text.lower()
    assert [o.tolist() for o in outlines] == [pair.reference_mask.tolist(), pair.mask.tolist()]
    assert text.count("box IoU") == 2 and text.count("maximum hits") + text.count("maximum misses") == 2
    assert "heaviest part maximum" in text and "IoU: of the dashed box" in text
    outlines.clear()
    level_strips(observation.maps, pair, observation.generated)["layers"]()
    assert "what the hole draws from the reference (G2R), by layer" in said(words) and "Outlined: the object." in said(
        words
    )
    assert outlines and all((o == pair.reference_mask).all() for o in outlines)


def test_a_kept_region_is_named_in_strips_and_what_changes_is_outlined(
    seen: Any, words: list[str], outlines: list[np.ndarray]
) -> None:
    pair, observation, _ = seen
    kept = dataclasses.replace(pair, mask=None, reference_mask=None, kept=~pair.mask)
    strips = level_strips(observation.maps, kept, observation.generated)
    strips["time"]()
    text = said(words)
    assert "what the kept region draws from the reference (G2R), by time" in text
    assert "Outlined: the changed part. Kept region: where truth and reference look alike (given)" in text
    assert outlines and all((o == pair.mask).all() for o in outlines)
    outlines.clear()
    pair_panel(observation, dataclasses.replace(kept, reference_mask=pair.reference_mask), {}, "")
    assert "the object outlined" in said(words) and (outlines[0] == pair.reference_mask).all()
    assert "box IoU" not in said(words) and "heaviest part" not in said(words), "what is kept is no object"


def test_a_panel_says_what_was_stretched_and_what_looking_noted(seen: Any, words: list[str]) -> None:
    pair, observation, _ = seen
    wide = pair.reference.resize((64, 32))
    kept = dataclasses.replace(pair, mask=None, reference_mask=None, reference=wide, kept=~pair.mask)
    pair_panel(observation, kept, {}, "")
    assert "stretched" not in said(words) and "Note" not in said(words), "a region that was given fits"
    derived = dataclasses.replace(kept, kept_origin="derived: Otsu, |target − reference| < 0.081")
    pair_panel(observation, derived, {}, "", notes=["a second product was taken"])
    text = said(words)
    assert "< 0.081; the reference, 64×32, was stretched to the truth's 32×32 for it)" in text
    assert "Note: a second product was taken." in text


def test_single_patches_are_chosen_from_what_is_kept(seen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, observation, _ = seen
    asked = []
    original = pictures.choose_patches
    monkeypatch.setattr(pictures, "choose_patches", lambda mask, grid: asked.append(mask) or original(mask, grid))
    kept = dataclasses.replace(pair, mask=None, kept=~pair.mask)
    level_strips(observation.maps, kept, None)
    assert (asked[0] == kept.kept).all()


def test_an_evaluation_draws_pairs_without_any_region(seen: Any, words: list[str]) -> None:
    pair, observation, evaluation = seen
    bare = dataclasses.replace(pair, mask=None, reference_mask=None, undefined_kept="the target is another")
    drawn = pictures_of(evaluation, [observation], ValidationPairs([bare]), panels=1, strips=1)
    for _, draw in drawn.values():
        draw()
    text = said(words)
    assert "what the model draws from it" in text and "No kept region: the target is another." in text
    assert "Outlined" not in text and "their own place" not in text
    assert "heaviest part" not in text and "IoU" not in text
    words.clear()
    pair_panel(observation, dataclasses.replace(pair, reference_mask=None), {}, "")
    assert "heaviest part maximum" in said(words) and said(words).count("box IoU") == 1, "that of G2R stands alone"
