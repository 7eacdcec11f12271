"""What takes tokens away takes just those, the areas are those of closed forms, and each part says what it found."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from benchmarks.evidence import ambiguity, faithfulness, sanity
from benchmarks.evidence.ambiguity import biased_keys
from benchmarks.evidence.deletion import GONE, RANDOM, area, curves, replaced
from benchmarks.evidence.forced import Forced, forced
from benchmarks.evidence.looked_at import held_out
from benchmarks.evidence.sizes import SHORT
from benchmarks.evidence.token_maps import look_at
from benchmarks.evidence.withheld import predict_withheld
from i2am_debug.figures.distances import js_distance

TIME = SHORT.noise_times[0]


@pytest.fixture(scope="module", params=["inpainting", "edit"])
def pairs(request: pytest.FixtureRequest) -> Forced:
    return forced(request.param, held_out(request.param, 4, seed=0))


def test_one_token_with_all_the_effect_gives_the_areas_of_a_step() -> None:
    effect = np.eye(16)[5]
    found = curves({"true": effect, "false": 1 - effect}, lambda gone: gone.numpy() @ effect, 0, SHORT)
    step = GONE[1] / 2  # it is gone at the first point, or at the last
    assert [area(found["true"][kind]) for kind in ("deletion", "inverse")] == pytest.approx([1 - step, step])
    assert area(found["false"]["deletion"]) == pytest.approx(step)
    assert step < area(found[RANDOM]["deletion"]) < 1 - step


def test_effects_that_add_up_evenly_have_half_the_area_in_any_order() -> None:
    found = curves({"any": np.arange(64)}, lambda gone: gone.numpy().sum(1), 0, SHORT)
    assert [area(found[name]["deletion"]) for name in ("any", RANDOM)] == pytest.approx([0.5, 0.5])


def test_withheld_from_no_token_it_is_the_own_reference(pairs: Forced) -> None:
    none = torch.zeros(1, math.prod(pairs.grid), dtype=torch.bool)
    own = pairs.predict([1], pairs.own[1][None], TIME)
    torch.testing.assert_close(predict_withheld(pairs, 1, none, TIME), own, atol=1e-5, rtol=0)
    assert (predict_withheld(pairs, 1, ~none, TIME) - own).abs().max() > 0.1


def test_withheld_from_all_tokens_it_is_a_blank_reference() -> None:
    inpainting = forced("inpainting", held_out("inpainting", 4, seed=0))
    everything = torch.ones(1, math.prod(inpainting.grid), dtype=torch.bool)
    blank = inpainting.predict([1], inpainting.blank[1][None], TIME)
    torch.testing.assert_close(predict_withheld(inpainting, 1, everything, TIME), blank, atol=1e-5, rtol=0)


def test_only_the_tokens_of_the_mask_are_replaced(pairs: Forced) -> None:
    mask = torch.zeros(1, pairs.own.shape[1], dtype=torch.bool)
    mask[0, 7] = True
    changed = (replaced(pairs.own[0], pairs.blank[0], mask)[0] != pairs.own[0]).any(-1)
    assert changed.nonzero().tolist() == [[7]]


def test_value_norms_are_what_one_head_writes_of_one_token() -> None:
    inpainting = forced("inpainting", held_out("inpainting", 4, seed=0))
    looks, layer, head, token = look_at(inpainting, [TIME]), "up_blocks.0.attentions.1", 3, 11
    module = copy.deepcopy(inpainting.family.layers(inpainting.denoiser)[layer])
    width = module.to_v.weight.shape[0] // module.heads
    with torch.no_grad():
        module.to_v.weight[: head * width] = 0
        module.to_v.weight[(head + 1) * width :] = 0
        alone = inpainting.own[2:3, token : token + 1]  # all attention is on it
        written = module(torch.zeros(1, 1, module.to_q.weight.shape[1]), alone)[0, 0] - module.to_out[0].bias
    assert looks.norms[0][layer][2, head, token] == pytest.approx(float(written.norm()), rel=1e-4)


def test_a_bias_on_the_keys_moves_the_paper_s_r2g_alone() -> None:
    inpainting = forced("inpainting", held_out("inpainting", 4, seed=0))
    before, made = look_at(inpainting, [TIME]), inpainting.predict([0], inpainting.own[:1], TIME)
    with biased_keys(inpainting, 3.0, 0, TIME):
        after = look_at(inpainting, [TIME])
        torch.testing.assert_close(inpainting.predict([0], inpainting.own[:1], TIME), made, atol=1e-5, rtol=0)
    moved = {
        kind: js_distance(*(getattr(looks.maps[0][0], kind).unified for looks in (before, after)))
        for kind in ("r2g", "r2g_centred", "r2g_object_mass", "g2r")
    }
    assert moved.pop("r2g") > 0.1
    assert max(moved.values()) < 1e-3
    assert all(module.to_k.bias is None for module in inpainting.family.layers(inpainting.denoiser).values())


def test_faithfulness_in_short(tmp_path) -> None:
    section = faithfulness.measure(SHORT, tmp_path)
    found = section.values["inpainting"]["g2r"]["region, copying layer"]
    assert found["deletion"][0] > 0 and found["insertion"][0] > 0  # what the shipped model's maps are known for
    assert section.values["edit"]["rows"]["copying layer"]["rho"][0] > 0.5
    kept = list(tmp_path.rglob("*.json"))
    assert len(kept) == sum(SHORT.deleted_pairs.values())
    assert "Editing" in section.said


def test_sanity_in_short(tmp_path) -> None:
    section = sanity.measure(SHORT, tmp_path)
    edits = section.values["edit"]
    copying = "G2R, region, copying layer"
    assert edits["single_transformer_blocks.2 and output"][copying]["js"][0] == 0  # it lies before what was drawn anew
    assert edits["single_transformer_blocks.1"][copying]["js"][0] > 0.1
    everything = section.values["inpainting"]["and the reference encoder"]
    assert everything[copying]["rho"][0] < 0.5 < section.values["inpainting"]["(other noise)"][copying]["rho"][0]


def test_ambiguity_in_short(tmp_path) -> None:
    section = ambiguity.measure(SHORT, tmp_path)
    assert section.values["output_moved"] < 1e-5
    none, random, chosen = (section.values[name] for name in ("none", "random, 3", "against the hole, 3"))
    assert random["R2G, the paper's"]["js"][1] > 0.1
    assert max(maps["R2G, centred"]["js"][2] for maps in (random, chosen)) < 1e-3
    assert chosen["R2G, the paper's"]["imacs"][0] < none["R2G, the paper's"]["imacs"][0] - 0.1
