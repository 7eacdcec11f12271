"""The benchmarks of what looking costs run, count what can be counted by hand, and are all named in `make bench`."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel, UNet2DConditionModel

from benchmarks import growth_with_size, importing, peers, real_models, real_sizes, scoring, training
from i2am_debug import CapturePlan
from i2am_debug.families.flux_kontext import FluxKontext
from i2am_debug.families.ip_adapter import IPAdapter
from i2am_debug.run.recorder import Recorder

ROOT = Path(__file__).parents[2]
HEADS, SIDE, TEXT = 2, 8, 5


def test_make_bench_runs_each_of_them():
    named = re.search(r"^COSTS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert named is not None
    for name in named[1].split():
        assert '"--json"' in (ROOT / "benchmarks" / f"{name}.py").read_text(), name


def test_importing_loads_no_torch_and_that_would_be_seen():
    ours, theirs = (importing.measured(statement, 1) for statement in (importing.STATEMENTS[0], "import torch"))
    assert not ours["torch"] and theirs["torch"]
    assert ours["median"] < theirs["median"] / 3


# -- counting ----------------------------------------------------------------------------------------------------------


def test_operations_are_those_of_the_formulas():
    a, b, v = (torch.empty(shape, device="meta") for shape in ((3, 4), (4, 5), (4,)))
    with real_sizes.Counted() as counter:
        a @ b
        a @ v
        torch.bmm(a[None], b[None])
    assert counter.products == 2 * (3 * 4 * 5 + 3 * 4 + 3 * 4 * 5) and counter.others == 0
    q, k = torch.empty(1, 2, 6, 8, device="meta"), torch.empty(1, 2, 7, 8, device="meta")
    with real_sizes.FusedAttention(), real_sizes.Counted() as counter:
        F.scaled_dot_product_attention(q, k, k)
    assert counter.products == 2 * 2 * (2 * 6 * 7 * 8), "of queries and keys, and of weights and values"
    with real_sizes.Counted() as counter:
        torch.softmax(a, -1).exp_()
    assert counter.products == 0 and counter.others == 2 * 12


def test_what_has_no_formula_is_not_counted_as_something_else():
    with pytest.raises(AssertionError, match=r"no formula for the operations of aten.addmv"), real_sizes.Counted():
        torch.addmv(*(torch.empty(shape, device="meta") for shape in ((3,), (3, 4), (4,))))


def test_bytes_are_held_until_they_are_freed_and_views_hold_none():
    with real_sizes.Counted() as counter:
        a = torch.empty(1000, device="meta")
        b = a + 1
        c = b.view(10, 100)[2:]
        del a, b
        assert counter.held == 4000, "a view keeps what it is a view of"
        del c
        assert counter.held == 0
        assert counter.peak == 8000


# -- models of real size -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("Stable Diffusion 1.5", 860e6), ("SDXL", 2.57e9), ("Flux Kontext", 11.9e9), ("Klein", 3.88e9), ("Qwen", 20.4e9),
     ("Wan", 16.4e9)],
)  # fmt: skip
def test_a_configuration_has_as_many_parameters_as_its_model_is_known_for(name, parameters):
    (model,) = (model for model in real_models.MODELS if name in model.name)
    own = {n: p.numel() for n, p in model.build().named_parameters() if "_ip." not in n and "encoder_hid_proj" not in n}
    assert sum(own.values()) == pytest.approx(parameters, rel=0.01)


def tiny(channels: int = 16) -> real_models.RealModel:
    def build() -> torch.nn.Module:
        with torch.device("meta"):
            return FluxTransformer2DModel(
                in_channels=4,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=channels,
                num_attention_heads=HEADS,
                joint_attention_dim=6,
                pooled_projection_dim=6,
                axes_dims_rope=(channels - 12, 6, 6),
            ).to(real_models.DTYPE)

    def meta(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="meta", dtype=real_models.DTYPE)

    pictures = [real_models._positions(SIDE, 3, number) for number in (0, 1)]
    return real_models.RealModel(
        name="tiny",
        source="here",
        shows="8 from 8",
        family=FluxKontext(),
        build=build,
        arguments=lambda: {
            "hidden_states": meta(1, 2 * SIDE**2, 4),
            "encoder_hidden_states": meta(1, TEXT, 6),
            "img_ids": torch.cat(pictures),
            "txt_ids": torch.zeros(TEXT, 3),
            "pooled_projections": meta(1, 6),
        },
    )


def test_looking_costs_a_product_for_each_head_and_noise_time():
    model, plan = tiny(), CapturePlan(sampler_steps=2)
    found = real_sizes.measured(model, plan, pilot=True)
    assert found["heads"] == found["heads_looked_at"] == 4 and found["layers"] == 2
    assert found["forwards"] == 2 + 2 * 1.5
    wider = real_sizes.measured(tiny(channels=48), plan)
    product = 2 * SIDE**2 * SIDE**2  # of queries and keys, for each channel
    own = (wider["default"]["products"] - found["default"]["products"]) / (4 * 2 * product * (48 - 16))
    assert 1 <= own < 3.1, "once for all but R2G, and at most twice for that where a device's numbers are not read"
    attention = 2 * 2 * (TEXT + 2 * SIDE**2) ** 2 * 16 * HEADS * 2
    assert found["forward_operations"] > attention
    assert found["default"]["products"] == found["pilot"]["products"], "it has no more heads than the plan allows"
    assert found["default"]["others"] > 4 * 2 * SIDE**4
    few = real_sizes.measured(model, CapturePlan(sampler_steps=2, heads=2))
    assert few["heads_looked_at"] == 3, "the strongest, and at least one of each layer's others"
    assert few["default"]["products"] < found["default"]["products"]


def test_an_image_branch_is_looked_at_on_the_meta_device_too():
    def build() -> torch.nn.Module:
        unet = UNet2DConditionModel(
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            cross_attention_dim=8,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        projection = real_models.IPAdapterFullImageProjection(1280, 8)
        return real_models._with_ip_adapter(unet, projection, 257)

    model = real_models.RealModel(
        name="tiny",
        source="here",
        shows="16 from 257",
        family=IPAdapter(),
        build=lambda: real_models._on_meta(build),
        arguments=lambda: real_models._unet_arguments(16, 8, {}),
    )
    found = real_sizes.measured(model, CapturePlan(sampler_steps=2, heads=8))
    assert found["default"]["products"] > 0 and found["layers"] == 11
    assert found["heads_looked_at"] >= 11 and found["heads"] == 44


# -- growth ------------------------------------------------------------------------------------------------------------


def test_what_is_worked_in_stays_while_what_is_kept_grows_with_the_layers():
    few, many = (growth_with_size.working_mib({**growth_with_size.LEAST, "layers": n}) for n in (1, 4))
    assert many[0] == pytest.approx(few[0], abs=0.5), "some maps beside the buffers"
    rows_of_a_layer = 2 * (32 * 32) ** 2 / 2**20  # in half precision
    assert 3 * rows_of_a_layer <= many[1] - few[1] < 3 * rows_of_a_layer + 1
    tokens = 2 * growth_with_size.LEAST["heads"] * 4 * 32**4 / 2**20  # logits and their softmax, which fit
    assert tokens < few[0] < 1.5 * tokens


def test_growth_in_excess_would_be_seen(monkeypatch, tmp_path):
    slow = {1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0}
    monkeypatch.setattr(growth_with_size, "AXES", {"pairs": (1, 2, 4, 8)})
    monkeypatch.setattr(growth_with_size, "working_mib", lambda size: (1.0, 1.0))
    for power, code in ((1, 0), (2, 1)):
        monkeypatch.setattr(growth_with_size, "seconds", lambda size, _, power=power: slow[size["pairs"]] ** power)
        assert growth_with_size.main(["--json", str(tmp_path / "found.json")]) == code
        assert json.loads((tmp_path / "found.json").read_text())["pairs"]["exponent"] == pytest.approx(power)
    monkeypatch.setattr(growth_with_size, "working_mib", lambda size: (100.0 * size["pairs"], 1.0))
    assert growth_with_size.main([]) == 1
    monkeypatch.undo()
    assert growth_with_size.seconds({"pairs": 1, "heads": 1, "layers": 1, "side": 4}, 1) > 0


# -- training ----------------------------------------------------------------------------------------------------------


def test_two_fine_tunes_go_on_in_turn(tmp_path, monkeypatch):
    small = {"plan": CapturePlan(sampler_steps=1), "pictures": 0, "panels": 0, "every_n_steps": 3}
    found = training.measured("inpainting", 2, 3, **small)
    assert len(found["ratios"]) == len(found["steps"]) == len(found["evaluation_s"]) == 2
    assert min(found["evaluation_s"]) > 20 * found["call_between_s"], (
        "evaluated in the middle of each round, and only there"
    )
    assert "the step after an evaluation" in training.in_words("inpainting", found)
    monkeypatch.setattr(training, "measured", lambda *_, **__: {**found, "ratios": [1.5, 1.01], "thread": [1.0, 1.0]})
    assert training.main(["--json", str(tmp_path / "found.json")]) == 1
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["ratio"] == pytest.approx(1.255) and written["reached"]["the training thread"]
    assert not written["reached"]["in all"]


def test_what_another_thread_does_for_an_evaluation_counts_in_its_round(monkeypatch):
    def work(self, writing, real=Recorder._draw):
        began = time.thread_time()
        while time.thread_time() - began < 1.5:
            pass
        real(self, writing)

    small = {"plan": CapturePlan(sampler_steps=1), "pictures": 0, "panels": 0, "every_n_steps": 3}
    monkeypatch.setattr(Recorder, "_draw", work)
    found = training.measured("inpainting", 1, 3, **small)
    added = 1.5 / (3 * found["step_s"])
    assert found["ratios"][0] > 1 + 0.7 * added and found["thread"][0] < found["ratios"][0] - 0.7 * added


def test_scoring_is_measured_for_each_picture_and_fails_beyond_its_limit(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(scoring, "MODELS", {"unet": scoring.Model((8, 4), 4, {0: 1.0, 2: 3.0}, 4)})
    monkeypatch.setattr(scoring, "COUNTED", 1)
    given = ["--models", "unet", "--sides", "64", "300", "--json", str(tmp_path / "found.json")]
    assert scoring.main(given) == 0
    found = json.loads((tmp_path / "found.json").read_text())["unet"]
    assert list(found["scored_s"]) == ["64", "300"] and min(*found["scored_s"].values(), found["packed_s"]) > 0
    # Of each pair: five kinds of maps of two layers and heads, rows of 8x8 and 4x4 patches over 4x4, and what is made of them.
    assert 4 * (64 + 16) * 16 / 2**20 < found["held_mib"] < 1
    monkeypatch.setattr(scoring, "SECONDS", 1e-9)
    assert scoring.main(given) == 1


def test_what_a_pairs_maps_hold_counts_rows_that_are_not_made_yet() -> None:
    model = scoring.Model((32,), 32, {0: 1.0}, 1)
    accumulator = scoring.summed(model)
    maps = accumulator.maps(0, scoring.STEPS)
    held = scoring.held_mib(maps.rows.by_layer)
    assert held == 2, "1024 by 1024 in half precision"
    assert scoring.held_mib(maps) > held + 4 * 2**20 / 2**20, "and those of all layers in float32"


def test_the_ways_that_need_no_peer_run() -> None:
    sampling = peers.Sampling(1)
    for name in ("unhooked", "i2am-debug, full plan", "the authors' way"):
        peers.WAYS[name](sampling)
    assert tuple(sampling.latents.shape[2:]) == (peers.SIDE, peers.SIDE)
