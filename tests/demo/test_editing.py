"""The editing model: its pairs, its pipeline, and what its shipped weights do with a reference."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import FluxKontextPipeline
from safetensors import safe_open

from i2am_debug import CapturePlan, trace
from i2am_debug.demo.edit.model import (
    GRID,
    InstructionEncoder,
    flow_loss,
    predict_velocity,
    to_tokens,
    token_positions,
)
from i2am_debug.demo.edit.pairs import COLOURS, DIRECTIONS, PROMPTS, SIZE, make_batch, validation_pairs
from i2am_debug.demo.edit.pipeline import WEIGHTS, TinyEditPipeline, load_edit_pipeline
from i2am_debug.demo.edit.pretraining import held_out
from i2am_debug.demo.edit.training import DEMO, teacher_forced
from i2am_debug.demo.finetune import run_demo
from i2am_debug.demo.pixel_vae import PixelVAE
from i2am_debug.evaluation.evaluator import Evaluator
from i2am_debug.evaluation.load_pipeline import load_pipeline
from i2am_debug.families.flux_kontext import FluxKontext

COPYING_LAYERS = ("single_transformer_blocks.1", "single_transformer_blocks.2")
"""Both copy, and hold nearly as much information: which of them has more depends on the pairs."""


@pytest.fixture(scope="module")
def edit_pipeline() -> TinyEditPipeline:
    pipeline = load_edit_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def edited(pipeline: TinyEditPipeline, pairs, steps: int = 2) -> torch.Tensor:
    return pipeline(
        image=[p.reference for p in pairs],
        prompt=[p.prompt for p in pairs],
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(i) for i in range(len(pairs))],
        output_type="pt",
    ).images


# -- the pairs -------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_kept_and_what_is_edited_is_as_the_prompt_says() -> None:
    batch = make_batch(400, torch.Generator().manual_seed(0))
    assert set(batch.prompts) == set(PROMPTS)
    for i, prompt in enumerate(batch.prompts):
        reference, target = batch.reference_B3SS[i], batch.target_B3SS[i]
        before, after, kept = batch.reference_object_B1SS[i], batch.target_object_B1SS[i], batch.kept_B1SS[i]
        assert torch.equal(reference[:, kept[0]], target[:, kept[0]])
        verb, _, word = prompt.partition(" ")
        if verb == "recolour":
            colour = torch.tensor(COLOURS[word], dtype=torch.float32)
            assert torch.equal(before, after) and (target[:, after[0]] == colour[:, None]).all()
            assert not (reference[:, before[0]] == colour[:, None]).all()
        elif verb == "move":
            dx, dy = (int(v) for v in batch.shift_B2[i])
            assert DIRECTIONS[word] == (dx, dy)
            assert torch.equal(before.roll((dy, dx), (1, 2)), after)
            assert torch.equal(reference.roll((dy, dx), (1, 2))[:, after[0]], target[:, after[0]])
        elif verb == "replace":
            assert not torch.equal(before, after)
            assert torch.equal(target[:, after[0]].unique(dim=1), reference[:, before[0]].unique(dim=1))
        else:
            assert verb == "remove" and not after.any()
        if verb != "move":
            assert not batch.shift_B2[i].any()


def test_what_an_object_uncovers_is_plain_gradient() -> None:
    """Second differences of a gradient vanish; a blob's edge would show."""
    batch = make_batch(100, torch.Generator().manual_seed(1))
    uncovered = batch.reference_object_B1SS & ~batch.target_object_B1SS
    inner = uncovered[..., 2:] & uncovered[..., 1:-1] & uncovered[..., :-2]
    bend = (batch.target_B3SS[..., 2:] - 2 * batch.target_B3SS[..., 1:-1] + batch.target_B3SS[..., :-2]).abs()
    assert inner.any() and bend[inner.expand_as(bend)].max() < 1e-5


def test_validation_pairs_have_prompts_and_no_masks_and_stay_the_same() -> None:
    pairs, again = validation_pairs(4, seed=7), validation_pairs(4, seed=7)
    assert pairs.check() == again.check()
    for pair in pairs:
        assert pair.prompt in PROMPTS and pair.mask is None and pair.reference_mask is None
        assert pair.reference.size == pair.target.size == (SIZE, SIZE)


# -- the pipeline ----------------------------------------------------------------------------------------------------


