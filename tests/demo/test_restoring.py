"""The super-resolution model: its pairs, its pipeline, and what its shipped weights do with a reference."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from i2am_debug import CapturePlan, trace
from i2am_debug.demo.finetune import run_demo
from i2am_debug.demo.picture_quality import mean_psnr
from i2am_debug.demo.pixel_vae import LATENT_CHANNELS, PixelVAE
from i2am_debug.demo.super_resolution.model import GRID, ReferenceEncoder, denoising_loss
from i2am_debug.demo.super_resolution.pairs import LOW_SIZE, SIZE, make_batch, validation_pairs
from i2am_debug.demo.super_resolution.pipeline import (
    WEIGHTS,
    TinySuperResolutionPipeline,
    load_super_resolution_pipeline,
)
from i2am_debug.demo.super_resolution.pretraining import held_out_loss
from i2am_debug.demo.super_resolution.training import DEMO, picture_psnr
from i2am_debug.evaluation.load_pipeline import load_pipeline


@pytest.fixture(scope="module")
def pipeline() -> TinySuperResolutionPipeline:
    loaded = load_super_resolution_pipeline()
    loaded.set_progress_bar_config(disable=True)
    return loaded


def restored(pipeline: TinySuperResolutionPipeline, pairs) -> torch.Tensor:
    return pipeline(
        image=[p.reference for p in pairs],
        num_inference_steps=2,
        generator=[torch.Generator().manual_seed(i) for i in range(len(pairs))],
        output_type="pt",
    ).images


# -- the pairs -------------------------------------------------------------------------------------------------------


def test_a_reference_is_the_mean_of_every_four_pixels() -> None:
    batch = make_batch(5, torch.Generator().manual_seed(0))
    pictures = batch.target_B3SS.numpy()
    means = sum(pictures[..., y::2, x::2] for y in (0, 1) for x in (0, 1)) / 4
    assert batch.reference_B3LL.shape == (5, 3, LOW_SIZE, LOW_SIZE)
    np.testing.assert_allclose(batch.reference_B3LL, means, atol=1e-6)


def test_detail_is_the_spread_in_eight_by_eight_pixels_around_a_place() -> None:
    batch = make_batch(2, torch.Generator().manual_seed(1))
    found = batch.detail_BGG(GRID)
    assert found.shape == (2, GRID, GRID)
    mirrored = np.pad(batch.target_B3SS[1].numpy(), ((0, 0), (3, 3), (3, 3)), mode="reflect")
    for row, column in ((0, 0), (3, 5), (15, 15)):  # whose own pixels are 2 row, 2 row + 1; padded, 3 further
        around = mirrored[:, 2 * row : 2 * row + 8, 2 * column : 2 * column + 8]
        assert found[1, row, column] == pytest.approx(around.std((1, 2)).mean(), abs=1e-6)


def test_the_pictures_have_texture_and_flat_areas_and_stay_the_same() -> None:
    detail = make_batch(64, torch.Generator().manual_seed(2)).detail_BGG(GRID)
    assert (detail < 0.05).float().mean() > 0.2 and (detail > 0.2).float().mean() > 0.2
    pairs, again = validation_pairs(3, seed=7), validation_pairs(3, seed=7)
    assert pairs.check() == again.check()
    assert {(p.reference.size, p.target.size) for p in pairs} == {((LOW_SIZE, LOW_SIZE), (SIZE, SIZE))}


# -- the pipeline ----------------------------------------------------------------------------------------------------


def test_the_latents_are_the_pixels_of_each_place() -> None:
    picture = make_batch(2, torch.Generator().manual_seed(0)).target_B3SS
    vae = PixelVAE()
    latents = vae.encode(picture).latents
    assert latents.shape == (2, LATENT_CHANNELS, GRID, GRID)
    patch = picture[1, :, 2:4, 4:6]
    assert torch.equal(latents[1, :, 1, 2], patch.flatten())
    assert torch.equal(vae.decode(latents).sample, picture)


def test_a_token_knows_its_own_pixel_and_two_around_it_only() -> None:
    encoder, picture = ReferenceEncoder().eval(), torch.zeros(1, 3, LOW_SIZE, LOW_SIZE)
    changed = picture.clone()
    changed[..., 7, 5] = 1
    with torch.no_grad():
        moved = (encoder(changed) - encoder(picture)).abs().amax(2).view(GRID, GRID) > 1e-6
    rows, columns = moved.nonzero().T
    assert moved[7, 5] and rows.min() == 5 and rows.max() == 9 and columns.min() == 3 and columns.max() == 7


def test_a_saved_pipeline_makes_the_same_picture(pipeline, tmp_path) -> None:
    pairs = validation_pairs(2, seed=3)
    pipeline.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded, TinySuperResolutionPipeline)
    assert torch.equal(restored(pipeline, pairs), restored(loaded, pairs))


def test_pictures_of_other_sizes_are_brought_to_its_own(pipeline) -> None:
    made = pipeline(image=Image.new("L", (40, 20), 128), num_inference_steps=1).images[0]
    assert made.size == (SIZE, SIZE)
    with pytest.raises(ValueError, match='output_type must be "pil", "np" or "pt", got \'tensor\''):
        pipeline(image=made, output_type="tensor")


# -- the weights -----------------------------------------------------------------------------------------------------


def test_each_patch_looks_at_its_own_place(pipeline) -> None:
    count = 16
    batch = make_batch(count, torch.Generator().manual_seed(5))
    noise = torch.randn(count, LATENT_CHANNELS, GRID, GRID, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), trace(pipeline.unet, plan=CapturePlan.full()) as seen:
        tokens = pipeline.reference_encoder(batch.reference_B3LL)
        denoising_loss(pipeline.unet, tokens, pipeline.scheduler, batch.target_B3SS, torch.full((count,), 800), noise)
    rows = [seen.maps(i).rows.by_layer for i in range(count)]
    assert {grid for one in rows for grid, _ in one.values()} == {(GRID, GRID)}
    hits = {layer: np.mean([one[layer][1].argmax(1) == np.arange(GRID**2) for one in rows]) for layer in rows[0]}
    print(hits)
    assert max(hits.values()) >= 0.9


def test_a_wrong_reference_makes_another_picture(pipeline) -> None:
    pairs = validation_pairs(8, seed=9)
    truths = torch.stack([torch.from_numpy(np.asarray(p.target) / 255.0) for p in pairs]).permute(0, 3, 1, 2)
    made = restored(pipeline, pairs)
    errors = ((made[:, None] - truths) ** 2).mean((2, 3, 4))  # of each picture against each truth
    assert torch.equal(errors.argmin(1), torch.arange(len(pairs)))
    right, wrong = errors.diagonal().mean().item(), errors[~torch.eye(len(pairs), dtype=torch.bool)].mean().item()
    assert wrong > 20 * right
    assert picture_psnr(pipeline, pairs) == pytest.approx(-10 * np.log10(right), abs=3)


def test_it_beats_the_bicubic_enlargement_of_its_reference(pipeline) -> None:
    pairs = validation_pairs(16, seed=10)
    enlarged = [
        np.asarray(p.reference.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float64) / 255 for p in pairs
    ]
    assert picture_psnr(pipeline, pairs) > mean_psnr(enlarged, pairs) + 2.5


def test_the_weights_carry_their_recipe_and_what_it_reached(pipeline) -> None:
    assert WEIGHTS.stat().st_size <= 1.5 * 2**20
    with safe_open(WEIGHTS, framework="numpy") as file:
        metadata = file.metadata()
    assert json.loads(metadata["recipe"])["batch"] == 16
    written = json.loads(metadata["held_out_loss"])
    assert written["wrong_reference"] >= 30 * written["right_reference"]
    found = held_out_loss({name: getattr(pipeline, name) for name in DEMO.trained})
    assert found == pytest.approx(written, rel=0.02)  # written before the weights were rounded to float16


# -- the fine-tune ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_probes")
def test_shuffled_references_are_alerted_and_nothing_before(tmp_path) -> None:
    result = run_demo(tmp_path, model="super-resolution", steps=16, sabotage="shuffle", progress=False)
    assert [e.global_step for e in result.evaluations] == [0, 8, 16] and result.sabotage_step == 8
    assert [alert.global_step for alert in result.alerts] == [16]
    assert result.run.name == "super-resolution_shuffle_seed0"
