"""The shipped model, whose truth is known: the maps must show where its copies come from."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from i2am_debug import CapturePlan
from i2am_debug.demo.inpainting.pairs import make_batch, true_reference_point, validation_pairs
from i2am_debug.demo.inpainting.pipeline import WEIGHTS
from i2am_debug.demo.inpainting.training import teacher_forced
from i2am_debug.evaluation.evaluator import Evaluator

PAIRS, SEED = 64, 7
COPYING_LAYER = "up_blocks.1.attentions.1"  # by TINY_MODEL's three training seeds; the code is not told


@pytest.fixture(scope="module")
def looked_at(tiny_pipeline):
    """Maps of 64 held-out pairs, teacher-forced, and their evaluation."""
    evaluator = Evaluator(
        pairs=validation_pairs(PAIRS, seed=SEED),
        plan=CapturePlan(),
        loss_fn=teacher_forced(tiny_pipeline),
        batch_size=16,
        pictures=0,
    )
    evaluator.prepare(tiny_pipeline)
    looks = [look for batch in evaluator.batches for look in evaluator.observe(tiny_pipeline, batch)]
    return looks, evaluator.score(looks, global_step=0, pipeline=tiny_pipeline, baseline=None)


def test_the_copying_layer_is_found_without_being_told(looked_at):
    _, evaluation = looked_at
    assert evaluation.copying_layer == COPYING_LAYER


def specific_hits(looks, layer: str) -> float:
    """Share of generated patches on the object whose strongest reference patch is the true one or touches it."""
    batch = make_batch(PAIRS, torch.Generator().manual_seed(SEED))
    hits, count = 0, 0
    for number, look in enumerate(looks):
        (h, w), rows = look.maps.rows.by_layer[layer]
        rh, rw = look.maps.rows.reference_grid
        size = batch.target_object_B1SS.shape[-1]
        cover = torch.nn.functional.adaptive_avg_pool2d(batch.target_object_B1SS[number], (h, w))[0]
        for row, col in np.argwhere(cover.numpy() > 0.9):
            x, y = (torch.full((PAIRS, 1), (i + 0.5) * size / n) for i, n in ((col, w), (row, h)))
            true_x, true_y = (float(v[number, 0]) for v in true_reference_point(batch, x, y))
            found = rows[row * w + col].argmax()
            near_x = abs(found % rw - (true_x * rw / size - 0.5)) <= 1
            near_y = abs(found // rw - (true_y * rh / size - 0.5)) <= 1
            hits, count = hits + (near_x and near_y), count + 1
    return hits / count


def test_specific_rows_hit_the_true_patch(looked_at):
    looks, _ = looked_at
    hits = specific_hits(looks, COPYING_LAYER)
    print(f"SRAM hits within one token: {hits:.3f}")
    assert hits >= 0.95
    others = [specific_hits(looks[:8], layer) for layer in looks[0].maps.layers if layer != COPYING_LAYER]
    assert min(others) < 0.5, "every layer hits: the measure would prove nothing"


def test_energy_of_hole_queries_lies_on_the_object(looked_at):
    looks, evaluation = looked_at
    pairs = validation_pairs(PAIRS, seed=SEED)
    chance = float(np.mean([pairs[look.index].reference_mask.mean() for look in looks]))
    unified = evaluation.mean("energy_r_hole")
    copying = evaluation.mean(f"layer/{evaluation.copying_layer}/energy_r_hole")
    print(f"energy / chance: copying layer {copying / chance:.2f}, unified {unified / chance:.2f}")
    assert copying >= 2.5 * chance


def test_hole_queries_show_what_all_queries_of_the_copying_layer_hide(looked_at):
    _, evaluation = looked_at
    layer = f"layer/{evaluation.copying_layer}"
    hole, all_queries = evaluation.mean(f"{layer}/imacs_r_hole"), evaluation.mean(f"{layer}/imacs_r")
    print(f"IMACS_r of the copying layer: hole queries {hole:.3f}, all queries {all_queries:.3f}")
    assert hole > 0.3 > all_queries


def test_a_wrong_reference_costs_loss(looked_at):
    _, evaluation = looked_at
    assert evaluation.mean("reference_gap") > evaluation.mean("loss")


def test_the_weights_carry_their_recipe():
    assert WEIGHTS.stat().st_size <= 2.5 * 2**20
    with safe_open(WEIGHTS, framework="numpy") as file:
        metadata = file.metadata()
    assert json.loads(metadata["recipe"])["batch"] == 16
    assert {"seed", "steps", "torch", "held_out_loss"} <= metadata.keys()


def test_capture_leaves_the_shipped_model_alone(tiny_pipeline):
    from i2am_debug import trace

    pair = validation_pairs(1, seed=1)[0]

    def call():
        return tiny_pipeline(
            image=pair.target,
            mask_image=pair.mask_image,
            example_image=pair.reference,
            num_inference_steps=5,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images

    plain = call()
    with trace(tiny_pipeline):
        looked = call()
    assert torch.equal(plain, looked)