def test_tokens_and_positions_are_kontexts() -> None:
    pictures = make_batch(3, torch.Generator().manual_seed(0)).reference_B3SS
    vae = PixelVAE()
    latents = vae.encode(pictures).latents
    assert torch.equal(vae.decode(latents, return_dict=False)[0], pictures)
    assert torch.equal(FluxKontextPipeline._pack_latents(latents, 3, 12, 16, 16), to_tokens(pictures))
    own = FluxKontextPipeline._prepare_latent_image_ids(1, 8, 8, "cpu", torch.float32)
    assert torch.equal(own, token_positions(0))


def test_a_saved_pipeline_makes_the_same_picture(edit_pipeline, tmp_path) -> None:
    pairs = validation_pairs(2, seed=3)
    edit_pipeline.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded, TinyEditPipeline)
    assert torch.equal(edited(edit_pipeline, pairs), edited(loaded, pairs))


def test_a_batch_is_made_of_what_each_pair_makes(edit_pipeline) -> None:
    pairs = validation_pairs(2, seed=3)
    together = edited(edit_pipeline, pairs)
    for i, pair in enumerate(pairs):
        alone = edit_pipeline(
            image=pair.reference,
            prompt=pair.prompt,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(i),
            output_type="pt",
        ).images
        torch.testing.assert_close(together[i], alone[0], atol=1e-4, rtol=0)


def test_pictures_of_other_sizes_are_brought_to_its_own(edit_pipeline) -> None:
    pair = validation_pairs(1, seed=3)[0]
    made = edit_pipeline(image=pair.reference.resize((96, 64)), prompt=pair.prompt, num_inference_steps=1).images[0]
    assert made.size == (SIZE, SIZE)


@pytest.mark.parametrize("prompt", ["paint it red", "recolour", "move red", "", "remove it"])
def test_an_unknown_prompt_is_answered_with_the_known_ones(edit_pipeline, prompt) -> None:
    picture = validation_pairs(1, seed=3)[0].reference
    with pytest.raises(
        ValueError, match=rf"prompt {prompt!r}: the tiny editing model knows only 'recolour red', .*'remove'"
    ):
        edit_pipeline(image=picture, prompt=prompt)


def test_every_prompt_has_its_own_tokens() -> None:
    tokens = InstructionEncoder()(PROMPTS)
    assert len(tokens.flatten(1).unique(dim=0)) == len(PROMPTS)


# -- the weights -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluation(edit_pipeline):
    evaluator = Evaluator(
        pairs=validation_pairs(16, seed=11),
        plan=CapturePlan(),
        loss_fn=teacher_forced(edit_pipeline),
        batch_size=16,
        pictures=0,
    )
    evaluator.prepare(edit_pipeline)
    looks = [look for batch in evaluator.batches for look in evaluator.observe(edit_pipeline, batch)]
    return evaluator.score(looks, global_step=0, pipeline=edit_pipeline, baseline=None)


def test_a_wrong_reference_costs_five_times_the_loss(evaluation) -> None:
    print({tag: evaluation.mean(tag) for tag in ("loss", "reference_gap", "reference_mass", "attention_information")})
    assert evaluation.mean("reference_gap") >= 5 * evaluation.mean("loss")


def test_the_copying_layer_is_found_and_looks_at_the_reference(evaluation) -> None:
    assert evaluation.copying_layer in COPYING_LAYERS
    assert evaluation.mean("attention_information") > 2


@pytest.mark.parametrize(("layer", "follows_what_moved"), [*zip(COPYING_LAYERS, (False, True), strict=True)])
def test_a_copying_layer_looks_where_the_truth_is(edit_pipeline, layer, follows_what_moved) -> None:
    """Patches that are kept look at their own place; those of a moved object, in one layer, at the place that it came from."""
    count = 48
    batch = make_batch(count, torch.Generator().manual_seed(5))
    words, target, reference = (
        edit_pipeline.instruction_encoder(batch.prompts),
        to_tokens(batch.target_B3SS),
        to_tokens(batch.reference_B3SS),
    )
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), trace(edit_pipeline.transformer, plan=CapturePlan.full(), family=FluxKontext()) as seen:
        for share in (0.9, 0.7, 0.5):
            flow_loss(edit_pipeline.transformer, words, target, reference, torch.full((count,), share), noise)
    y, x = torch.arange(64).view(8, 8) // 8, torch.arange(64).view(8, 8) % 8
    kept = torch.nn.functional.avg_pool2d(batch.kept_B1SS.float(), 4)[:, 0] == 1
    moved = (torch.nn.functional.avg_pool2d(batch.target_object_B1SS.float(), 4)[:, 0] == 1) & (
        batch.shift_B2.abs().sum(1).view(-1, 1, 1) > 0
    )
    hits = {"kept": [], "moved": []}
    for i in range(count):
        grid, rows = seen.maps(i).rows.by_layer[layer]
        assert grid == (GRID, GRID)
        best = torch.as_tensor(rows).reshape(GRID, GRID, -1).argmax(-1)
        dx, dy = (int(v) // 4 for v in batch.shift_B2[i])
        off = torch.maximum((best // GRID - (y - dy)).abs(), (best % GRID - (x - dx)).abs())
        own = torch.maximum((best // GRID - y).abs(), (best % GRID - x).abs())
        hits["kept"].append(own[kept[i]] <= 1)
        hits["moved"].append(off[moved[i]] <= 1)
    found = {name: torch.cat(each).float().mean().item() for name, each in hits.items()}
    print(found, {name: len(torch.cat(each)) for name, each in hits.items()})
    assert found["kept"] >= 0.95
    assert found["moved"] >= 0.95 if follows_what_moved else found["moved"] < 0.5


def test_the_weights_carry_their_recipe_and_what_it_reached(edit_pipeline) -> None:
    assert WEIGHTS.stat().st_size <= 4 * 2**20
    with safe_open(WEIGHTS, framework="numpy") as file:
        metadata = file.metadata()
    assert json.loads(metadata["recipe"])["batch"] == 16
    written = json.loads(metadata["held_out_loss"])
    assert written["psnr"] >= 18 and written["wrong_reference"] >= 6 * written["right_reference"]
    found = held_out({name: getattr(edit_pipeline, name) for name in DEMO.trained})
    assert found == pytest.approx(written, rel=0.02)  # written before the weights were rounded to float16


# -- the fine-tune ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_probes")
def test_shuffled_references_are_alerted(tmp_path) -> None:
    result = run_demo(tmp_path, model="edit", steps=16, sabotage="shuffle", progress=False)
    assert result.sabotage_step == 8 and [alert.global_step for alert in result.alerts] == [16]
    head, *rows = result.table().splitlines()
    assert "reference mass" in head and "information" in head and "reference gap" in head
    assert "references shuffled from here" in rows[1] and "ALERT" in rows[2]


@pytest.mark.usefixtures("few_probes")
def test_a_healthy_fine_tune_is_not_alerted(tmp_path) -> None:
    result = run_demo(tmp_path, model="edit", steps=16, sabotage="none", progress=False)
    assert result.sabotage_step is None and not result.alerts


def test_a_fault_of_the_other_model_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"sabotage='shift-mask': expected one of .*positions.* for the model 'edit'"):
        run_demo(tmp_path, model="edit", sabotage="shift-mask")
    with pytest.raises(ValueError, match="model='video': expected one of inpainting, edit"):
        run_demo(tmp_path, model="video")


def test_swapped_positions_are_the_same_as_swapped_tokens(edit_pipeline) -> None:
    """The fault swaps the pictures' tokens; giving the transformer swapped positions instead makes the same prediction."""
    batch = make_batch(2, torch.Generator().manual_seed(2))
    wrong = DEMO.sabotages["positions"].corrupt({"reference": batch.reference_B3SS}, torch.Generator())["reference"]
    words, noisy = edit_pipeline.instruction_encoder(batch.prompts), torch.randn(2, 64, 48)
    share = torch.full((2,), 0.7)
    with torch.no_grad():
        by_tokens = predict_velocity(edit_pipeline.transformer, words, noisy, to_tokens(wrong), share)
        by_positions = predict_velocity(
            edit_pipeline.transformer,
            words,
            noisy,
            to_tokens(batch.reference_B3SS),
            share,
            reference_positions=token_positions(1)[:, [0, 2, 1]],
        )
    torch.testing.assert_close(by_tokens, by_positions, atol=1e-4, rtol=1e-4)


def test_random_attention_stays_as_it_was_put() -> None:
    pipeline = load_edit_pipeline()
    before = {name: p.clone() for name, p in pipeline.transformer.named_parameters()}
    DEMO.sabotages["attention"].break_weights(pipeline)
    changed = {name for name, p in pipeline.transformer.named_parameters() if not torch.equal(p, before[name])}
    assert {name.split(".attn.")[1].split(".")[0] for name in changed} == {"to_q", "to_k", "add_q_proj", "add_k_proj"}
    assert {name for name, p in pipeline.transformer.named_parameters() if not p.requires_grad} >= changed
